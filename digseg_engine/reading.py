"""Picture files to Pillow pictures to 8-bit RGB as a person sees them. Whatever is wrong with a file is one InputError.

Files are opened through Pillow's own readers one by one, not through `Image.open`: its guard against large pictures is a
global of the process and calls them attacks; the limit here is ours, said as such, and can be raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, TiffImagePlugin, features

from digseg_engine.errors import DigsegError, InputError, UsageError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")
MAX_PIXELS = 64_000_000
MIN_SIDE = 8
LFS_POINTER = b"version https://"  # how the small file begins that Git LFS leaves in place of a large one
ORIENTATION = 0x0112
PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that can hold an orientation
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of the files' first box
LITTLE_USED = 8  # deep values that stay below this part of their range are said: the picture is nearly black

Rgb = NDArray[np.uint8]
Decoded = TypeVar("Decoded")


class PictureFile(Protocol):
    """What pictures are read from: a `Path`, or a file inside another one that does the same. `str` of it names it."""

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    def exists(self) -> bool: ...
    def is_file(self) -> bool: ...
    def open(self, mode: Literal["rb"]) -> Any: ...


def pixel_limit() -> int:
    """The most pixels that are decoded at once: `$DIGSEG_MAX_PIXELS`, else 64 million. Raises UsageError for no number."""
    value = os.environ.get("DIGSEG_MAX_PIXELS", "").strip() or str(MAX_PIXELS)
    try:
        limit = int(float(value))
    except (ValueError, OverflowError):
        limit = 0
    if limit < 1:
        raise UsageError(f"DIGSEG_MAX_PIXELS is {value!r}; expected a number of pixels such as 200e6")
    return limit


def decode(
    path: PictureFile, read: Callable[[Image.Image], Decoded], most: int | None = None, reduce: int = 1
) -> Decoded:
    """Open a picture file and hand the decoded Pillow picture to `read`. Raises InputError naming the file.

    most: pixels that may be decoded (default: `pixel_limit`). reduce: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its
    size, at most 1/`reduce`, which is several times quicker.
    """
    limit = pixel_limit() if most is None else most
    try:
        _check_file(path)
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty (0 bytes); expected a picture ({', '.join(FORMATS)})")
            file.seek(0)
            image = open_image(file)
            check_size(image.height, image.width, str(path), limit)
            if reduce > 1:
                image.draft(image.mode, (image.width // reduce, image.height // reduce))
            image.load()
            return read(image)
    except DigsegError as error:
        if str(path) in str(error):
            raise
        said = str(error)
        raise type(error)(f"{path}{' ' if said.startswith(('is ', 'holds ')) else ': '}{said}") from error
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than there is; work in tiles (--tile 512) or reduce it") from error
    except Exception as error:  # readers of foreign formats raise whatever the damage leads them to
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be decoded: {why}; the file is damaged or cut short, save it again") from error


def _check_file(path: PictureFile) -> None:
    if not path.exists():
        raise InputError(f"{path}: file not found; check the path")
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a picture, a folder or a pattern")


def open_image(file: BinaryIO) -> Image.Image:
    """The Pillow picture of an open file, not decoded yet. Raises InputError when no reader takes it."""
    head = file.read(16)
    if head[4:8] == b"ftyp":
        _need_plugin(head[8:12])
    if not Image.OPEN.keys() >= set(FORMATS[:6]):
        Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(head) is not True):
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except Exception as error:
            file.seek(0)
            if name == "JPEG":  # what went wrong may concern the pictures that follow the first one
                return JpegImagePlugin.JpegImageFile(file, "")
            if name == "TIFF":
                layout = tiff_layout(file)
                raise InputError(f"is a TIFF of a kind not read here ({layout}); convert it to 8-bit RGB") from error
            raise
    if head == LFS_POINTER:
        raise InputError("is a Git LFS pointer, not the picture; fetch the picture: git lfs pull")
    raise InputError(f"is not a picture this program reads; expected one of {', '.join(FORMATS)}")


def _need_plugin(brand: bytes) -> None:
    """Make sure that Pillow reads AVIF or HEIF. Raises InputError saying what to install."""
    if brand in (b"avif", b"avis"):
        if not features.check("avif"):
            raise InputError("is an AVIF picture, and this Pillow was built without AVIF; pip install --upgrade pillow")
        return
    if brand not in HEIF:
        return
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise InputError("is a HEIF or HEIC picture; to read those, pip install pillow-heif") from error
    register_heif_opener()


def tiff_layout(file: BinaryIO) -> str:
    """What a TIFF holds, in words, as far as its tags say it."""
    try:
        head = file.read(8)
        if head[2:4] not in (b"\x2b\0", b"\0\x2b"):
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            bits = tags.get(258, (1,))
            kind = {1: "unsigned", 2: "signed", 3: "float"}.get(tags.get(339, (1,))[0], "other")
            return f"{tags.get(277, 1)} band(s) of {bits[0]} bits, {kind}, photometric {tags.get(262, 'unsaid')}"
    except Exception:  # damaged tags: nothing can be said about them
        return "its tags are damaged"
    return "BigTIFF"


def check_size(height: int, width: int, name: str, most: int | None = None) -> None:
    """Raises InputError for pictures under MIN_SIDE or over the limit, `most` or `pixel_limit()`."""
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"{name} is {width}x{height} pixels; expected at least {MIN_SIDE}x{MIN_SIDE}; use a larger picture"
        )
    limit = pixel_limit() if most is None else most
    if height * width > limit:
        raise InputError(f"{name} is {width}x{height} = {height * width / 1e6:.0f} million pixels, at most "
                         f"{limit / 1e6:.4g} million are decoded at once; set DIGSEG_MAX_PIXELS higher, or work in tiles "
                         "(--tile 512) from an RGB TIFF or .npy file")  # fmt: skip


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the metadata cannot be read."""
    try:
        value = _exif(image).get(ORIENTATION, 1)
    except Exception:  # broken metadata are no reason to refuse the pixels
        return 1
    return value if value in TURNS else 1


