"""Requests to the models of a repository: good ones with the engine's own answers, and bad ones with what they shall be told."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from digseg_engine import Engine
from digseg_engine.images import Picture, read_picture
from digseg_engine.runtime.result import Segmentation
from digseg_engine.runtime.rle import decode
from digseg_engine.serving.limits import Limits

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
from triton_server_client import ServerError, infer  # noqa: E402

PICTURES = ("aerial", "cells", "crops", "shapes")
PROMPTS = (
    ("road",), ("water", "building"), ("nucleus", "soil", "red ring"), ("weed", "field", "a zebra", "tree"),
    ("building", "road", "water", "soil", "some trees", "red circle", "cell", "leaf"),
)  # fmt: skip
WAYS = ("png", "jpeg", "pixels", "two steps")
USUAL = ({}, {"threshold": 0.3}, {"all_prompts": True})
OUTPUTS = ("LABELS", "MASKS", "RLE", "SCORES", "THERE", "PRESENCE")


@dataclass(frozen=True)
class Good:
    """One question: which picture, how it is sent, prompts, parameters."""

    picture: str
    way: str
    prompts: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def ask(self, address: str, model: str) -> dict[str, np.ndarray]:
        """Of the server, with every output."""
        text = {"PROMPTS": list(self.prompts)}
        if self.way == "two steps":
            encoded = infer(address, f"{model}_encode", {"IMAGE": [png(self.picture)]})
            return infer(address, f"{model}_decode", {**encoded, **text}, OUTPUTS, self.parameters)
        given: dict[str, Any] = {"PIXELS": pixels(self.picture)} if self.way == "pixels" else {"IMAGE": [self._file()]}
        return infer(address, model, {**given, **text}, OUTPUTS, self.parameters)

    def _file(self) -> bytes:
        return jpeg(self.picture) if self.way == "jpeg" else png(self.picture)

    def expected(self, engine: Engine) -> Segmentation:
        """Of the engine itself."""
        picture: Any = pixels(self.picture)
        if self.way == "jpeg":
            picture = Picture(np.asarray(Image.open(io.BytesIO(jpeg(self.picture))).convert("RGB")))
        return engine.segment(picture, list(self.prompts), **self.parameters)


def good_requests(count: int) -> list[Good]:
    """So many, all ways, pictures, prompts and parameters among them."""
    return [Good(PICTURES[i % 4], WAYS[(i // 4) % 4], PROMPTS[(i // 3) % 5], USUAL[(i // 7) % 3]) for i in range(count)]


def differences(answer: dict[str, np.ndarray], expected: Segmentation) -> dict[str, float]:
    """How far an answer is from the engine's: pixels of the label map and of all masks that are others, and the largest
    difference of scores and presence. Raises ValueError where run lengths are not those of the masks."""
    for mask, counts in zip(answer["MASKS"], answer["RLE"]):
        if not np.array_equal(mask, decode({"size": mask.shape, "counts": counts})):
            raise ValueError("RLE and MASKS of one answer differ")
    if not np.array_equal(answer["THERE"], expected.there):
        raise ValueError("THERE differs")
    return {
        "labels": int((answer["LABELS"] != expected.label_map).sum()), "masks": int((answer["MASKS"] != expected.masks).sum()),
        "scores": float(np.abs(answer["SCORES"] - expected.scores).max()),
        "presence": float(np.abs(answer["PRESENCE"] - np.asarray(expected.presence)).max()),
    }  # fmt: skip


@cache
def png(name: str) -> bytes:
    return (ROOT / "examples" / f"{name}.png").read_bytes()


@cache
def pixels(name: str) -> np.ndarray:
    return read_picture(str(ROOT / "examples" / f"{name}.png")).pixels


@cache
def jpeg(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(name)).save(file, "JPEG", quality=92)
    return file.getvalue()


@cache
def bomb(width: int = 8000, height: int = 5000) -> bytes:
    """A PNG of a few kilobytes that would be 40 million pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes((1 + 3 * width) * height), 9)
    parts = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in parts
    )


