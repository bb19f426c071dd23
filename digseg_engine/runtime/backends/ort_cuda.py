"""ONNX Runtime on a GPU with tensors that stay there: I/O binding on the caller's stream. Not run by us yet on a GPU.

The binding itself is tested on a CPU.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import Array, TokenMask
from digseg_engine.runtime.backends.ort_backend import OrtBackend

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source


def run_bound(session: Any, feeds: dict[str, Any], output: str, result: Any, options: Any = None) -> Any:
    """Run a session on torch tensors where they lie: nothing is copied. `result` is the tensor the output goes to."""
    binding = session.io_binding()
    alive = {name: tensor.contiguous() for name, tensor in feeds.items()}
    for name, tensor in alive.items():
        binding.bind_input(name, *_place(tensor))
    binding.bind_output(output, *_place(result))
    session.run_with_iobinding(binding, options)
    return result


def _place(tensor: Any) -> tuple[Any, ...]:
    """(device, its number, element type, shape, address) as a binding wants them."""
    import numpy as np
    import torch

    kinds = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64, torch.bool: np.bool_}
    return (tensor.device.type, tensor.device.index or 0, kinds[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


class OrtCudaBackend(OrtBackend):
    """As `OrtBackend` on a GPU provider, with `segment_tensor`.

    Where torch is loaded before the engine, both use one stream and nothing waits for the host; otherwise the tensors'
    stream is waited for first, and ONNX Runtime waits for its own.
    """

    def __init__(self, source: Source, name: str) -> None:
        self._stream: Any = None
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            self._stream = torch.cuda.Stream()
        super().__init__(source, name)
        golden = source.golden
        self._ratio = golden.image.shape[2] // golden.logits.shape[2]  # pixels per logit

    def provider_options(self) -> dict[str, str]:
        """Options of the provider's sessions."""
        return {} if self._stream is None else {"user_compute_stream": str(self._stream.cuda_stream)}

    def segment_tensor(self, image: Any, keys: Array, values: Array, token_mask: TokenMask) -> Any:
        """As `segment`, with the image and the logits as torch tensors on the GPU."""
        import torch

        if image.device.type != "cuda":
            raise BackendError(
                f"{self.name} takes tensors on the GPU, got one on {image.device}; move it, or pass an array"
            )
        text = {"text_keys": keys.astype(self._text_dtype, copy=False), "token_mask": token_mask,
                "text_values": values.astype(self._text_dtype, copy=False)}  # fmt: skip
        feeds = {name: torch.from_numpy(array).to(image.device) for name, array in text.items()}
        b, _, h, w = image.shape
        logits = torch.empty(b, len(keys), h // self._ratio, w // self._ratio, device=image.device)
        here = torch.cuda.current_stream(image.device)
        options = self._runtime.RunOptions()
        if self._stream is None:
            here.synchronize()
        else:
            self._stream.wait_stream(here)
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        run_bound(self._segmenter, {"image": image, **feeds}, "logits", logits, options)
        if self._stream is not None:
            here.wait_stream(self._stream)
            for tensor in (image, logits, *feeds.values()):
                tensor.record_stream(self._stream)
        return logits
