"""Windows of pictures too large for memory, read from disk row by row.

What can be read that way: `.npy` arrays and uncompressed TIFF files ([H, W, 3] uint8; TIFF needs the optional `tifffile`).
Other formats (PNG, JPEG, compressed TIFF) are decoded whole, within the size limit of `images.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import InputError
from digseg_engine.images import MAX_PIXELS, MIN_SIDE, Rgb, as_rgb

HOW = "save it as an uncompressed RGB TIFF or as a NumPy array (.npy, uint8 [H, W, 3])"


class Windows(Protocol):
    """A picture of `shape` (H, W) that gives windows of itself."""

    shape: tuple[int, int]

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        """[height, width, 3] uint8; rows and columns past the border repeat the last one."""

    def close(self) -> None: ...


class InMemory:
    """A picture that is in memory as a whole (or a memory-mapped array given by the caller)."""

    def __init__(self, rgb: Rgb) -> None:
        self.rgb = rgb
        self.shape = (int(rgb.shape[0]), int(rgb.shape[1]))

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        return _extended(np.asarray(self.rgb[top : top + height, left : left + width]), height, width)

    def close(self) -> None:
        return


class RawFile:
    """Rows of uint8 RGB at fixed places of a file. Reads only the bytes of a window."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._offset = offset
        self._file: BinaryIO = path.open("rb", buffering=0)
        if os.fstat(self._file.fileno()).st_size < offset + shape[0] * shape[1] * 3:
            self._file.close()
            raise InputError(f"{path} is cut short: {shape[1]}x{shape[0]} RGB pixels expected after byte {offset}; "
                             "save it again")  # fmt: skip

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        rows, columns = min(height, self.shape[0] - top), min(width, self.shape[1] - left)
        window = np.empty((rows, columns, 3), np.uint8)
        for i in range(rows):
            self._file.seek(self._offset + ((top + i) * self.shape[1] + left) * 3)
            window[i] = np.frombuffer(self._file.read(columns * 3), np.uint8).reshape(columns, 3)
        return _extended(window, height, width)

    def close(self) -> None:
        self._file.close()


def open_windows(image: object) -> Windows:
    """A path, picture or array as windows. Raises InputError for what can neither be streamed nor decoded whole."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        raw = _raw(path) if path.is_file() else None
        return raw if raw is not None else InMemory(_whole(path))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        _check_side(image.shape[0], image.shape[1], "image")
        return InMemory(image)
    return InMemory(as_rgb(image))


def _whole(path: Path) -> Rgb:
    try:
        return as_rgb(path)
    except InputError as error:
        if "million pixels" not in str(error):
            raise
        raise InputError(f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels and its format must be decoded "
                         f"whole; {HOW}; TIFF also needs pip install tifffile") from error  # fmt: skip


def _raw(path: Path) -> RawFile | None:
    """The file as raw rows, or None when it is of another kind."""
    if path.suffix.lower() == ".npy":
        return _npy(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        return _tiff(path)
    return None


def _npy(path: Path) -> RawFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a NumPy array: {error}; {HOW}") from error
    shape = array.shape
    plain = isinstance(array, np.memmap) and array.flags.c_contiguous
    if array.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not plain:
        raise InputError(f"{path} holds {array.dtype} {list(shape)}; expected uint8 [H, W, 3] in C order; {HOW}")
    _check_side(shape[0], shape[1], str(path))
    return RawFile(path, int(array.offset), (int(shape[0]), int(shape[1])))


def _tiff(path: Path) -> RawFile | None:
    try:
        import tifffile
    except ImportError:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            shape, kind = tuple(page.shape), page.dtype
            raw = page.is_contiguous and page.compression == 1 and page.planarconfig == 1 and page.photometric == 2
            offset = int(page.dataoffsets[0])
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return None  # the ordinary decoder says what is wrong with it
    if not raw or kind != np.uint8 or len(shape) != 3 or shape[2] != 3:
        return None
    _check_side(shape[0], shape[1], str(path))
    return RawFile(path, offset, (int(shape[0]), int(shape[1])))


def _check_side(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"{name} is {width}x{height} pixels; expected at least {MIN_SIDE}x{MIN_SIDE}; use a larger picture"
        )


def _extended(window: NDArray[np.uint8], height: int, width: int) -> Rgb:
    down, right = height - window.shape[0], width - window.shape[1]
    if not down and not right:
        return window
    return np.pad(window, ((0, down), (0, right), (0, 0)), mode="edge")
