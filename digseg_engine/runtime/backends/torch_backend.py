"""PyTorch straight from a checkpoint, eager or compiled; on an NVIDIA GPU with the Triton kernels, else on the CPU.

float32, or half precision on a GPU. There, shapes that come again are replayed as CUDA graphs ($DIGSEG_CUDA_GRAPHS=0 turns
that off) and arrays travel through pinned memory. The checkpoint of a directory is loaded once per process and shared by
the backends. Nothing of this was run by us on a GPU yet.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError
from digseg_engine.extras import install_line
from digseg_engine.runtime.backends import Array, TokenMask, Tokens, Usable, failing_as
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


def device(requested: str | None = None) -> Any:
    """The device asked for, else $DIGSEG_DEVICE, else the first CUDA device, else the CPU. Raises BackendError when it is
    not there."""
    import torch

    name = requested or os.environ.get(DEVICE_VARIABLE) or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(name)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        wanted = f"the device {name!r}" if requested else f"${DEVICE_VARIABLE} asks for {name!r}, which"
        raise BackendError(f"{wanted} cannot be used: {error}; leave it out for automatic choice") from error
    return torch.device("cuda", where.index or 0) if where.type == "cuda" else where


@contextmanager
def exact_float32() -> Iterator[None]:
    """Convolutions in true float32 inside, as the other backends compute: PyTorch would take TF32 on newer GPUs."""
    from torch.backends import cudnn

    with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
        yield


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


def cell(folder: Path) -> int:
    """Pixels of one logit of a checkpoint along a side."""
    from digseg_engine.model.autoencoder import latent_stride

    loaded = checkpoint_at(folder)
    return int(latent_stride(loaded.vae)) // int(loaded.config.student.upsample)


def presence_threshold(folder: Path) -> float | None:
    """The presence logit under which a checkpoint's prompts are not there."""
    threshold = checkpoint_at(folder).config.presence_threshold
    return None if threshold is None else float(threshold)


def golden_arrays(folder: Path) -> tuple[Array, Array, Array, NDArray[np.float32], NDArray[np.float32] | None]:
    """image, token_ids, token_mask, logits, presence of a fixed drawing and three prompts, by plain PyTorch on the CPU."""
    import torch

    from digseg_engine.model.graph_modules import graph_modules

    loaded = checkpoint_at(folder)
    side = loaded.config.image_size
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    disc = ((y - 0.4) ** 2 + (x - 0.6) ** 2 < 0.06) * 1.5
    image = np.stack([x - 0.5 + disc, y - 0.5 - 0.3 * disc, np.sin(20 * x) * 0.5]).clip(-1, 1)[None].astype(np.float32)
    ids, mask = loaded.tokenizer.encode(["red circle", "a tree", "water"])
    parts = graph_modules(loaded)
    with torch.inference_mode():
        encoding = parts.image_encoder(torch.from_numpy(image))
        live = torch.from_numpy(mask)
        text = (*parts.text_encoder(torch.from_numpy(ids), live), live)
        logits = parts.mask_decoder(encoding, *text).numpy()
        presence = None if parts.presence is None else parts.presence(encoding, *text).numpy()
    return image, ids, mask, logits, presence


@dataclass(frozen=True)
class Held:
    """Encoded pictures on this backend's device, and the event behind which they are ready (None on a CPU)."""

    tensor: Any
    ready: Any = None

    @property
    def nbytes(self) -> int:
        return int(self.tensor.nbytes)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, pictures: slice) -> Held:
        return Held(self.tensor[pictures], self.ready)

    def on(self, stream: Any) -> Any:
        """The tensor for a stream, which waits until it is ready and has done with it before its memory goes to others."""
        if stream is not None:
            stream.wait_event(self.ready)
            self.tensor.record_stream(stream)
        return self.tensor


