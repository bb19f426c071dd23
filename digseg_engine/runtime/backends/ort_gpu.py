"""ONNX Runtime on a GPU: an encoding stays in the memory it was written to, by I/O binding. Not run by us yet on a GPU.

The binding itself is run on a CPU by the tests, whose provider binds in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.contract import ENCODING
from digseg_engine.runtime.backends import Array, TokenMask, failing_as
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.backends.placed import Placed

Bound = tuple[str, int, Any, tuple[int, ...], int]  # device, its number, element type, shape, address


class OrtGpuBackend(OrtBackend):
    """As `OrtBackend`, with the encoding kept on GPU number `index`: pictures and text go there, answers come back."""

    place = "cuda"  # as ONNX Runtime names the device
    index = 0

    def encode_image(self, image: Array) -> Placed:
        self.check_picture(image.shape)
        with failing_as(self.name, f"on a picture of shape {list(image.shape)}"):
            binding = self._image.io_binding()
            binding.bind_cpu_input("image", np.ascontiguousarray(image))
            return self.kept(self._image, binding)

    def kept(self, session: Any, binding: Any, options: Any = None) -> Placed:
        """Run the image encoder's binding; its output stays in memory that ONNX Runtime gives it on the device."""
        binding.bind_output(ENCODING.name, self.place, self.index)
        session.run_with_iobinding(binding, options)
        (value,) = binding.get_outputs()
        itemsize = np.dtype(self._text_dtype).itemsize
        return Placed(value, int(value.data_ptr()), tuple(value.shape()), itemsize)

    def _ask(
        self, session: Any, encoding: Placed, keys: Array, values: Array, token_mask: TokenMask
    ) -> NDArray[np.float32]:  # fmt: skip
        text = self.asked(len(encoding), keys, values, token_mask)
        with failing_as(self.name, f"on {len(encoding)} pictures with {len(keys)} prompts"):
            binding = session.io_binding()
            binding.bind_input(ENCODING.name, *self.where(encoding))
            for name, array in text.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            binding.bind_output(session.get_outputs()[0].name, "cpu")
            session.run_with_iobinding(binding)
            (found,) = binding.copy_outputs_to_cpu()
        result: NDArray[np.float32] = found
        return result

    def labels(self, encoding: Placed, wanted: tuple[str, ...]) -> dict[str, Array]:
        """Of a folded bundle: outputs of its graph in host memory, by name."""
        if self._profile is not None:
            self._profile.check({"B": len(encoding)})
        names = [output.name for output in self._labels.get_outputs() if output.name in wanted]
        with failing_as(self.name, f"on {len(encoding)} pictures"):
            binding = self._labels.io_binding()
            binding.bind_input(ENCODING.name, *self.where(encoding))
            for name in names:
                binding.bind_output(name, "cpu")
            self._labels.run_with_iobinding(binding)
            return dict(zip(names, binding.copy_outputs_to_cpu()))

    def where(self, encoding: Placed) -> Bound:
        """An encoding as a binding wants it; its type is that of the text, the graph's own."""
        return self.place, self.index, self._text_dtype, encoding.shape, encoding.pointer
