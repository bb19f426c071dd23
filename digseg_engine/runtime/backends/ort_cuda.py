"""ONNX Runtime's CUDA and TensorRT providers: their options, and torch tensors in and out. Not run by us yet on a GPU.

The binding is tested on a CPU, the order of copies, streams and runs by recording stand-ins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from digseg_engine.contract import ENCODING, IMAGE, LOGITS, GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import Array, TokenMask, failing_as
from digseg_engine.runtime.backends.devices import gpu_index
from digseg_engine.runtime.backends.ort_backend import PROVIDERS, Provider
from digseg_engine.runtime.backends.ort_gpu import OrtGpuBackend
from digseg_engine.runtime.backends.placed import Placed
from digseg_engine.runtime.backends.tensorrt_native import model_sizes
from digseg_engine.runtime.private_cache import private_folder
from digseg_engine.runtime.profile import Profile

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source

T = TypeVar("T")
CUDA, TENSORRT = PROVIDERS["onnxruntime-cuda"], PROVIDERS["onnxruntime-tensorrt"]


def bind(binding: Any, feeds: dict[str, Any]) -> None:
    """Bind torch tensors where they lie; they are contiguous."""
    for name, tensor in feeds.items():
        binding.bind_input(name, *_place(tensor))


def _place(tensor: Any) -> tuple[Any, ...]:
    """(device, its number, element type, shape, address) as a binding wants them."""
    import torch

    if not tensor.is_contiguous():
        raise BackendError(f"a tensor of strides {tensor.stride()} cannot be bound; make it contiguous before")
    kinds = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64, torch.bool: np.bool_}
    return (tensor.device.type, tensor.device.index or 0, kinds[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


def cuda_options(index: int, stream: int | None = None) -> dict[str, str]:
    """Options of the CUDA provider: which GPU, true float32 (as in C++ and the torch backends), a shared stream."""
    shared = {} if stream is None else {"user_compute_stream": str(stream)}
    return {"device_id": str(index), "use_tf32": "0", **shared}


def tensorrt_options(index: int, profile: Profile | None, spec: GraphSpec, sizes: dict[str, int], key: str,
                     stream: int | None = None) -> dict[str, str]:  # fmt: skip
    """Options of the TensorRT provider: engines and timings kept in the user's own cache under `key`, built once for the
    bundle's shape profile instead of for every new shape."""
    folder = str(private_folder("onnxruntime-tensorrt", key))
    shapes = {}
    if profile is not None:
        for option, end in (("min", "min"), ("opt", "opt"), ("max", "max")):
            shapes[f"trt_profile_{option}_shapes"] = ",".join(
                f"{tensor.name}:{'x'.join(map(str, profile.shape(tensor.axes, end, sizes)))}" for tensor in spec.inputs
            )
    return {"device_id": str(index), "trt_engine_cache_enable": "1", "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1", "trt_timing_cache_path": folder, **shapes,
            **({} if stream is None else {"user_compute_stream": str(stream)})}  # fmt: skip


class OrtCudaBackend(OrtGpuBackend):
    """As `OrtGpuBackend`, and takes torch tensors on that GPU.

    Where torch is loaded before the engine, both use one stream and nothing waits for the host; otherwise the tensors'
    stream is waited for first, and ONNX Runtime waits for its own.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.index = gpu_index(source, name)
        self._stream: Any = None
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            with failing_as(name, f"while opening a stream on cuda:{self.index}"):
                self._stream = torch.cuda.Stream(self.index)
        bundle = source.need_bundle(name)
        self._digest, self._sizes = bundle.digest, model_sizes(bundle)
        super().__init__(source, name)
        self.detail = f"{self.detail}, cuda:{self.index}"
        self._cells = self._sizes["s"] // source.cell  # logits of one cell of the encoding, along a side

    def providers(self, spec: GraphSpec) -> list[Provider]:
        """CUDA; or TensorRT with CUDA behind it for the nodes that TensorRT leaves over."""
        stream = None if self._stream is None else int(self._stream.cuda_stream)
        found = [(CUDA, cuda_options(self.index, stream))]
        if self._provider == TENSORRT:
            options = tensorrt_options(self.index, self._profile, spec, self._sizes, self._digest, stream)
            found.insert(0, (TENSORRT, options))
        return found

    def encode_image(self, image: Any) -> Placed:
        """As `OrtGpuBackend`; a torch tensor is taken where it lies. Raises InputError outside the profile."""
        if not hasattr(image, "device") or isinstance(image, np.ndarray):
            return super().encode_image(image)
        self.check_device(image)
        self.check_picture(image.shape)
        with failing_as(self.name, f"on a picture of shape {list(image.shape)}"):
            image = image.contiguous()
            binding = self._image.io_binding()
            bind(binding, {IMAGE.name: image})
            return self._in_turn([image], image.device, lambda options: self.kept(self._image, binding, options))

    def decode_tensor(self, encoding: Placed, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        """As `decode`, with the logits as a torch tensor on the GPU."""
        import torch

        text = self.asked(len(encoding), keys, values, token_mask)
        with failing_as(self.name, f"on {len(encoding)} pictures with {len(keys)} prompts"):
            where = torch.device("cuda", self.index)
            feeds = {name: torch.from_numpy(array).to(where) for name, array in text.items()}
            (b, _, rows, columns), cells = encoding.shape, self._cells
            logits = torch.empty(b, len(keys), rows * cells, columns * cells, device=where)
            binding = self._masks.io_binding()
            binding.bind_input(ENCODING.name, *self.where(encoding))
            bind(binding, feeds)
            binding.bind_output(LOGITS.name, *_place(logits))
            self._in_turn(
                [logits, *feeds.values()], where, lambda options: self._masks.run_with_iobinding(binding, options)
            )
        return logits

    def _in_turn(self, tensors: list[Any], where: Any, run: Callable[[Any], T]) -> T:
        """`run` with run options, in the order of the caller's stream, on which `tensors` are made and used."""
        import torch

        # 1 ONNX Runtime's stream waits for everything that is queued on the caller's, then runs
        here = torch.cuda.current_stream(where)
        options = self._runtime.RunOptions()
        if self._stream is None:
            here.synchronize()
        else:
            self._stream.wait_stream(here)
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        done = run(options)
        # 2 the caller's stream waits in turn; no memory is given away before
        if self._stream is not None:
            here.wait_stream(self._stream)
            for tensor in tensors:
                tensor.record_stream(self._stream)
        return done

    def check_device(self, tensor: Any) -> None:
        """Raises BackendError for a tensor that is not on this backend's GPU."""
        where = tensor.device
        if where.type != "cuda" or (where.index or 0) != self.index:
            raise BackendError(f"{self.name} takes tensors on cuda:{self.index}, got one on {where}; move it, load the "
                               "engine with that device, or pass an array")  # fmt: skip