def _exif(image: Image.Image) -> Image.Exif:
    """The metadata of a picture. Pillow decodes a PNG whole to find those that may follow its pixels: done if any do."""
    source = getattr(image, "fp", None)
    if image.format == "PNG" and source is not None and "exif" not in image.info and not _says_more_at_end(source):
        return Image.Image.getexif(image)
    return image.getexif()


def _says_more_at_end(file: BinaryIO) -> bool:
    """Does a PNG file hold metadata behind its pixels? Reads the heads of its chunks alone."""
    place, pixels = file.tell(), False
    try:
        file.seek(8)  # behind the signature
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if pixels and head[4:] in PNG_METADATA:
                return True
            pixels = pixels or head[4:] == b"IDAT"
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # the chunk's body and its checksum
        return False
    finally:
        file.seek(place)


def to_rgb(image: Image.Image, notes: list[str] | None = None) -> Rgb:
    """Any Pillow picture to [H, W, 3] uint8 RGB as a person sees it; what is to be said about it is added to `notes`."""
    notes = [] if notes is None else notes
    turn = orientation_of(image)
    frames_note(image, notes)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        image = _from_deep(image, notes)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, image)
    image = image.convert("RGB")
    return np.asarray(image if turn == 1 else image.transpose(TURNS[turn]))


def frames_note(image: Image.Image, notes: list[str]) -> None:
    """Say that there are more pages or frames than the first; the small extra pictures of phone photos are none."""
    try:
        count = int(getattr(image, "n_frames", 1))
    except Exception:  # a broken chain of pages
        return
    if count > 1 and image.format != "MPO":
        notes.append(f"the first of {count} {'pages' if image.format == 'TIFF' else 'frames'} was read")


def _from_deep(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit grey to 8-bit by its full range (0..65535), 32-bit integers too unless they stay within 0..255; floating-point
    grey by 0..1."""
    values = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(_from_float(values, notes))
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(f"grey values reach {low}..{high}, expected 0..65535; convert the picture to 8 or 16 bits")
    if image.mode == "I" and high <= 255:
        notes.append("32-bit values stay within 0..255 and are taken as 8-bit ones")
        return Image.fromarray(values.astype(np.uint8))
    if 0 < high < 65536 // LITTLE_USED:
        bits = high.bit_length()
        notes.append(f"grey values reach {high} of 65535 only, so the picture is nearly black; if they are {max(bits, 9)}-bit "
                     f"values, multiply them by {2 ** (16 - max(bits, 9))} first")  # fmt: skip
    table = (np.arange(65536) * (255.0 / 65535.0) + 0.5).astype(np.uint8)
    return Image.fromarray(table[values])


def _from_float(values: NDArray[np.float32], notes: list[str]) -> NDArray[np.uint8]:
    known = np.isfinite(values)
    share = 1 - float(known.mean())
    if share == 1:
        raise InputError("holds no finite number; expected grey values 0..1")
    if share:
        notes.append(f"{100 * share:.2g} % of the values are no finite numbers and are taken as 0")
        values = np.where(known, values, np.float32(0))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise InputError(f"grey values reach {low:g}..{high:g}, expected 0..1; convert the picture to 8 or 16 bits")
    if 0 < high < 1 / LITTLE_USED:
        notes.append(f"grey values reach {high:g} of 1 only, so the picture is nearly black; scale them first")
    return (values * np.float32(255) + np.float32(0.5)).astype(np.uint8)
