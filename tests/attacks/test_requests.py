"""Requests without end or with characters that are none: refused before anything is made of them."""

import contextlib
import io

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.console import complain, note
from digseg_engine.errors import InputError
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.names import mask_names
from digseg_engine.text import MOST_CHARACTERS, MOST_PROMPTS, check_prompts

PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def engine():
    return Engine.load(SHIPPED_BUNDLE, "onnxruntime")


def refused(prompts):
    with pytest.raises(InputError) as caught:
        check_prompts(prompts)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


def test_a_hundred_thousand_prompts_are_refused(engine):
    many = [f"thing {number}" for number in range(100_000)]
    assert "100000 prompts given; at most" in refused(many)
    assert len(check_prompts(many[:MOST_PROMPTS])) == MOST_PROMPTS
    for ask in (engine.segment, lambda picture, prompts: list(engine.stream([picture], prompts)),
                lambda picture, prompts: engine.segment(picture, ["road"], against=prompts)):  # fmt: skip
        with pytest.raises(InputError, match="at most"):
            ask(PICTURE, many)
    assert not len(engine.prompts)


def test_a_prompt_of_megabytes_is_refused_untokenised(engine):
    assert "characters, at most" in refused(["x" * (8 << 20)])
    assert check_prompts(["x" * MOST_CHARACTERS])
    with pytest.raises(InputError, match="characters, at most"):
        engine.segment(PICTURE, ["road " * (1 << 20)])


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b[2J", "\x7f", "\x9b31m", "\x08"])
def test_control_characters_are_refused_and_shown_as_escapes(character):
    said = refused([f"road{character}"])
    assert "control character U+" in said and character not in said


def test_line_breaks_and_tabs_are_spaces_as_ever():
    assert check_prompts(["a\tb\nc"]) == ["a\tb\nc"]


@pytest.mark.parametrize(
    "prompt", ["../../etc/passwd", "/etc/passwd", "..", "CON", "a/b\\c", "\u202egnp.exe", ".bashrc", "-rf"]
)
def test_no_prompt_becomes_a_path(prompt):
    (name,) = mask_names([prompt])
    assert "/" not in name and "\\" not in name and not name.startswith((".", "-")) and "\u202e" not in name and name


@pytest.mark.parametrize("say", [complain, note])
def test_a_message_cannot_steer_the_terminal(say):
    room = io.StringIO()
    with contextlib.redirect_stderr(room):
        say("digseg", "picture \x1b]0;title\x07\x1b[2J\x9b1m\u202egnp.a\u202c crème 道\nnot found")
    line = room.getvalue()
    assert line.count("\n") == 1 and line.endswith("not found\n") and "crème 道" in line
    assert not set(line) & {"\x1b", "\x07", "\x9b", "\u202e", "\u202c"}
