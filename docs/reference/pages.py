"""Reference pages, written when the site is built: the public Python names, and every command from its declaration."""

from __future__ import annotations

import mkdocs_gen_files

import digseg_engine
from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.main import NAMES, command_named
from digseg_export.cli import COMMAND as EXPORT


def row(option: Option) -> str:
    """One line of a command's table."""
    spelled = (
        ", ".join(f"`{flag}`" for flag in option.spellings) if not option.positional else f"`{option.placeholder}`"
    )
    value = "" if option.kind is bool or option.positional else f" {option.placeholder}"
    default = option.shown or ("" if option.default in (None, False, []) else str(option.default))
    limits = [f"with {', '.join(option.only_with)}"] if option.only_with else []
    limits += [f"not with {', '.join(option.not_with)}"] if option.not_with else []
    words = option.help + (f" ({'; '.join(limits)})" if limits else "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"{spelled}{value}", words, default)) + " |"


def section(program: str, command: Command) -> str:
    """A command's summary, table of options and examples."""
    lines = [f"## `{program}`", "", command.summary, "", "| option | what it does | default |", "| --- | --- | --- |"]
    lines += [row(option) for option in command.all_options()]
    if command.examples:
        lines += ["", "```bash", *command.examples, "```"]
    return "\n".join([*lines, ""])


with mkdocs_gen_files.open("reference/python.md", "w") as page:
    print(
        "# Python\n\nThe public names of `digseg_engine`. Everything else may change between minor versions.\n",
        file=page,
    )
    for public in sorted(set(digseg_engine.__all__) - {"__version__"}):
        print(f"::: digseg_engine.{public}\n", file=page)

with mkdocs_gen_files.open("reference/commands.md", "w") as page:
    print("# Command line\n", file=page)
    for name in NAMES:
        print(section(f"digseg {name}", command_named(name)), file=page)
    print(section("digseg-export", EXPORT), file=page)
