"""The plain form of `digseg segment` is read without the library for command lines, and means the same."""

import inspect
from pathlib import Path

import pytest
import typer.main

from digseg_engine.arguments import SEGMENT, SHORT, plain_segment
from digseg_engine.commands import app
from digseg_engine.runtime import command
from digseg_engine.runtime.pictures import segment_pictures

PLAIN = [
    ["a.png", "-p", "red"],
    ["-p", "red", "a.png", "folder", "--prompt", "a blue star", "-o", "here", "-b", "bundle"],
    ["a.png", "-p", "x", "--imgsz", "256", "--tile", "512", "--overlap", "0.5", "--refine", "2", "--steps", "3",
     "--seed", "7", "--backend", "torch", "--checkpoint", "c"],
    ["a.png"],
]  # fmt: skip


def full_command():
    return typer.main.get_command(app).commands["segment"]


@pytest.mark.parametrize("words", PLAIN)
def test_both_readers_understand_the_same(words):
    full = full_command().make_context("segment", list(words)).params
    full["prompt"] = list(full["prompt"] or [])
    defaults = {name: p.default for name, p in inspect.signature(segment_pictures).parameters.items()}
    plain = {**defaults, **plain_segment(["segment", *words])}
    assert {**plain, "photos": list(plain["photos"])} == {**full, "photos": list(full["photos"])}
    assert isinstance(plain["output"], Path)


@pytest.mark.parametrize(
    "words",
    [[], ["doctor"], ["segment"], ["segment", "--help"], ["segment", "a.png", "-p"], ["segment", "a.png", "--colour", "x"],
     ["segment", "a.png", "--imgsz", "big"], ["segment", "a.png", "--prompt=red"], ["segment", "a.png", "-pred"],
     ["segment", "a.png", "-p", "-x"], ["segment", "-p", "red"], ["segment", "--", "a.png"], ["--version"]],
)  # fmt: skip
def test_everything_else_is_left_to_the_full_command_line(words):
    assert plain_segment(words) is None


def test_every_option_is_known_to_both():
    options = {opt: p.name for p in full_command().params for opt in p.opts if opt.startswith("-") and p.name != "help"}
    assert options == {**{f"--{name}": name for name in SEGMENT}, **SHORT}
    ours = {name: p.default for name, p in inspect.signature(segment_pictures).parameters.items()}
    theirs = {name: p.default for name, p in inspect.signature(command.segment).parameters.items()}
    assert list(ours) == list(theirs)
    assert {name: default for name, default in ours.items() if name != "prompt"} == {
        name: default for name, default in theirs.items() if name != "prompt"
    }
