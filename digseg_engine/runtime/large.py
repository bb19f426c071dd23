"""Windows of pictures too large for memory, read from disk piece by piece.

What can be read that way: `.npy` arrays ([H, W, 3] uint8) and, with the optional `tifffile`, RGB TIFF files of 8 bits, in
strips or tiles, compressed or not (each piece by Pillow; `imagecodecs` reads the compressions that Pillow does not), turned as
their orientation says. Other files are decoded whole, within the limit of `reading.py`.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from digseg_engine.errors import InputError
from digseg_engine.images import MIN_SIDE, Rgb, as_picture
from digseg_engine.reading import pixel_limit

HOW = "save it as an RGB TIFF in tiles or as a NumPy array (.npy, uint8 [H, W, 3])"
SEGMENT_BYTES = 256 << 20  # a strip or tile that is larger is not decoded as a piece
# Bits, compression, photometric, fill order, bands, planes, predictor, JPEG tables, subsampling, reference values.
SEGMENT_TAGS = (258, 259, 262, 266, 277, 284, 317, 347, 529, 530, 531, 532)
RGB, YCBCR, JPEG = 2, 6, 7  # photometric 2 and 6, compression 7
CACHE_BYTES = 256 << 20  # of decoded strips and tiles kept: a row of tiles is read again for the row of windows below


class Windows(Protocol):
    """A picture of `shape` (H, W) that gives windows of itself."""

    shape: tuple[int, int]

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        """[height, width, 3] uint8; rows and columns past the border repeat the last one."""

    def close(self) -> None: ...


class InMemory:
    """A picture that is in memory as a whole (or a memory-mapped array given by the caller)."""

    def __init__(self, rgb: Rgb, notes: tuple[str, ...] = ()) -> None:
        self.rgb, self.notes = rgb, notes
        self.shape = (int(rgb.shape[0]), int(rgb.shape[1]))

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        return extended(np.asarray(self.rgb[top : top + height, left : left + width]), height, width)

    def close(self) -> None:
        return


class RawFile:
    """Rows of uint8 RGB at fixed places of a file. Reads only the bytes of a window."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, int]) -> None:
        self.shape, self._path, self._offset = shape, path, offset
        self._file: BinaryIO = path.open("rb", buffering=0)
        if os.fstat(self._file.fileno()).st_size < offset + shape[0] * shape[1] * 3:
            self._file.close()
            raise InputError(f"{path} is cut short: {shape[1]}x{shape[0]} RGB pixels expected after byte {offset}; "
                             "save it again")  # fmt: skip

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        rows, columns = min(height, self.shape[0] - top), min(width, self.shape[1] - left)
        window = np.empty((rows, columns, 3), np.uint8)
        try:
            for i in range(rows):
                self._file.seek(self._offset + ((top + i) * self.shape[1] + left) * 3)
                window[i] = np.frombuffer(self._file.read(columns * 3), np.uint8).reshape(columns, 3)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._path} cannot be read on: {error}; is it being changed?") from error
        return extended(window, height, width)

    def close(self) -> None:
        self._file.close()


