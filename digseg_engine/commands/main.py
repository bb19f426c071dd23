"""The `digseg` command: finds the command's module, reads its options, runs it inside the error boundary."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from textwrap import wrap

from digseg_engine.commands.boundary import guarded
from digseg_engine.commands.declare import Command
from digseg_engine.commands.parser import parse, unknown_command

# The module of each has its name.
NAMES = (
    "segment",
    "ask",
    "serve",
    "doctor",
    "bench",
    "data",
    "train",
    "distill",
    "eval",
    "verify",
    "push",
    "scenes",
    "completion",
)
ABOUT = "Text-prompted segmentation with DiGSeg: segment pictures, check the machine and data, train, evaluate."


def command_named(name: str) -> Command:
    """The declaration of a command; imports its module and nothing heavy."""
    found: Command = import_module(f"digseg_engine.commands.{name}").COMMAND
    return found


def run_command(command: Command, program: str, words: Sequence[str]) -> int:
    """Read the options of one command, check that what it needs is installed, and run it."""
    values = parse(command, program, words)
    if values.pop("traceback"):
        os.environ["DIGSEG_TRACEBACK"] = "1"
    if command.extras:
        from digseg_engine.extras import require

        require(program, *command.extras)
    return command.run(**values) or 0


def dispatch(words: Sequence[str]) -> int:
    """All of `digseg`: a command, `help`, `--version`, or the overview."""
    first = words[0] if words else "help"
    if first in ("help", "-h", "--help"):
        if len(words) > 1 and words[1] in NAMES:
            return run_command(command_named(words[1]), f"digseg {words[1]}", ["--help"])
        print(overview())
        return 0
    if first == "--version":
        from digseg_engine import __version__

        print(f"digseg-engine {__version__}")
        return 0
    if first not in NAMES:
        raise unknown_command(first, NAMES)
    return run_command(command_named(first), f"digseg {first}", words[1:])


def overview() -> str:
    """Help of the whole program: every command with its full summary."""
    lines = ["usage: digseg COMMAND [options]", "", ABOUT, "", "commands:"]
    for name in NAMES:
        first, *following = wrap(command_named(name).summary, 66)
        lines += [f"  {name:<11}{first}", *(" " * 13 + line for line in following)]
    lines += ["", "Options and examples of one command: digseg COMMAND --help", "Version: digseg --version",
              "", "examples:", f"  {command_named('segment').examples[0]}", "  digseg doctor"]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Entry point of `digseg`."""
    guarded(lambda: dispatch(sys.argv[1:]), "digseg")
