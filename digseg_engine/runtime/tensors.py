"""Tensors of other libraries in and out without copies, by DLPack."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from digseg_engine.errors import InputError
from digseg_engine.images import Frame, host_view, unfit_plane
from digseg_engine.runtime.chunks import joined
from digseg_engine.runtime.folded import answer_map
from digseg_engine.runtime.labels import Rules, label
from digseg_engine.runtime.presence import Asker


def map_of(asker: Asker, pixels: Any) -> Any:
    """pixels as for `logits_of` -> the label map that a folded bundle's graph answers, int32 [B, H, W] NumPy array."""
    takes_tensors = hasattr(asker.runner.backend, "decode_tensor") and not isinstance(pixels, np.ndarray)
    given = pixels if takes_tensors or isinstance(pixels, np.ndarray) else host_view(pixels, "pixels")
    _check(tuple(given.shape), str(given.dtype).removeprefix("torch."), asker.stride)
    places, _ = asker.runner.encode(given if takes_tensors else np.ascontiguousarray(given))
    return np.concatenate([answer_map(asker.runner, about, asker.text)[0][0] for about in joined(places)])  # type: ignore[arg-type]


def logits_of(asker: Asker, pixels: Any) -> Any:
    """pixels: NumPy array or any DLPack tensor [B, 3, H, W] float32 in -1..1 -> logits [B, K, h', w'].

    On a backend that takes tensors one stays on its device and the answer is a torch tensor there; only what presence says
    comes to the host. On the others the tensor must be in host memory; it is read in place, and the answer is a NumPy array
    (`torch.from_dlpack` takes it without a copy). Raises InputError for another dtype, shape or device.
    """
    if hasattr(asker.runner.backend, "decode_tensor") and not isinstance(pixels, np.ndarray):
        import torch

        tensor = pixels if isinstance(pixels, torch.Tensor) else torch.from_dlpack(pixels)
        _check(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), asker.stride)
        where = getattr(asker.runner.backend, "device", tensor.device)
        return asker.about_pixels(tensor, where)[0].logits
    array = pixels if isinstance(pixels, np.ndarray) else host_view(pixels, "pixels")
    _check(array.shape, str(array.dtype), asker.stride)
    return asker.about_pixels(np.ascontiguousarray(array))[0].logits


def _check(shape: tuple[int, ...], dtype: str, stride: int) -> None:
    fits = len(shape) == 4 and shape[1] == 3 and shape[2] % stride == 0 and shape[3] % stride == 0 and min(shape) > 0
    if not fits or dtype != "float32":
        raise InputError(f"pixels must be float32 [B, 3, H, W] with sides that are multiples of {stride}, got {dtype} "
                         f"{list(shape)}; use `segment` for pictures of any size")  # fmt: skip


def strongest(logits: Any, shape: tuple[int, int], size: tuple[int, int], rules: Rules) -> Any:
    """Logits [B, K, h', w'] of pixels of `shape`, NumPy array or torch tensor -> label map int32 [B, height, width] of `size`, of
    the same kind and on the same device."""
    if isinstance(logits, np.ndarray):
        frame = Frame(shape, shape, size)
        maps = [label(planes, partial(unfit_plane, frame), size, rules).label_map for planes in logits]
        return np.stack(maps)
    from digseg_triton.mask_argmax import mask_argmax

    return mask_argmax(logits.contiguous(), size, rules.border)[0]
