"""Declared options to values, help and completion, by argparse: the library of command lines that starts at once."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from digseg_engine.commands.declare import Command, Option
from digseg_engine.errors import DigsegError, UsageError
from digseg_engine.words import did_you_mean


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(command: Command, program: str, words: Sequence[str]) -> dict[str, Any]:
    """Words after the command's name -> every value by name. Prints help and exits when asked to.

    Raises UsageError: unknown or misplaced options, values that cannot be read, options that do not apply.
    """
    before, after = _split(words)
    parser = _parser(command, program, with_positionals=False)
    if {"-h", "--help"} & set(before):
        _parser(command, program, with_positionals=True).print_help()
        raise SystemExit(0)
    found, loose = parser.parse_known_args(before)
    unknown = [word for word in loose if word.startswith("-") and word != "-"]
    if unknown:
        flags = [flag for option in command.all_options() for flag in option.spellings]
        raise UsageError(
            f"no option {unknown[0].split('=')[0]}{did_you_mean(unknown[0].split('=')[0], flags)}; see {program} --help"
        )
    given = {**vars(found), **_positionals(command, [*loose, *after])}
    traceback = given.pop("traceback", False)
    return {**command.completed(given), "traceback": traceback}


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and after `--`: there everything is a positional argument."""
    at = list(words).index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at + 1 :])


def _positionals(command: Command, words: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    left = list(words)
    for option in (option for option in command.options if option.positional):
        if left:
            found[option.name] = [option.read(word) for word in left] if option.many else option.read(left[0])
            left = [] if option.many else left[1:]
    if left:
        raise UsageError(f"unexpected {left[0]!r}; every option takes one value, repeat it for several")
    return found


def _parser(command: Command, program: str, with_positionals: bool) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program, description=command.summary, usage=_usage(command, program), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_examples(command),
    )  # fmt: skip
    for option in command.all_options():
        if option.positional:
            if with_positionals:
                parser.add_argument(option.name, metavar=option.placeholder, help=_help(option))
        elif option.kind is bool:
            parser.add_argument(
                *option.spellings, dest=option.name, action="store_true", default=argparse.SUPPRESS, help=_help(option)
            )
        else:
            parser.add_argument(
                *option.spellings, dest=option.name, action="append" if option.many else "store", type=_reader(option),
                metavar=option.placeholder, default=argparse.SUPPRESS, help=_help(option),
            )  # fmt: skip
    return parser


def _reader(option: Option) -> Any:
    def read(text: str) -> Any:
        return option.read(text)

    return read


def _help(option: Option) -> str:
    default = option.shown or ("" if option.default in (None, False, []) else str(option.default))
    return (option.help + (f" [default: {default}]" if default else "")).replace("%", "%%")


def _usage(command: Command, program: str) -> str:
    words = [option.placeholder + (" ..." if option.many else "") for option in command.options if option.positional]
    words = [word if o.needed else f"[{word}]" for word, o in zip(words, (o for o in command.options if o.positional))]
    return " ".join([program, *words, "[options]"])


def _examples(command: Command) -> str | None:
    return "examples:\n" + "\n".join(f"  {line}" for line in command.examples) if command.examples else None


MEANT = {  # words that are no command of `digseg`, and what does what they say
    "export": "digseg-export", "convert": "digseg-export", "onnx": "digseg-export", "version": "digseg --version",
    "predict": "digseg segment", "run": "digseg segment", "infer": "digseg segment", "test": "digseg eval",
    "evaluate": "digseg eval", "val": "digseg eval", "validate": "digseg eval",
    "finetune": "digseg train --init MODEL --data DATA",
    "check": "digseg data FOLDER, for labelled pictures, or digseg doctor, for the machine",
    "info": "digseg doctor", "benchmark": "digseg bench", "profile": "digseg bench",
}  # fmt: skip


def unknown_command(word: str, known: Iterable[str]) -> DigsegError:
    names = list(known)
    if meant := MEANT.get(word.lower().replace("_", "-")):
        return UsageError(f"no command {word!r}; use {meant}")
    if word.startswith("-"):
        return UsageError(f"no option {word} before a command; options follow the command, as in digseg segment --help")
    return UsageError(f"no command {word!r}{did_you_mean(word, names)}; expected one of {', '.join(names)}")
