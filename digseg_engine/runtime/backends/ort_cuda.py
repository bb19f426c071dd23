"""ONNX Runtime on a GPU: provider options, and tensors that stay there by I/O binding. Not run by us yet on a GPU.

The binding is tested on a CPU, the order of copies, streams and runs by recording stand-ins.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from digseg_engine.contract import SEGMENTER, GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import Array, TokenMask, failing_as
from digseg_engine.runtime.backends.devices import gpu_index
from digseg_engine.runtime.backends.ort_backend import PROVIDERS, OrtBackend, Provider
from digseg_engine.runtime.backends.tensorrt_native import model_sizes
from digseg_engine.runtime.private_cache import private_folder
from digseg_engine.runtime.profile import Profile

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source

CUDA, TENSORRT = PROVIDERS["onnxruntime-cuda"], PROVIDERS["onnxruntime-tensorrt"]


def run_bound(session: Any, feeds: dict[str, Any], output: str, result: Any, options: Any = None) -> Any:
    """Run a session on torch tensors where they lie: nothing is copied. `result` is the tensor the output goes to; the
    tensors of `feeds` are contiguous."""
    binding = session.io_binding()
    for name, tensor in feeds.items():
        binding.bind_input(name, *_place(tensor))
    binding.bind_output(output, *_place(result))
    session.run_with_iobinding(binding, options)
    return result


def _place(tensor: Any) -> tuple[Any, ...]:
    """(device, its number, element type, shape, address) as a binding wants them."""
    import numpy as np
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


class OrtCudaBackend(OrtBackend):
    """As `OrtBackend` on a GPU provider, with `segment_tensor`.

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
        golden = source.golden
        self._ratio = golden.image.shape[2] // golden.logits.shape[2]  # pixels per logit

    def providers(self, spec: GraphSpec) -> list[Provider]:
        """CUDA; or TensorRT with CUDA behind it for the nodes that TensorRT leaves over."""
        stream = None if self._stream is None else int(self._stream.cuda_stream)
        found = [(CUDA, cuda_options(self.index, stream))]
        if self._provider == TENSORRT:
            options = tensorrt_options(self.index, self._profile, spec, self._sizes, self._digest, stream)
            found.insert(0, (TENSORRT, options))
        return found

    def segment_tensor(self, image: Any, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        """As `segment`, with the image and the logits as torch tensors on the GPU. Raises InputError outside the profile."""
        where = image.device
        if where.type != "cuda" or (where.index or 0) != self.index:
            raise BackendError(f"{self.name} takes tensors on cuda:{self.index}, got one on {where}; move it, load the "
                               "engine with that device, or pass an array")  # fmt: skip
        self.check(image.shape, token_mask.shape)
        with failing_as(self.name, f"on a picture of shape {list(image.shape)} with {len(keys)} prompts"):
            return self._bound(image, keys, values, token_mask)

    def _bound(self, image: Any, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        import torch

        # 1 everything that is queued on the caller's stream: copies, and the room for the answer
        text = {"text_keys": keys.astype(self._text_dtype, copy=False), "token_mask": token_mask,
                "text_values": values.astype(self._text_dtype, copy=False)}  # fmt: skip
        feeds = {"image": image.contiguous()}
        feeds |= {name: torch.from_numpy(array).to(image.device) for name, array in text.items()}
        b, _, h, w = image.shape
        logits = torch.empty(b, len(keys), h // self._ratio, w // self._ratio, device=image.device)
        # 2 ONNX Runtime's stream waits for it, then runs
        here = torch.cuda.current_stream(image.device)
        options = self._runtime.RunOptions()
        if self._stream is None:
            here.synchronize()
        else:
            self._stream.wait_stream(here)
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        run_bound(self._segmenter, feeds, SEGMENTER.outputs[0].name, logits, options)
        # 3 the caller's stream waits in turn; no memory is given away before
        if self._stream is not None:
            here.wait_stream(self._stream)
            for tensor in (logits, *feeds.values()):
                tensor.record_stream(self._stream)
        return logits