@dataclass(frozen=True)
class Bad:
    """One kind of request that cannot be answered: what is sent to which model, and words of the answer."""

    kind: str
    told: str
    inputs: Callable[[], dict[str, Any]]
    suffix: str = ""  # of the model's name
    outputs: tuple[str, ...] = ("LABELS",)
    parameters: dict[str, Any] = field(default_factory=dict)
    status: int = 400

    def ask(self, address: str, model: str) -> ServerError | None:
        """What the server says; None where it answered."""
        try:
            infer(address, model + self.suffix, self.inputs(), self.outputs, self.parameters)
        except ServerError as error:
            return error
        return None

    def clear(self, said: object) -> bool:
        """In one line, with the right status and words."""
        return (
            isinstance(said, ServerError)
            and said.status == self.status
            and self.told in str(said)
            and "\n" not in str(said)
        )


def _with(**more: Any) -> Callable[[], dict[str, Any]]:
    """A good question with something in it that is not."""
    return lambda: {name: value for name, value in {"IMAGE": [png("aerial")], "PROMPTS": ["road"], **more}.items()
                    if value is not None}  # fmt: skip


def _pixels(array: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"PIXELS": array, "PROMPTS": ["road"]}


def _encoded(frame: list[int]) -> Callable[[], dict[str, Any]]:
    return lambda: {"ENCODING": np.zeros((3552, 16, 16), np.float32), "FRAME": np.array(frame), "PROMPTS": ["road"]}


BAD = (
    Bad("a file that is too large", "bytes, this server takes at most", lambda: _with(IMAGE=[bytes(Limits.body + 1)])()),
    Bad("a picture that is too large", "40.0 million pixels, this server takes at most", lambda: _with(IMAGE=[bomb()])()),
    Bad("no picture", "is not a picture this program reads", _with(IMAGE=[b"not a picture"])),
    Bad("a picture cut short", "the file is damaged or cut short", lambda: _with(IMAGE=[png("aerial")[:9000]])()),
    Bad("an empty file", "is empty (0 bytes)", _with(IMAGE=[b""])),
    Bad("neither picture nor pixels", "expected either IMAGE", _with(IMAGE=None)),
    Bad("picture and pixels", "expected either IMAGE", _with(PIXELS=np.zeros((64, 64, 3), np.uint8))),
    Bad("a picture that is too small", "expected at least 8x8", _pixels(np.zeros((7, 64, 3), np.uint8))),
    Bad("four channels", "unexpected shape for input 'PIXELS'", _pixels(np.zeros((64, 64, 4), np.uint8))),
    Bad("pixels that are floats", "data-type is 'FP32'", _pixels(np.zeros((64, 64, 3), np.float32))),
    Bad("no prompts", "no prompt given", _with(PROMPTS=[])),
    Bad("prompts left out", "no prompt given", _with(PROMPTS=None)),
    Bad("a blank prompt", "prompt 1 is empty", _with(PROMPTS=["road", " "])),
    Bad("too many prompts", "101 prompts given, at most 100", _with(PROMPTS=["road"] * 101)),
    Bad("a prompt that is no text", "is not valid text", _with(PROMPTS=[b"\xff\xfe"])),
    Bad("a prompt that is too long", "tokens, at most 77 fit", _with(PROMPTS=["road " * 200])),
    Bad("an unknown input", "unexpected inference input 'PICTURE'", _with(PICTURE=["x"])),
    Bad("an unknown output", "unexpected inference output 'POLYGONS'", _with(), outputs=("POLYGONS",)),
    Bad("an unknown model", "unknown model", _with(), suffix="_nothing", status=404),
    Bad("an unknown parameter", "unknown parameter 'thresold'", _with(), parameters={"thresold": 0.4}),
    Bad("a threshold out of range", "threshold is a probability", _with(), parameters={"threshold": 7}),
    Bad("a size that is too large", "at most 1024", _with(), parameters={"size": 4000}),
    Bad("a size that is no number", "expected a whole number", _with(), parameters={"size": "large"}),
    Bad("a frame of another encoding", "does not go with an encoding", _encoded([256, 512, 256, 256, 256, 256]), "_decode"),
    Bad("a frame of a huge picture", "million; reduce", _encoded([256, 256, 256, 256, 10**6, 10**6]), "_decode"),
)  # fmt: skip


def bad_requests(count: int) -> Iterator[Bad]:
    """So many, every kind equally often."""
    return (BAD[i % len(BAD)] for i in range(count))
