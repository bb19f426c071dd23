"""PyTorch straight from a checkpoint, eager or compiled; on an NVIDIA GPU with the Triton kernels, else on the CPU.

Everything is float32. The checkpoint of a directory is loaded once per process and shared by the backends.
"""

from __future__ import annotations

import copy
import os
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError, DigsegError
from digseg_engine.runtime.backends import Array, TokenMask, Tokens, Usable

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source

NAMES = ("torch", "torch-compile")
INSTALL = 'pip install "digseg-engine[train]"'
DEVICE_VARIABLE = "DIGSEG_DEVICE"


def probe(name: str = "torch") -> Usable:
    """Run (and for `torch-compile` compile) one operation on the device that would be used."""
    try:
        import diffusers
        import torch
    except ImportError as error:
        return Usable(name, False, "", f"not installed ({error})", INSTALL)
    try:
        where = device()
        run = torch.compile(_double) if name == "torch-compile" else _double
        with torch.inference_mode():
            if float(run(torch.ones(2, device=where)).sum()) != 4:
                raise BackendError("1 + 1 is not 2 on this device")
    except Exception as error:
        fix = "a C++ compiler (apt install g++)" if name == "torch-compile" else "a working PyTorch"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Usable(name, False, "", f"one operation failed: {first}", fix)
    return Usable(name, True, f"torch {torch.__version__}, diffusers {diffusers.__version__}, {where}")


def _double(x: Any) -> Any:
    return x + x


def device() -> Any:
    """$DIGSEG_DEVICE when set, else the first CUDA device, else the CPU. Raises BackendError when it is not there."""
    import torch

    name = os.environ.get(DEVICE_VARIABLE) or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BackendError(f"${DEVICE_VARIABLE} asks for {name!r}, which cannot be used: {error}; "
                           "unset it for automatic choice") from error  # fmt: skip
    return torch.device(name)


@lru_cache(maxsize=2)
def checkpoint_at(folder: Path) -> Any:
    """The checkpoint of a directory, loaded once. Raises BackendError without torch, CheckpointError when broken."""
    try:
        from digseg_engine.model.pretrained import load_checkpoint
    except ImportError as error:
        raise BackendError(f"a checkpoint needs PyTorch: {error}; install it with {INSTALL}") from error
    return load_checkpoint(folder)


def sizes(folder: Path) -> tuple[int, int]:
    """(image size, stride) of a checkpoint."""
    loaded = checkpoint_at(folder)
    return int(loaded.config.image_size), int(loaded.stride)


def golden_arrays(folder: Path) -> tuple[Array, Array, Array, NDArray[np.float32]]:
    """image, token_ids, token_mask, logits of a fixed drawing and three prompts, by plain PyTorch on the CPU."""
    import torch

    from digseg_engine.model.stages import stages

    loaded = checkpoint_at(folder)
    side = loaded.config.image_size
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    disc = ((y - 0.4) ** 2 + (x - 0.6) ** 2 < 0.06) * 1.5
    image = np.stack([x - 0.5 + disc, y - 0.5 - 0.3 * disc, np.sin(20 * x) * 0.5]).clip(-1, 1)[None].astype(np.float32)
    ids, mask = loaded.tokenizer.encode(["red circle", "a tree", "water"])
    parts = stages(loaded)
    with torch.inference_mode():
        keys, values = parts.text_encoder(torch.from_numpy(ids), torch.from_numpy(mask))
        logits = parts.segmenter(torch.from_numpy(image), keys, values, torch.from_numpy(mask))
    return image, ids, mask, logits.numpy()


class TorchBackend:
    """Both stages of a checkpoint as PyTorch modules; numpy in and out, or tensors with `segment_tensor`."""

    def __init__(self, source: Source, name: str = "torch") -> None:
        folder = source.need_checkpoint(f"backend {name}")
        self.checkpoint = checkpoint_at(folder)
        import torch

        from digseg_engine.model.stages import stages

        self._torch, self.name, self.device = torch, name, device()
        self.fixed_shapes = name == "torch-compile"
        parts = stages(self.checkpoint)
        if self.device.type != "cpu":  # the shared checkpoint stays where it is
            parts = copy.deepcopy(parts)
        self._text = parts.text_encoder.to(self.device)
        self._segmenter = parts.segmenter.to(self.device)
        kernels = self._fuse() if self.device.type == "cuda" else ""
        self._run = torch.compile(self._segmenter) if self.fixed_shapes else self._segmenter
        self._one_at_a_time = Lock() if self.fixed_shapes else None  # compiling is not thread-safe
        self.detail = f"{name} {torch.__version__}, {self._device_name()}, fp32{kernels}"

    def _fuse(self) -> str:
        from digseg_triton.fusing import fuse

        return f", {fuse(self._segmenter)}"

    def _device_name(self) -> str:
        return self._torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    def encode_text(self, token_ids: Tokens, token_mask: TokenMask) -> tuple[Array, Array]:
        with self._torch.inference_mode():
            keys, values = self._text(*(self._there(array) for array in (token_ids, token_mask)))
        return keys.cpu().numpy(), values.cpu().numpy()

    def segment(self, image: Array, keys: Array, values: Array, token_mask: TokenMask) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.segment_tensor(self._there(image), keys, values, token_mask).cpu().numpy()
        return logits

    def segment_tensor(self, image: Any, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        """As `segment`, with the image and the logits as torch tensors on this backend's device: nothing is copied."""
        text = [self._there(array) for array in (keys, values, token_mask)]
        try:
            with self._torch.inference_mode():
                if self._one_at_a_time is None:
                    return self._run(image.to(self.device), *text)
                with self._one_at_a_time:
                    return self._run(image.to(self.device), *text)
        except DigsegError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BackendError(f"{self.name} failed on a picture of shape {list(image.shape)} with {len(keys)} prompts: "
                               f"{first}; try another --backend") from error  # fmt: skip

    def _there(self, array: Array) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
