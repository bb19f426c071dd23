"""PyTorch straight from a checkpoint, eager or compiled; on an NVIDIA GPU with the Triton kernels, else on the CPU.

float32, or half precision on a GPU. There, shapes that come again are replayed as CUDA graphs ($DIGSEG_CUDA_GRAPHS=0 turns
that off) and arrays travel through pinned memory. The checkpoint of a directory is loaded once per process and shared by
the backends. Nothing of this was run by us on a GPU yet.
"""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError, DigsegError
from digseg_engine.extras import install_line
from digseg_engine.runtime.backends import Array, TokenMask, Tokens, Usable
from digseg_engine.runtime.backends.cuda_graphs import Replayed
from digseg_engine.runtime.machine import cores

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source

NAMES = ("torch", "torch-compile", "torch-fp16")
DEVICE_VARIABLE, GRAPHS_VARIABLE = "DIGSEG_DEVICE", "DIGSEG_CUDA_GRAPHS"


def probe(name: str = "torch") -> Usable:
    """Run (and for `torch-compile` compile) one operation on the device that would be used."""
    try:
        import diffusers
        import torch
    except ImportError as error:
        return Usable(name, False, "", f"not installed ({error})", install_line("train"))
    try:
        where = device()
        if name == "torch-fp16" and where.type != "cuda":
            return Usable(
                name, False, "", f"half precision is for a GPU, and torch would run on {where}", "an NVIDIA GPU"
            )
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


def set_threads(wanted: int | None) -> None:
    """Let PyTorch use so many threads on the CPU, in this whole process. None: as many as now, but no more than this
    process has cores (PyTorch does not see a container's quota)."""
    import torch

    torch.set_num_threads(wanted or min(torch.get_num_threads(), cores()))


@lru_cache(maxsize=2)
def checkpoint_at(folder: Path) -> Any:
    """The checkpoint of a directory, loaded once. Raises BackendError without torch, CheckpointError when broken."""
    try:
        from digseg_engine.model.pretrained import load_checkpoint
    except ImportError as error:
        raise BackendError(f"a checkpoint needs PyTorch: {error}; install it with {install_line('train')}") from error
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
        if self.device.type == "cpu":
            set_threads(source.threads)
        self.fixed_shapes = name == "torch-compile"
        parts = stages(self.checkpoint)
        self._dtype = torch.float16 if name == "torch-fp16" else torch.float32
        if self.device.type != "cpu":  # the shared checkpoint stays where it is
            parts = copy.deepcopy(parts)
        self._text = parts.text_encoder.to(self.device)
        half = self._dtype is torch.float16  # the text graph shares the student, and stays float32
        self._segmenter = (copy.deepcopy(parts.segmenter) if half else parts.segmenter).to(self.device, self._dtype)
        on_gpu = self.device.type == "cuda"
        kernels = self._fuse() if on_gpu else ""
        self._run: Any = torch.compile(self._segmenter) if self.fixed_shapes else self._segmenter
        graphs = on_gpu and os.environ.get(GRAPHS_VARIABLE, "1") != "0"
        if graphs:
            self._run = Replayed(self._run)
        self._one_at_a_time = Lock() if self.fixed_shapes or graphs else None  # neither is thread-safe
        precision = "fp16" if half else "fp32"
        self.detail = (
            f"{name} {torch.__version__}, {self._device_name()}, {precision}{kernels}{', CUDA graphs' * graphs}"
        )

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
        return self._back(self.segment_tensor(self._there(image), keys, values, token_mask))

    def segment_tensor(self, image: Any, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        """As `segment`, with the image and the logits as torch tensors on this backend's device: nothing is copied."""
        try:
            text = [self._there(array).to(self._dtype) for array in (keys, values)]
            given = (image.to(self.device, self._dtype), *text, self._there(token_mask))
            with self._torch.inference_mode(), self._one_at_a_time or nullcontext():
                return self._run(*given).float()
        except DigsegError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BackendError(f"{self.name} failed on a picture of shape {list(image.shape)} with {len(keys)} prompts: "
                               f"{first}; try another --backend") from error  # fmt: skip

    def _there(self, array: Array) -> Any:
        tensor = self._torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _back(self, logits: Any) -> NDArray[np.float32]:
        """A tensor as an array; from a GPU through pinned memory."""
        if self.device.type == "cuda":
            pinned = self._torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            pinned.copy_(logits, non_blocking=True)
            self._torch.cuda.current_stream(self.device).synchronize()
            logits = pinned
        array: NDArray[np.float32] = logits.cpu().numpy()
        return array
