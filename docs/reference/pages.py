"""Reference pages, written when the site is built: the public Python names and every command's options."""

from __future__ import annotations

import re

import click
import mkdocs_gen_files
import typer

import digseg_engine
from digseg_engine.commands import app as digseg
from digseg_export.cli import app as digseg_export


def command_pages(name: str, group: click.Command) -> list[str]:
    """The help of a program and of all its commands, as a terminal of 100 columns shows it."""
    commands = getattr(group, "commands", {})
    lines = []
    for title, command in [(name, group), *((f"{name} {word}", inner) for word, inner in commands.items())]:
        context = click.Context(command, info_name=title, terminal_width=100, max_content_width=100)
        lines += [f"## `{title}`", "", "```text", _plain(command.get_help(context)), "```", ""]
    return lines


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()


with mkdocs_gen_files.open("reference/python.md", "w") as page:
    print(
        "# Python\n\nThe public names of `digseg_engine`. Everything else may change between minor versions.\n",
        file=page,
    )
    for public in sorted(set(digseg_engine.__all__) - {"__version__"}):
        print(f"::: digseg_engine.{public}\n", file=page)

with mkdocs_gen_files.open("reference/commands.md", "w") as page:
    print("# Command line\n", file=page)
    for program, application in (("digseg", digseg), ("digseg-export", digseg_export)):
        print("\n".join(command_pages(program, typer.main.get_command(application))), file=page)
