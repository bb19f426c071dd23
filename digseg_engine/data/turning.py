"""Pictures that cameras store turned (EXIF orientation 2 to 8), and the masks drawn for them.

A picture is read upright. Its mask may have been drawn on the upright picture or on the pixels as stored; where their
sizes tell the two apart the size decides, otherwise the data set has to say it ("orientation" in classes.json).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.classes import ClassTable
from digseg_engine.errors import DigsegError, InputError
from digseg_engine.images import read_image
from digseg_engine.reading import PictureFile, open_image, orientation_of

UPRIGHT = 1
SIDEWAYS = (5, 6, 7, 8)  # width and height change places


def turn_of(path: PictureFile) -> int:
    """EXIF orientation 1 to 8 of a picture file; 1 where there is none that can be read."""
    try:
        with path.open("rb") as file:
            return orientation_of(open_image(file))
    except (OSError, DigsegError):  # no picture: whether it can be read is its reader's to say
        return UPRIGHT


def shown_shape(path: PictureFile) -> tuple[int, int]:
    """(height, width) of a picture file as it is shown, from its header. Raises InputError naming an unreadable file."""
    try:
        with path.open("rb") as file:
            image = open_image(file)
            (width, height), turns = image.size, image.format != "TIFF"  # Pillow turns a TIFF, its size too
            sideways = turns and orientation_of(image) in SIDEWAYS
    except Exception:
        height, width = read_image(path).shape[:2]  # which says what is wrong with it
        return height, width
    return (width, height) if sideways else (height, width)


def turned(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Stored pixels [H, W, ...] as they are shown."""
    if orientation in SIDEWAYS:
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def upright_mask(
    ids: NDArray[Any], shown: tuple[int, int], picture: PictureFile, mask: PictureFile, table: ClassTable
) -> NDArray[Any]:
    """The mask of a picture shown at (height, width), turned as the picture is if it was drawn on the stored pixels.

    Raises InputError naming both files where nothing tells how the mask was drawn.
    """
    own = turn_of(mask)
    if own != UPRIGHT:  # it says itself how it is shown; Pillow has turned a TIFF already
        return ids if mask.suffix.lower() in (".tif", ".tiff") else turned(ids, own)
    orientation = turn_of(picture)
    if orientation == UPRIGHT:
        return ids
    stored = shown[::-1] if orientation in SIDEWAYS else shown
    if table.orientation:
        return turned(ids, orientation) if table.orientation == "stored" else ids
    if stored != shown:
        return turned(ids, orientation) if ids.shape == stored else ids
    if (ids == ids.flat[0]).all():  # one label everywhere looks the same from all sides
        return ids
    raise InputError(f"{picture} is stored turned (EXIF orientation {orientation}) and the size of {mask} does not tell how it "
                     f'was drawn; add "orientation": "shown" to {table.source} if on the upright picture, "stored" if on the '
                     "pixels of the file")  # fmt: skip
