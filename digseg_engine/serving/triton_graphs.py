"""A backend whose graphs are models of Triton Inference Server: they are asked from within it, by its business logic scripting.

The engine, its tokenizer and its rules run in a model of the Python backend; pictures, text and encodings go to the graphs as
tensors of the same server, which runs them with ONNX Runtime or TensorRT where it wants and puts requests together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine.bundle import Bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.precisions import PLAIN, spec_of
from digseg_engine.runtime.backends import Array
from digseg_engine.runtime.backends.graphs import GraphBackend
from digseg_engine.runtime.backends.tensorrt_native import bundle_profile as plan_profile
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.source import Source, open_source

STORED, WIDE, PLANS = FORMS = (
    "stored",
    "wide",
    "plans",
)  # graphs as stored, those for a CPU (in float32), TensorRT's plans


def model_name(stem: str, graph: str) -> str:
    """What the model of a graph is called. stem: that of the whole; graph: by name of the contract."""
    return f"{stem}_{graph}"


class ServerBackend(GraphBackend):
    """stem: the whole's name, with which those of its graphs begin; form: one of FORMS."""

    name = "triton-inference-server"

    def __init__(self, source: Source, stem: str, form: str, utils: Any) -> None:
        bundle = source.need_bundle(self.name)
        self._stem, self._utils = stem, utils
        self._names = {spec.file: name for name, spec in bundle.graphs.items()}
        spec = PLAIN if form == WIDE else spec_of(bundle.manifest["precision"]["name"])
        self._text_dtype = np.dtype(spec.host)
        self.profile = (
            plan_profile(bundle) if form == PLANS else None
        )  # plans are built for shapes, whatever the bundle takes
        self.detail = f"models {stem}_* of the server, {spec.name}"
        self.open(bundle, self._model)

    def _model(self, bundle: Bundle, spec: GraphSpec) -> tuple[str, tuple[str, ...]]:
        return model_name(self._stem, self._names[spec.file]), tuple(output.name for output in spec.outputs)

    def answers(self, graph: Any, feeds: dict[str, Array]) -> list[Array]:
        return list(self.named(graph, feeds, graph[1]).values())

    def named(self, graph: Any, feeds: dict[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        """Ask the server. Raises BackendError with what it said."""
        model, outputs = graph
        names = [name for name in outputs if name in wanted]
        tensors = [self._utils.Tensor(name, np.ascontiguousarray(array)) for name, array in feeds.items()]
        request = self._utils.InferenceRequest(model_name=model, requested_output_names=names, inputs=tensors)
        response = request.exec()
        if response.has_error():
            raise BackendError(f"the server's model {model} failed: {response.error().message()}; its log says more")
        found = {tensor.name(): tensor for tensor in response.output_tensors()}
        return {name: self._array(found[name]) for name in names}

    def _array(self, tensor: Any) -> Array:
        """In host memory, wherever the server has it."""
        array: Array = tensor.as_numpy() if tensor.is_cpu() else _from_gpu(tensor)
        return array


def _from_gpu(tensor: Any) -> Array:
    """Only where a model was told to leave its outputs on the GPU (FORCE_CPU_ONLY_INPUT_TENSORS concerns inputs alone)."""
    try:
        import torch
    except ImportError as error:
        raise BackendError("the server left a tensor on its GPU, from where PyTorch would fetch it, and PyTorch is not "
                           "installed; install it beside the server's Python") from error  # fmt: skip
    array: Array = torch.from_dlpack(tensor.to_dlpack()).cpu().numpy()
    return array


def engine_over(bundle: Path, stem: str, form: str, utils: Any) -> Engine:
    """An engine whose graphs are the server's models. Raises BundleError."""
    source = open_source(bundle)
    return Engine(source, ServerBackend(source, stem, form, utils))
