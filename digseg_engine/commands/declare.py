"""Commands and options, each declared once. Parser, help, completion and the checks are all made from the declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from digseg_engine.errors import UsageError


@dataclass(frozen=True)
class Option:
    """An option or, when `flags` has no dash, a positional argument.

    flags: spellings separated by spaces, the long one that names the value first ("--output -o"). kind: turns text into
    the value; bool makes it a switch. many: may be given several times (positional: several words). default: the value
    when it is not given; `shown` says it in help when it is worked out later. at_least, at_most: bounds of a number.
    only_with, not_with: flags that must, or must not, be given too. into: the value's name where the flag's own will not do.
    expects: what the value must be, in words, for a `kind` of its own.
    """

    flags: str
    help: str
    kind: Callable[[str], Any] = str
    default: Any = None
    shown: str = ""
    metavar: str = ""
    many: bool = False
    needed: bool = False
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    only_with: tuple[str, ...] = ()
    not_with: tuple[str, ...] = ()
    into: str = ""
    expects: str = ""

    @property
    def spellings(self) -> list[str]:
        return self.flags.split()

    @property
    def positional(self) -> bool:
        return not self.flags.startswith("-")

    @property
    def name(self) -> str:
        """The name of the value, as the command's function takes it."""
        return self.into or self.spellings[0].lstrip("-").replace("-", "_")

    @property
    def placeholder(self) -> str:
        """What stands for the value in help: N, FOLDER, TEXT."""
        if self.metavar or self.positional:
            return self.metavar or self.name.upper()
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        return {int: "N", float: "X"}.get(self.kind, "TEXT" if self.kind is str else "PATH")  # type: ignore[call-overload, no-any-return]

    def read(self, text: str) -> Any:
        """Text of the command line -> the value. Raises UsageError for what it cannot be."""
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        bounded = value is not None and isinstance(value, (int, float))
        low = bounded and self.at_least is not None and not value >= self.at_least
        high = bounded and self.at_most is not None and not value <= self.at_most
        if value is None or low or high or (self.choices and value not in self.choices):
            raise UsageError(f"{self.spellings[0]} must be {self.expectation()}, got {text!r}")
        return value

    def expectation(self) -> str:
        if self.choices or self.expects:
            return self.expects or " or ".join(self.choices)
        noun = {int: "a whole number", float: "a number"}.get(self.kind, "text")  # type: ignore[call-overload]
        if self.at_least is not None and self.at_most is not None:
            return f"{noun} from {self.at_least} to {self.at_most}"
        if self.at_least is not None:
            return f"{noun} of at least {self.at_least}"
        return f"{noun} of at most {self.at_most}" if self.at_most is not None else str(noun)


TRACEBACK = Option("--traceback", "show where an unexpected error came from (also DIGSEG_TRACEBACK=1)", kind=bool)


@dataclass(frozen=True)
class Command:
    """run: takes every value by name, imports what it needs inside itself, returns the exit code (None is 0).

    extras: optional parts of the installation that it cannot do without; examples: lines for its help.
    """

    name: str
    summary: str
    run: Callable[..., int | None]
    options: tuple[Option, ...]
    examples: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()

    def all_options(self) -> tuple[Option, ...]:
        return (*self.options, TRACEBACK)

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values by name with defaults filled in. Raises UsageError for options that do not apply and for what lacks."""
        self.check_applicable(given)
        for option in self.options:
            if option.needed and option.name not in given:
                example = f"; for example: {self.examples[0]}" if self.examples else ""
                raise UsageError(f"{option.placeholder if option.positional else option.spellings[0]} is missing "
                                 f"({option.help}){example}")  # fmt: skip
        return {o.name: given.get(o.name, [] if o.many and o.default is None else o.default) for o in self.options}

    def check_applicable(self, given: Mapping[str, Any]) -> None:
        """The one place where it is checked that options fit each other. `given` holds only what the user wrote."""
        present = {
            option.spellings[0] for option in self.options if option.name in given and given[option.name] is not False
        }
        for option in self.options:
            flag = option.spellings[0]
            if flag not in present:
                continue
            if option.only_with and not present & set(option.only_with):
                partners = " or ".join(option.only_with)
                raise UsageError(f"{flag} has no effect without {partners}; add {partners}, or leave {flag} out")
            for other in option.not_with:
                if other in present:
                    raise UsageError(f"{flag} does not work together with {other}; leave one of them out")
