"""Backends: ways to run a bundle or a checkpoint. Each module imports its library only when it is used.

| name | needs | runs |
| --- | --- | --- |
| `onnxruntime` | bundle | CPU provider (the float32 graphs of a reduced-precision bundle) |
| `onnxruntime-cuda`, `onnxruntime-tensorrt` | bundle | the graphs as stored, on an NVIDIA GPU |
| `onnxruntime-tensorrt-rtx` | bundle | the graphs as stored, by NVIDIA's plug-in, on an RTX GPU |
| `openvino`, `openvino-bf16` | bundle | the graphs as stored, on the CPU, in float32 or bf16 |
| `openvino-gpu`, `openvino-npu` | bundle | the graphs as stored, on an Intel GPU or NPU |
| `tensorrt` | bundle | engines built on this machine, on an NVIDIA GPU |
| `tensorrt-rtx` | bundle, folder of plans | plans built ahead of time, on an NVIDIA RTX GPU |
| `torch`, `torch-compile` | checkpoint | float32, on the GPU with our Triton kernels when there is one, else on the CPU |
| `torch-fp16` | checkpoint | the same in half precision, on a GPU only |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError, DigsegError, UsageError

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source

Array = NDArray[Any]
Tokens = NDArray[np.int64]
TokenMask = NDArray[np.bool_]


class Kept(Protocol):
    """Encoded pictures where a backend keeps them: an array, a tensor, a place on a GPU. Sliced by picture, never changed."""

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, pictures: slice, /) -> Any: ...


class Backend(Protocol):
    """Runs one model; arrays follow `contract.py`. Thread-safe. Raises BackendError when a run fails.

    Attributes that may be left out: `precision`, "fp16" or "bf16" where it computes in less than float32 whatever the bundle
    says; `new_shapes_cost`, True where a number of prompts that never came before is compiled or captured first; and
    `decode_tensor`, as `decode` with the logits as a torch tensor on `device` (without one, where the pictures are):
    `encode_image` then takes tensors too. `labels(encoding, wanted)`, of a backend that runs folded bundles, gives what is wanted
    of the outputs of `contract.LABELS`, by name, as far as the bundle has them.
    """

    name: str
    detail: str  # what really runs, for people: provider or device, precision

    def encode_text(self, token_ids: Tokens, token_mask: TokenMask) -> tuple[Array, Array]:
        """token_ids [K, L], token_mask [K, L] -> text_keys, text_values."""

    def encode_image(self, image: Array) -> Kept:
        """image [B, 3, H, W] -> its encoding, of B pictures, asked any number of times from any thread."""

    def presence(
        self, encoding: Any, keys: Array, values: Array, token_mask: TokenMask
    ) -> NDArray[np.float32] | None:  # fmt: skip
        """An encoding of B pictures and folded text of K prompts -> logits [B, K]; None for a model without the readout."""

    def decode(self, encoding: Any, keys: Array, values: Array, token_mask: TokenMask) -> NDArray[np.float32]:
        """An encoding of B pictures and folded text of K prompts -> logits [B, K, h', w']."""


@dataclass(frozen=True)
class Usable:
    """Can a backend run here? `reason` says why not, `install` what would help."""

    name: str
    usable: bool
    detail: str
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class BackendKind:
    """How to look for and create one backend. `needs` is what it is created from. version: a remembered verdict holds
    for this one alone; without it, for the file that `create` is defined in as it is. slow_start: it compiles for longer
    than little work takes, so `auto` leaves it out where no more follows."""

    name: str
    probe: Callable[[], Usable]
    create: Callable[[Source], Backend]
    needs: Literal["bundle", "checkpoint"] = "bundle"
    version: str = ""
    slow_start: bool = False

    @property
    def identity(self) -> str:
        """Tells one release of a backend from another, in keys of verdicts."""
        function = self.create.func if isinstance(self.create, partial) else self.create
        module = sys.modules.get(getattr(function, "__module__", ""))
        try:
            about = os.stat(module.__file__ or "") if module is not None else None
        except (AttributeError, OSError):
            about = None
        return self.version or ("" if about is None else f"{about.st_size}:{about.st_mtime_ns}")


@contextmanager
def failing_as(name: str, doing: str) -> Iterator[None]:
    """Whatever a backend raises while `doing` something, as one BackendError that names both. Our own errors stay, and
    so do MemoryError, KeyboardInterrupt and SystemExit."""
    try:
        yield
    except (DigsegError, MemoryError):
        raise
    except Exception as error:
        raise BackendError(f"backend {name} failed {doing}: {in_one_line(error)}; try another --backend") from error


def in_one_line(error: Exception) -> str:
    """The first line of any exception, with its kind where that says more; of a library's not without end, because it may quote a
    file."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    first = first if isinstance(error, DigsegError) else first[:1000]
    return first if isinstance(error, DigsegError) else f"{type(error).__name__}: {first}".removesuffix(": ")


