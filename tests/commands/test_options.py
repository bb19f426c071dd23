"""Every option of every command: declared once, read, documented, and refused where it would be swallowed."""

import inspect
from pathlib import Path

import pytest

from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.main import NAMES, command_named, overview
from digseg_engine.commands.parser import parse
from digseg_engine.commands.segment import KINDS, kinds_to_save
from digseg_engine.errors import UsageError
from digseg_export.cli import COMMAND as EXPORT

COMMANDS = {**{name: command_named(name) for name in NAMES}, "digseg-export": EXPORT}
OPTIONS = [pytest.param(command, option, id=f"{name} {option.spellings[0]}")
           for name, command in COMMANDS.items() for option in command.options]  # fmt: skip
TEXTS = {
    "steps_listed": "1,2,4",
    "counted": "all",
    "scaled": "0.5,1",
    "numbers": "1,2",
}  # of options whose `kind` is their own
CONDITIONAL = [one for one in OPTIONS if one.values[1].only_with]
EXCLUSIVE = [one for one in OPTIONS if one.values[1].not_with]


def sample(option: Option) -> str:
    """A text that the option takes."""
    if option.choices:
        return option.choices[-1]
    if option.kind.__name__ in TEXTS:
        return TEXTS[option.kind.__name__]
    if option.kind is kinds_to_save:
        return "json,masks"
    if option.kind is float:
        return str(max(option.at_least or 0.5, 0.25))
    return str(max(int(option.at_least or 0), 3)) if option.kind is int else "something"


def written(command: Command, option: Option, seen: tuple[str, ...] = ()) -> list[str]:
    """The option on a command line, with whatever it only works with."""
    words = [option.spellings[0]] if option.kind is bool else [option.spellings[0], sample(option)]
    if option.positional:
        words = [sample(option)]
    for flag in option.only_with[:1]:
        if flag not in seen:
            words += written(command, by_flag(command, flag), (*seen, flag))
    return words


def by_flag(command: Command, flag: str) -> Option:
    (found,) = [option for option in command.options if flag in option.spellings]
    return found


def complete(command: Command, words: list[str]) -> list[str]:
    """The words with the positional arguments that the command cannot do without."""
    return [*words, *(sample(option) for option in command.options if option.positional and option.needed)]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_option_reaches_the_command_by_its_name(command, option):
    words = complete(command, [] if option.positional and option.needed else written(command, option))
    value = parse(command, command.name, words)[option.name]
    expected = True if option.kind is bool else option.kind(sample(option))
    assert value == ([expected] if option.many else expected)
    if not (option.positional or option.kind is bool) and len(option.spellings) > 1:
        other = complete(command, [f"{option.spellings[1]}={sample(option)}", *written(command, option)[2:]])
        assert parse(command, command.name, other)[option.name] == value


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_of_the_right_kind_and_every_value_has_a_taker(name):
    command = COMMANDS[name]
    for option in command.options:
        if option.default is not None and option.kind in (int, float, bool, Path):
            assert isinstance(option.default, Path if option.kind is Path else option.kind), option
    flags = [flag for option in command.all_options() for flag in option.spellings]
    assert len(flags) == len(set(flags))
    taken = inspect.signature(command.run).parameters
    names = {option.name for option in command.options}
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        assert names == set(taken)


def test_what_takes_all_options_by_name_knows_each():
    from digseg_engine.runtime.labels import LABEL_RULES
    from digseg_engine.runtime.pictures import Work
    from digseg_engine.runtime.result import SAVED
    from digseg_export.request import Request

    parameters = inspect.signature(Work).parameters
    assert {o.name for o in COMMANDS["segment"].options} == set(parameters)
    for option in COMMANDS["segment"].options:
        if not option.many:
            assert parameters[option.name].default == option.default, option
    assert by_flag(COMMANDS["segment"], "--labels").choices == LABEL_RULES
    assert kinds_to_save("json, masks") == ("json", "masks") and KINDS == SAVED
    own = {name for name, one in inspect.signature(EXPORT.run).parameters.items() if one.kind is not one.VAR_KEYWORD}
    assert {o.name for o in EXPORT.options} - own <= set(inspect.signature(Request).parameters)


@pytest.mark.parametrize(("command", "option"), CONDITIONAL)
def test_an_option_without_its_partner_is_refused_with_the_cure(command, option):
    for partner in option.only_with:
        assert by_flag(command, partner)  # it exists, in the spelling that is compared
    words = [option.spellings[0]] if option.kind is bool else [option.spellings[0], sample(option)]
    with pytest.raises(
        UsageError, match=rf"{option.spellings[0]} has no effect without .*{option.only_with[0]}.*leave"
    ):
        parse(command, command.name, complete(command, words))


@pytest.mark.parametrize(("command", "option"), EXCLUSIVE)
def test_options_that_exclude_each_other_are_refused(command, option):
    for other in option.not_with:
        words = [*written(command, option), *written(command, by_flag(command, other))]
        with pytest.raises(UsageError, match="together with"):
            parse(command, command.name, complete(command, words))


@pytest.mark.parametrize(("command", "option"), [one for one in OPTIONS if one.values[1].kind in (int, float)])
def test_numbers_are_bounded_and_read(command, option):
    wrong = ["much"] + [
        str(limit + step) for limit, step in ((option.at_least, -1), (option.at_most, 1)) if limit is not None
    ]
    for text in wrong:
        with pytest.raises(UsageError, match=rf"{option.spellings[0]} must be .*number.*got '{text}'"):
            parse(command, command.name, complete(command, [option.spellings[0], text]))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_and_shows_an_example(name, capsys):
    command = COMMANDS[name]
    with pytest.raises(SystemExit) as done:
        parse(command, name, ["-h"])
    shown = " ".join(capsys.readouterr().out.split())
    assert not done.value.code and command.examples and command.examples[0] in shown
    for option in command.all_options():
        assert (option.placeholder if option.positional else option.spellings[0]) in shown
        assert " ".join(option.help.split())[:20] in shown.replace("- ", "-")


def test_the_overview_cuts_nothing():
    shown = " ".join(overview().split())
    for name in NAMES:
        assert f"{name} {command_named(name).summary}" in shown


SEGMENT = COMMANDS["segment"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "--tile", "512", "--refine", "2", "--steps", "3"], "--refine does not work together with --tile"),
        (["a.png", "--overlap", "0.25"], "--overlap has no effect without --tile"),
        (["a.png", "--tile", "256", "--seed", "0"], "--seed has no effect without --refine"),
        (["a.png", "--promt", "x"], r"no option --promt; did you mean --prompt\?"),
        (["a.png", "-p"], "expected one argument"),
        (["-p", "red"], "PICTURES is missing"),
    ],
)
def test_messages_of_segment(words, message):
    with pytest.raises(UsageError, match=message):
        parse(SEGMENT, "digseg segment", words)


def test_pictures_and_options_in_any_order_and_spelling():
    found = parse(SEGMENT, "digseg segment", ["a.png", "-p", "red", "b.png", "-o=x", "--prompt=a star", "--", "-c.png"])
    assert (found["photos"], found["prompt"], found["output"]) == (
        ["a.png", "b.png", "-c.png"],
        ["red", "a star"],
        Path("x"),
    )
    assert parse(SEGMENT, "digseg segment", ["a.png", "-p", "red", "--tile", "512"])["overlap"] == 0.25
