"""Results as JSON: the record of `digseg.result/1`, and each mask in the form that was asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digseg_engine.runtime.result import Segmentation
from digseg_engine.runtime.rle import encode
from digseg_engine.serving.polygons import polygons

QUICK = 1  # PNG compression level


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=QUICK)
    return file.getvalue()


def mask_png(mask: NDArray[np.bool_]) -> str:
    """Grey PNG as base64, 255 inside, 0 outside."""
    return base64.b64encode(png(Image.fromarray(mask.view(np.uint8) * np.uint8(255)))).decode("ascii")


FORMS: dict[str, Callable[[NDArray[np.bool_]], Any]] = {"rle": encode, "png": mask_png, "polygons": polygons}
OUTPUTS = (*FORMS, "none")


def answer(result: Segmentation, output: str) -> dict[str, Any]:
    """The record, with the mask of every prompt under the name of its form; None where a mask is empty."""
    body = result.as_dict()
    form = FORMS.get(output)
    if form is not None:
        for k, each in enumerate(body["masks"]):
            each[output] = form(result.mask(k)) if each["pixels"] else None
    return {**body, "output": output}