_registered: dict[str, BackendKind] = {}


def register(kind: BackendKind) -> None:
    """Add a backend of your own; it is probed, verified, timed and chosen like the others. Raises UsageError for a
    name that is taken."""
    if kind.name in kinds():
        raise UsageError(f"a backend called {kind.name!r} exists; expected a new name; unregister it first")
    _registered[kind.name] = kind


register_backend = register  # as `digseg_engine` names it


def unregister(name: str) -> None:
    """Take a registered backend out again. Raises UsageError for a name that was not registered."""
    if name not in _registered:
        raise UsageError(f"no backend {name!r} was registered; expected one of {', '.join(_registered) or 'none'}")
    del _registered[name]


def kinds() -> dict[str, BackendKind]:
    """All known backends, built in, of other packages, and registered, in order of preference when speeds are equal."""
    from digseg_engine.runtime.backends import openvino_backend, ort_backend, plugins, torch_backend

    listed = [
        BackendKind(
            name,
            partial(ort_backend.probe, name),
            partial(ort_backend.create, name=name),
            slow_start=name == "onnxruntime-tensorrt",
        )
        for name in ort_backend.PROVIDERS
    ]
    listed += [
        BackendKind(
            name,
            partial(openvino_backend.probe, name),
            partial(openvino_backend.OpenvinoBackend, name=name),
            slow_start=True,
        )
        for name in openvino_backend.VARIANTS
    ]
    listed.append(BackendKind("onnxruntime-tensorrt-rtx", _probe_plugin, _create_plugin, slow_start=True))
    listed.append(BackendKind("tensorrt", _probe_tensorrt, _create_tensorrt))
    listed.append(BackendKind("tensorrt-rtx", _probe_tensorrt_rtx, _create_tensorrt_rtx))
    listed += [
        BackendKind(
            name,
            partial(torch_backend.probe, name),
            partial(torch_backend.TorchBackend, name=name),
            "checkpoint",
            slow_start=name == "torch-compile",
        )
        for name in torch_backend.NAMES
    ]
    own = {kind.name: kind for kind in listed}
    return {**own, **plugins.unused(plugins.installed(), {*own, *_registered}), **_registered}


def _probe_tensorrt() -> Usable:
    from digseg_engine.runtime.backends import tensorrt_native

    return tensorrt_native.probe()


def _create_tensorrt(source: Source) -> Backend:
    from digseg_engine.runtime.backends import tensorrt_native
    from digseg_engine.runtime.backends.devices import gpu_index

    return tensorrt_native.TensorrtBackend(source.need_bundle("tensorrt"), index=gpu_index(source, "tensorrt"))


def _probe_tensorrt_rtx() -> Usable:
    from digseg_engine.runtime.backends import tensorrt_rtx

    return tensorrt_rtx.probe()


def _create_tensorrt_rtx(source: Source) -> Backend:
    from digseg_engine.runtime.backends import tensorrt_rtx

    return tensorrt_rtx.create(source)


def _probe_plugin() -> Usable:
    from digseg_engine.runtime.backends import ort_plugin

    return ort_plugin.probe()


def _create_plugin(source: Source) -> Backend:
    from digseg_engine.runtime.backends import ort_plugin

    return ort_plugin.OrtPluginBackend(source)