class TorchBackend:
    """The graphs of a checkpoint as PyTorch modules; numpy in and out, or tensors with `decode_tensor`."""

    def __init__(self, source: Source, name: str = "torch") -> None:
        folder = source.need_checkpoint(f"backend {name}")
        self.checkpoint = checkpoint_at(folder)
        import torch

        self._torch, self.name, self.device = torch, name, device(source.device)
        self._compiled = name == "torch-compile"
        self.precision = "fp16" if name == "torch-fp16" else "fp32"
        self._dtype = torch.float16 if self.precision == "fp16" else torch.float32
        if self.device.type == "cpu":
            set_threads(source.threads)
        with failing_as(name, f"while moving the model to {self.device}"):
            self._make()

    def _make(self) -> None:
        from digseg_engine.model.devices import use_kernels
        from digseg_engine.model.graph_modules import graph_modules

        parts = graph_modules(self.checkpoint)
        if self.device.type != "cpu":  # the shared checkpoint stays where it is
            parts = copy.deepcopy(parts)
        asked = {"image_encoder": parts.image_encoder, "mask_decoder": parts.mask_decoder}
        if parts.presence is not None:
            asked["presence"] = parts.presence
        self._graphs = self._torch.nn.ModuleDict(asked)
        if self.precision == "fp16":  # the text graph shares the student, and stays float32
            self._graphs = copy.deepcopy(self._graphs)
        self._text = parts.text_encoder.to(self.device)
        self._graphs.to(self.device, self._dtype)
        kernels = use_kernels(self._graphs)
        on_gpu = self.device.type == "cuda"
        replays = on_gpu and os.environ.get(GRAPHS_VARIABLE, "1") != "0"
        self._run: dict[str, Any] = {}
        for name, module in self._graphs.items():
            run = self._torch.compile(module) if self._compiled else module
            self._run[name] = Replayed(run) if replays else run
        self.new_shapes_cost = self._compiled or replays
        self._one_at_a_time = Lock() if self._compiled or on_gpu else None  # neither compiling nor graphs share
        notes = [f"{self.name} {self._torch.__version__}", self._device_name(), self.precision, kernels]
        self.detail = ", ".join([*filter(None, notes), *["CUDA graphs"] * replays])

    def _device_name(self) -> str:
        return self._torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    @contextmanager
    def _turn(self, doing: str) -> Iterator[None]:
        """One call: alone where the device asks for it (uploads too: pinning memory would break another's capture)."""
        exact = exact_float32() if self.device.type == "cuda" else nullcontext()
        with failing_as(self.name, doing), self._one_at_a_time or nullcontext(), self._torch.inference_mode(), exact:
            yield

    def encode_text(self, token_ids: Tokens, token_mask: TokenMask) -> tuple[Array, Array]:
        with self._turn(f"on {len(token_ids)} prompts"):
            keys, values = self._text(*(self._there(array) for array in (token_ids, token_mask)))
            return keys.cpu().numpy(), values.cpu().numpy()

    def encode_image(self, image: Any) -> Held:
        """image [B, 3, H, W], an array or a tensor from anywhere -> its encoding, on this backend's device."""
        with self._turn(f"on a picture of shape {list(image.shape)}"):
            tensor = image if isinstance(image, self._torch.Tensor) else self._there(image)
            encoding = self._run["image_encoder"](tensor.to(self.device, self._dtype))
            if self.device.type != "cuda":
                return Held(encoding)
            ready = self._torch.cuda.Event()
            ready.record(self._torch.cuda.current_stream(self.device))
            return Held(encoding, ready)

    def presence(
        self, encoding: Held, keys: Array, values: Array, token_mask: TokenMask
    ) -> NDArray[np.float32] | None:  # fmt: skip
        if "presence" not in self._run:
            return None
        with self._turn(_what(encoding, keys)):
            return self._back(self._ask("presence", encoding, keys, values, token_mask))

    def decode(self, encoding: Held, keys: Array, values: Array, token_mask: TokenMask) -> NDArray[np.float32]:
        with self._turn(_what(encoding, keys)):
            return self._back(self._ask("mask_decoder", encoding, keys, values, token_mask))

    def decode_tensor(self, encoding: Held, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        """As `decode`, with the logits as a torch tensor on this backend's device."""
        with self._turn(_what(encoding, keys)):
            return self._ask("mask_decoder", encoding, keys, values, token_mask)

    def _ask(self, graph: str, encoding: Held, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        text = [self._there(array).to(self._dtype) for array in (keys, values)]
        stream = self._torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        return self._run[graph](encoding.on(stream), *text, self._there(token_mask)).float()

    def _there(self, array: Array) -> Any:
        tensor = self._torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _back(self, logits: Any) -> NDArray[np.float32]:
        """A tensor as an array; from a GPU through pinned memory, which goes back at once and stays with no result."""
        if self.device.type != "cuda":
            array: NDArray[np.float32] = logits.numpy()
            return array
        pinned = self._torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        pinned.copy_(logits, non_blocking=True)
        self._torch.cuda.current_stream(self.device).synchronize()
        return np.array(pinned.numpy())


def _what(encoding: Held, keys: Array) -> str:
    return f"on {len(encoding)} pictures with {len(keys)} prompts"