class SegmentedTiff:
    """A TIFF page in strips or tiles, each decoded when a window needs it."""

    def __init__(self, path: Path, file: Any, page: Any) -> None:
        self.shape = (int(page.imagelength), int(page.imagewidth))
        self._path, self._file, self._page = path, file, page
        tiled = page.is_tiled
        self._step = (int(page.tilelength), int(page.tilewidth)) if tiled else (int(page.rowsperstrip), self.shape[1])
        self._columns = -(-self.shape[1] // self._step[1])
        self._known: OrderedDict[int, Rgb] = OrderedDict()

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        bottom, right = min(top + height, self.shape[0]), min(left + width, self.shape[1])
        window = np.empty((bottom - top, right - left, 3), np.uint8)
        down, across = self._step
        for row in range(top // down, -(-bottom // down)):
            for column in range(left // across, -(-right // across)):
                piece = self._piece(row * self._columns + column)
                y, x = row * down, column * across
                y0, x0 = max(top, y), max(left, x)
                y1, x1 = min(bottom, y + piece.shape[0]), min(right, x + piece.shape[1])
                window[y0 - top : y1 - top, x0 - left : x1 - left] = piece[y0 - y : y1 - y, x0 - x : x1 - x]
        return extended(window, height, width)

    def _piece(self, index: int) -> Rgb:
        if index in self._known:
            self._known.move_to_end(index)
            return self._known[index]
        try:
            self._file.filehandle.seek(self._page.dataoffsets[index])
            data = self._file.filehandle.read(self._page.databytecounts[index])
            piece = self._decoded(data, index)
        except Exception as error:  # decoders of foreign formats raise whatever the damage leads them to
            raise InputError(f"{self._path}: strip or tile {index} cannot be decoded: {error}; the file is damaged, or "
                             "pip install imagecodecs for its compression") from error  # fmt: skip
        self._known[index] = piece
        while len(self._known) > 1 and sum(p.nbytes for p in self._known.values()) > CACHE_BYTES:
            self._known.popitem(last=False)
        return piece

    def _decoded(self, data: bytes, index: int) -> Rgb:
        """A strip or tile as it is decoded with the whole picture: by Pillow, else by tifffile, which asks imagecodecs."""
        rows = min(self._step[0], self.shape[0] - index // self._columns * self._step[0])
        size = (rows if not self._page.is_tiled else self._step[0], self._step[1])
        try:
            return segment_by_pillow(
                data, size, {tag.code: tag.value for tag in self._page.tags if tag.code in SEGMENT_TAGS}
            )
        except Exception:
            if int(self._page.photometric) == YCBCR and self._page.compression != JPEG:
                raise  # tifffile would give its values as if they were red, green and blue
            decoded = self._page.decode(data, index, jpegtables=self._page.jpegtables)[0]
            return np.ascontiguousarray(decoded[0][..., :3], np.uint8)

    def close(self) -> None:
        self._file.close()


def segment_by_pillow(data: bytes, size: tuple[int, int], tags: Mapping[int, Any]) -> Rgb:
    """One strip or tile of (height, width), [height, width, 3]: as the only strip of a TIFF of its own, with the picture's
    `tags` that say how it is stored. Raises what Pillow raises."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for code, value in tags.items():
        directory[code] = int(value) if isinstance(value, int) else value
    directory[256], directory[257], directory[278] = size[1], size[0], size[0]
    directory[273], directory[279] = 0, len(data)  # Pillow counts the place from the end of the directory
    body = b"II*\0\x08\0\0\0" + directory.tobytes(8) + data
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(body))
    return np.asarray(image.convert("RGB"))


class Turned:
    """Windows of a picture that is stored otherwise than it is to be seen: EXIF orientation 2 to 8."""

    def __init__(self, stored: Windows, orientation: int) -> None:
        self.stored, self.orientation = stored, orientation
        height, width = stored.shape
        self.swapped = orientation >= 5
        self.shape = (width, height) if self.swapped else (height, width)

    def read(self, top: int, left: int, height: int, width: int) -> Rgb:
        rows, columns = min(height, self.shape[0] - top), min(width, self.shape[1] - left)
        y, x, h, w = (left, top, columns, rows) if self.swapped else (top, left, rows, columns)
        down, across = self.orientation in (3, 4, 7, 8), self.orientation in (2, 3, 6, 7)
        if self.swapped:  # flips are of the shown axes; the stored ones are transposed
            down, across = across, down
        y = self.stored.shape[0] - y - h if down else y
        x = self.stored.shape[1] - x - w if across else x
        window = self.stored.read(y, x, h, w)[:: -1 if down else 1, :: -1 if across else 1]
        upright = window.transpose(1, 0, 2) if self.swapped else window
        return extended(np.ascontiguousarray(upright), height, width)

    def close(self) -> None:
        self.stored.close()


def open_windows(image: object) -> Windows:
    """A path, picture or array as windows. Raises InputError for what can neither be streamed nor decoded whole."""
    if isinstance(image, (str, Path)):
        path = Path(image)
        pieces = _pieces(path) if path.is_file() else None
        return pieces if pieces is not None else _whole(path)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        _check_side(image.shape[0], image.shape[1], "image")
        return InMemory(image)
    picture = as_picture(image)
    return InMemory(picture.pixels, picture.notes)


def _whole(path: Path) -> InMemory:
    try:
        picture = as_picture(path)
    except InputError as error:
        if "million pixels" not in str(error):
            raise
        raise InputError(f"{path} has more than {pixel_limit() / 1e6:.4g} million pixels and must be decoded whole; {HOW}; "
                         "TIFF needs pip install tifffile imagecodecs; or set DIGSEG_MAX_PIXELS higher") from error  # fmt: skip
    return InMemory(picture.pixels, picture.notes)


def _pieces(path: Path) -> Windows | None:
    """The file as windows read from disk, or None when it is of another kind."""
    if path.suffix.lower() == ".npy":
        return _npy(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        return _tiff(path)
    return None


def _npy(path: Path) -> RawFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is read as Python: it raises what that leads to
        raise InputError(f"{path} cannot be read as a NumPy array: {' '.join(str(error).split())}; {HOW}") from error
    if not isinstance(array, np.memmap):
        raise InputError(f"{path} holds several arrays; expected one, uint8 [H, W, 3]; {HOW}")
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not array.flags.c_contiguous:
        raise InputError(f"{path} holds {array.dtype} {list(shape)}; expected uint8 [H, W, 3] in C order; {HOW}")
    _check_side(shape[0], shape[1], str(path))
    return RawFile(path, int(array.offset), (int(shape[0]), int(shape[1])))


def _tiff(path: Path) -> Windows | None:
    try:
        import tifffile
    except ImportError:
        return None
    file = None
    try:
        file = tifffile.TiffFile(path)
        windows = _windows_of(path, file)
    except InputError:
        raise
    except Exception:  # the ordinary decoder says what is wrong with it
        windows = None
    if file is not None and not isinstance(getattr(windows, "stored", windows), SegmentedTiff):
        file.close()
    return windows


def _windows_of(path: Path, file: Any) -> Windows | None:
    page = file.pages[0]
    shape = tuple(page.shape)
    fits = page.dtype == np.uint8 and page.planarconfig == 1 and len(shape) == 3 and shape[2] == 3
    if not fits or int(page.photometric) not in (RGB, YCBCR):
        return None
    orientation = page.tags.get(274)
    turn = int(orientation.value) if orientation is not None else 1
    _check_side(shape[0], shape[1], str(path))
    windows: Windows
    if page.is_contiguous and page.compression == 1 and int(page.photometric) == RGB:
        windows = RawFile(path, int(page.dataoffsets[0]), (int(shape[0]), int(shape[1])))
    else:
        windows = SegmentedTiff(path, file, page)
        step = windows._step
        if step[0] * step[1] * 3 > SEGMENT_BYTES:
            return None
        try:
            windows.read(0, 0, 1, 1)
        except InputError as error:
            if shape[0] * shape[1] <= pixel_limit():
                return None
            raise InputError(f"{path} is compressed with {page.compression.name}, which neither Pillow nor tifffile alone "
                             "reads in pieces; pip install imagecodecs") from error  # fmt: skip
    return Turned(windows, turn) if 2 <= turn <= 8 else windows


def _check_side(height: int, width: int, name: str) -> None:
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"{name} is {width}x{height} pixels; expected at least {MIN_SIDE}x{MIN_SIDE}; use a larger picture"
        )


def extended(window: NDArray[np.uint8], height: int, width: int) -> Rgb:
    """The window repeated at its right and lower border up to height x width."""
    down, right = height - window.shape[0], width - window.shape[1]
    if not down and not right:
        return window
    return np.pad(window, ((0, down), (0, right), (0, 0)), mode="edge")
