"""Pictures in, model-sized arrays out, and logits back to the picture's own pixels. Pillow and NumPy only.

A picture is decoded to 8-bit RGB as a person sees it: EXIF rotation applied, alpha composited over white, CMYK, grey,
palette and 16-bit converted. Its longer side is resized to the working size, the rest padded to the model's stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digseg_engine.errors import InputError
from digseg_engine.reading import FORMATS, MAX_PIXELS, MIN_SIDE, SUFFIXES, PictureFile, Rgb, check_size, decode, to_rgb

__all__ = ["FORMATS", "MAX_PIXELS", "MIN_SIDE", "SUFFIXES", "Canvas", "Float", "Frame", "Picture", "Rgb", "as_picture",
           "as_rgb", "check_size", "decode", "fit", "fitted_size", "host_view", "read_image", "read_picture", "to_rgb", "unfit",
           "unfit_plane"]  # fmt: skip

Float = NDArray[np.float32]
SQUEEZED = 3  # times larger than it was worked at: from there on a result gives a hint


@dataclass(frozen=True)
class Picture:
    """A decoded picture: pixels [H, W, 3] uint8 RGB, what its reading leaves to be said, and its file's path."""

    pixels: Rgb
    notes: tuple[str, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class Frame:
    """How a picture lies in the model's pixels; each is (height, width)."""

    working: tuple[int, int]  # the model's pixels, padding included
    content: tuple[int, int]  # the part that is not padding, at the top left
    original: tuple[int, int]  # the picture as given

    @property
    def squeezed(self) -> bool:
        """Whether the picture was reduced so far that small things in it could not be seen."""
        return max(self.original) >= SQUEEZED * max(self.content)


@dataclass(frozen=True)
class Canvas:
    """A picture fitted for the model. `content` (height, width) is the part of `pixels` that is not padding."""

    pixels: Float  # [1, 3, H, W] in -1..1
    content: tuple[int, int]
    original: tuple[int, int]  # height, width of the picture as given

    @property
    def frame(self) -> Frame:
        return Frame((self.pixels.shape[2], self.pixels.shape[3]), self.content, self.original)


def read_image(path: PictureFile | str, max_pixels: int | None = None) -> Rgb:
    """Decode a picture file to [H, W, 3] uint8 RGB. max_pixels: refuse more (default: `reading.pixel_limit`). Raises
    InputError naming the file and what is wrong with it."""
    return read_picture(path, max_pixels).pixels


def read_picture(path: PictureFile | str, max_pixels: int | None = None) -> Picture:
    """As `read_image`, with notes on what was left unread or is doubtful."""
    notes: list[str] = []
    pixels = decode(Path(path) if isinstance(path, str) else path, lambda image: to_rgb(image, notes), max_pixels)
    return Picture(pixels, tuple(notes), str(path))


def as_rgb(image: object, name: str = "image") -> Rgb:
    """A path, a Pillow picture, an array or DLPack tensor [H, W, 3] uint8 -> [H, W, 3] uint8 RGB; arrays and tensors are
    not copied. Raises InputError otherwise."""
    if isinstance(image, (str, Path, Image.Image)):
        return as_picture(image, name).pixels
    if not isinstance(image, np.ndarray) and hasattr(image, "__dlpack__"):
        image = host_view(image, name)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        check_size(image.shape[0], image.shape[1], name)
        return image
    got = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise InputError(
        f"{name} must be a path, a Pillow picture or a uint8 array [height, width, 3], got {got}; convert it first"
    )


def as_picture(image: object, name: str = "image") -> Picture:
    """What `as_rgb` takes, with notes on its reading; a Picture is given back as it is."""
    if isinstance(image, Picture):
        return image
    if isinstance(image, (str, Path)):
        return read_picture(image)
    if isinstance(image, Image.Image):
        check_size(image.height, image.width, name)
        notes: list[str] = []
        return Picture(to_rgb(image, notes), tuple(notes))
    return Picture(as_rgb(image, name))


def host_view(tensor: Any, name: str) -> NDArray[Any]:
    """A NumPy view of a DLPack tensor, nothing copied. Raises InputError when it is not in host memory."""
    try:
        view: NDArray[Any] = np.from_dlpack(tensor)
    except Exception as error:
        raise InputError(f"{name} is a {type(tensor).__name__} that cannot be read in host memory: {error}; "
                         "move it to the CPU, or give `Engine.logits` the model's own pixels") from error  # fmt: skip
    return view


def fitted_size(height: int, width: int, longer: int) -> tuple[int, int]:
    """(height, width) with the longer side at `longer`, proportions kept, at least 1 pixel."""
    scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def fit(rgb: Rgb, longer: int, stride: int, least: tuple[int, int] = (0, 0)) -> Canvas:
    """Resize [H, W, 3] so that its longer side is `longer`, pad right and bottom by repetition to the stride, and to `least`
    (height, width)."""
    original = (int(rgb.shape[0]), int(rgb.shape[1]))
    height, width = fitted_size(*original, longer)
    if (height, width) != original:
        rgb = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
    down, right = max(-height % stride, least[0] - height), max(-width % stride, least[1] - width)
    padded = np.pad(rgb, ((0, down), (0, right), (0, 0)), mode="edge")
    pixels = np.ascontiguousarray(padded.transpose(2, 0, 1), np.float32)[None] / np.float32(127.5) - np.float32(1)
    return Canvas(pixels, (height, width), original)


def unfit(logits: Float, canvas: Canvas) -> Float:
    """Logits [K, h', w'] of a canvas -> [K, H, W] at the picture's own size: padding cut, bilinear."""
    return np.stack([unfit_plane(canvas.frame, plane) for plane in logits])


def unfit_plane(frame: Frame, plane: Float, shape: tuple[int, int] | None = None) -> Float:
    """One plane [h', w'] in a frame, at any resolution -> [H, W], or another `shape` (height, width) of the same view."""
    ratio = frame.working[1] / plane.shape[-1]
    box = (0.0, 0.0, frame.content[1] / ratio, frame.content[0] / ratio)
    height, width = shape or frame.original
    full = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(full, np.float32)
