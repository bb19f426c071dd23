"""Pictures that came in a request, read by the project's own readers: same formats, same messages, the server's own limits."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal

from digseg_engine.images import Picture, read_picture
from digseg_engine.reading import open_image
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.problems import malformed, too_large

LONGEST_NAME = 120


@dataclass(frozen=True)
class Upload:
    """The bytes of a picture and the name its sender gave it; read like a file (`reading.PictureFile`)."""

    body: bytes
    name: str = "picture"

    @classmethod
    def named(cls, body: bytes, name: str | None) -> Upload:
        """The last part of the name alone, without what cannot be shown."""
        last = PureWindowsPath(PurePosixPath(name or "").name).name
        return cls(body, "".join(letter for letter in last if letter.isprintable())[-LONGEST_NAME:] or "picture")

    @classmethod
    def decoded(cls, text: str, name: str | None = None) -> Upload:
        """From base64, with or without the head of a data URL. Raises RequestError for what is none."""
        try:
            return cls.named(base64.b64decode(text.partition(";base64,")[2] or text, validate=True), name)
        except (binascii.Error, ValueError) as error:
            raise malformed(f"image is not base64: {error}; encode the picture file's bytes") from error

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def exists(self) -> bool:
        return True

    def is_file(self) -> bool:
        return True

    def open(self, mode: Literal["rb"] = "rb") -> Any:
        return io.BytesIO(self.body)


def picture_of(upload: Upload, limits: Limits) -> Picture:
    """Decode. Raises InputError for what is no picture, RequestError for one of more pixels than the server takes, which is told
    from its head, before anything is decoded."""
    size = _size_of(upload)
    if size is not None and size[0] * size[1] > limits.pixels:
        raise too_large(f"{upload} is {size[0]}x{size[1]} = {size[0] * size[1] / 1e6:.1f} million pixels, this server takes at "
                        f"most {limits.pixels / 1e6:.4g} million; reduce the picture")  # fmt: skip
    return read_picture(upload, limits.pixels)


def _size_of(upload: Upload) -> tuple[int, int] | None:
    """(width, height) as the file's head says; None where it says nothing that can be read, which reading it will tell."""
    try:
        return open_image(upload.open()).size
    except (
        Exception
    ):  # readers of foreign formats raise whatever the damage leads them to; read_picture says what it is
        return None
