"""Mask files to class numbers: grey PNGs by value, palette PNGs by colour or index, colour PNGs, thresholded pictures.

Nothing is guessed: a value or colour that the class table does not explain is an error that names the file.
"""

from __future__ import annotations

import os
import zlib
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digseg_engine.data.classes import BACKGROUND, IGNORE, UNKNOWN, ClassTable, colour_text, list_text
from digseg_engine.errors import InputError
from digseg_engine.reading import PictureFile, decode, pixel_limit

Ids = NDArray[np.int16]
SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
THRESHOLD = 128  # of 0..255, for pictures whose compression has blurred black and white
PACK = np.array((1 << 16, 1 << 8, 1), np.int64)
MATLAB_HEAD, MATLAB_PACKED = 128, 15  # bytes of a file's head; the mark of a packed part
PIECE = 1 << 20
UNPACK = {"L;2": 85, "L;4": 17}  # Pillow stretches grey of 2 and 4 bits to 0..255


def read_mask(path: PictureFile, table: ClassTable) -> Ids:
    """Class of every pixel, [H, W] int16: 0..C-1, IGNORE (-1) or BACKGROUND (-2).

    Raises InputError naming the file for an unreadable one, an unknown id or colour, or a wrong palette.
    """
    if path.suffix == ".mat":
        return _by_id(_matlab(path), table, path)
    if table.masks == "threshold":
        grey = decode(path, lambda image: np.asarray(image.convert("L")))
        return np.where(grey >= THRESHOLD, 0, BACKGROUND).astype(np.int16)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: class numbers do not survive {path.suffix} files; expected a PNG mask, "
                         'or "masks": "threshold" in classes.json for black and white')  # fmt: skip
    return decode(path, lambda image: _labels(image, table, path))


def _labels(image: Image.Image, table: ClassTable, path: PictureFile) -> Ids:
    if image.mode == "P":
        return _by_palette(image, table, path)
    if image.mode in ("RGB", "RGBA"):
        return _by_colour(image, table, path)
    if image.mode in ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.asarray(image)
        values = values.astype(np.uint8) if values.dtype == np.bool_ else values
        return _by_id(values // UNPACK[packing] if (packing := _packing(path)) in UNPACK else values, table, path)
    raise InputError(f"{path} is a mask of Pillow mode {image.mode}; expected grey (8 or 16 bits), palette or RGB")


def _packing(path: PictureFile) -> str:
    """Pillow's name for how grey values are packed in a file."""
    with path.open("rb") as file, Image.open(file) as image:
        arguments = [piece[3] for piece in image.tile]
    packing = arguments[0] if arguments else ""
    return packing if isinstance(packing, str) else str(packing[0]) if packing else ""


def _by_id(values: NDArray[np.integer[Any]], table: ClassTable, path: PictureFile) -> Ids:
    if values.min() < 0 or values.max() >= len(table.by_id):
        raise InputError(f"{path}: mask values reach {values.min()}..{values.max()}, expected ids from 0 to 65535")
    ids = table.by_id[values]
    if (ids == UNKNOWN).any():
        _refuse_ids(values[ids == UNKNOWN], values.size, table, path)
    return ids


def _refuse_ids(strange: NDArray[np.integer[Any]], pixels: int, table: ClassTable, path: PictureFile) -> None:
    found = np.unique(strange)
    known = sorted(
        {i for label_class in table.classes for i in label_class.ids} | set(table.ignore) | set(table.background)
    )
    raise InputError(f"{path}: unknown id {', '.join(map(str, found[:5]))}{', ...' if len(found) > 5 else ''} "
                     f"({100 * len(strange) / pixels:.1f} % of the pixels); expected {_ranges(known)} as in {table.source}; "
                     f'add the class, or "background": {found[0]} if it is none of them, or "ignore": {found[0]}')  # fmt: skip


def _ranges(values: list[int]) -> str:
    """1, 2, 3, 7 -> "1-3, 7"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _by_palette(image: Image.Image, table: ClassTable, path: PictureFile) -> Ids:
    """A palette PNG. Where classes have colours, the palette's colours decide; otherwise its indexes do."""
    index = np.asarray(image)
    if not table.by_colour:
        return _by_id(index, table, path)
    palette = np.asarray(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
    meaning = np.full(256, UNKNOWN, np.int16)
    for i in np.unique(index):
        colour = int((palette[i] * PACK).sum()) if i < len(palette) else None
        by_colour = table.by_colour.get(colour, UNKNOWN) if colour is not None else UNKNOWN
        by_id = int(table.by_id[i])
        if by_colour == UNKNOWN and by_id in (IGNORE, BACKGROUND):  # these need no colour of their own
            by_colour = by_id
        shown = "no colour" if colour is None else colour_text(colour)
        if by_colour == UNKNOWN:
            cure = f'"background": {i}' + ("" if colour is None else f' or "background_colour": {list_text(colour)}')
            raise InputError(f"{path}: wrong palette: index {i} is {shown}, which is no class's colour in {table.source}; "
                             "save the mask with the data set's palette, give the colour to a class, or, if it is none "
                             f"of the classes, add {cure}")  # fmt: skip
        if table.own_ids and by_id not in (UNKNOWN, by_colour):
            raise InputError(f"{path}: wrong palette: index {i} is {shown}, the colour of {_name(by_colour, table)}, but "
                             f"id {i} is {_name(by_id, table)} in {table.source}; save it with the right palette")  # fmt: skip
        meaning[i] = by_colour
    return meaning[index]


def _name(k: int, table: ClassTable) -> str:
    return {IGNORE: "ignore", BACKGROUND: "background"}.get(k) or repr(table.names[k])


def _by_colour(image: Image.Image, table: ClassTable, path: PictureFile) -> Ids:
    if not table.by_colour:
        raise InputError(f"{path} is a colour mask, but the classes in {table.source} have no colours; expected a grey or "
                         'palette PNG of ids, or give every class a "colour"')  # fmt: skip
    if image.mode == "RGBA" and (np.asarray(image)[..., 3] < 255).any():
        raise InputError(f"{path} is a transparent mask; expected solid colours; save it without transparency")
    pixels = np.asarray(image.convert("RGB")).astype(np.int64).dot(PACK)
    keys = np.array(sorted(table.by_colour), np.int64)
    place = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
    strange = pixels[keys[place] != pixels]
    if strange.size:
        found, count = np.unique(strange, return_counts=True)
        most = int(found[count.argmax()])
        raise InputError(f"{path}: unknown colour {colour_text(most)} and {len(found) - 1} more "
                         f"({100 * strange.size / pixels.size:.1f} % of the pixels); expected the colours in {table.source}; "
                         "masks must be saved without smoothing or compression losses; a colour of no class is named by "
                         f'"background_colour": {list_text(most)}')  # fmt: skip
    return np.array([table.by_colour[int(key)] for key in keys], np.int16)[place]


def _matlab(path: PictureFile) -> NDArray[np.int64]:
    """`LabelMap` of a Pascal Context .mat file."""
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            _check_unpacked(file, str(path))
            file.seek(0)
            return np.asarray(loadmat(file, variable_names=["LabelMap"])["LabelMap"]).astype(np.int64)
    except InputError:
        raise
    except Exception as error:  # a reader of a foreign format raises whatever the damage leads it to
        raise InputError(f"{path} cannot be read: {error}; expected a MATLAB file with LabelMap") from error


def _check_unpacked(file: BinaryIO, name: str) -> None:
    """Raises InputError when the packed parts of a MATLAB file hold more than the largest mask would, before room is made for
    them. They are unpacked here piece by piece and thrown away."""
    most = 8 * pixel_limit()  # bytes: the widest numbers that a map can have
    head = file.read(MATLAB_HEAD)
    order: Literal["little", "big"] = "little" if head[-2:] == b"IM" else "big"
    while len(tag := file.read(8)) == 8:
        kind, size = (int.from_bytes(tag[at : at + 4], order) for at in (0, 4))
        if kind != MATLAB_PACKED:
            file.seek(size, os.SEEK_CUR)
            continue
        unpacked, body, left = zlib.decompressobj(), b"", size
        while left > 0 or body:
            if not body:
                body = file.read(min(left, PIECE))
                left -= len(body)
            if not body:
                return  # cut short: its reader says so
            most -= len(unpacked.decompress(body, PIECE))
            body = unpacked.unconsumed_tail
            if most < 0:
                raise InputError(f"{name} unpacks to more than {pixel_limit() / 1e6:.4g} million pixels; expected a mask; set "
                                 "DIGSEG_MAX_PIXELS higher if it is one")  # fmt: skip
