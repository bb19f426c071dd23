"""ONNX Runtime on the CPU.

An fp16 bundle holds, beside each graph, a float32 twin over the same stored weights (`*.fp32.onnx`): the CPU provider has
no fp16 arithmetic and would cast around every operator, so the twin is what runs here.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.bundle import Bundle
from digseg_engine.contract import SEGMENTER, TEXT_ENCODER, GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import Array, Usable

PROVIDER = "CPUExecutionProvider"
INSTALL = 'pip install "digseg-engine[cpu]"'
# A one-node Identity graph: enough to create a session for real.
PROBE = base64.b64decode("CAg6OQoQCgF4EgF5IghJZGVudGl0eRIBcFoQCgF4EgsKCQgBEgUKAxIBMWIQCgF5EgsKCQgBEgUKAxIBMUIECgAQDQ==")


def wide_name(spec: GraphSpec) -> str:
    """File name of a graph's float32 twin in a reduced-precision bundle."""
    return spec.file.replace(".onnx", ".fp32.onnx")


def probe() -> Usable:
    """Create a real session on a one-node graph."""
    try:
        import onnxruntime
    except ImportError as error:
        return Usable("onnxruntime", False, "", f"not installed ({error})", INSTALL)
    try:
        onnxruntime.InferenceSession(PROBE, providers=[PROVIDER])
    except Exception as error:
        return Usable("onnxruntime", False, "", f"no session could be created: {error}", f"{INSTALL} --force-reinstall")
    return Usable("onnxruntime", True, f"onnxruntime {onnxruntime.__version__}, {PROVIDER}")


class OrtBackend:
    """Both graphs of a bundle as ONNX Runtime sessions. `Run` on one session is thread-safe by contract."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"backend onnxruntime cannot run here: {error}; install it with {INSTALL}") from error
        self._runtime = onnxruntime
        precision = bundle.manifest["precision"]["name"]
        self._wide = wide_name(SEGMENTER) in bundle.manifest["files"]  # int8 and fp32 graphs run as they are
        self._text = self._session(bundle, TEXT_ENCODER)
        self._segmenter = self._session(bundle, SEGMENTER)
        stored = f"{precision} weights widened to fp32" if self._wide else precision
        self.detail = f"onnxruntime {onnxruntime.__version__}, {PROVIDER}, {stored}"

    def _session(self, bundle: Bundle, spec: GraphSpec) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # steadier memory when shapes vary
        path = bundle.file(wide_name(spec) if self._wide else spec.file)
        return create_session(self._runtime, path, options)

    def encode_text(self, token_ids: NDArray[np.int64], token_mask: NDArray[np.bool_]) -> tuple[Array, Array]:
        keys, values = self._text.run(None, {"token_ids": token_ids, "token_mask": token_mask})
        return keys, values

    def segment(self, image: Array, keys: Array, values: Array, token_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        feeds = {"image": image, "text_keys": keys, "text_values": values, "token_mask": token_mask}
        try:
            (logits,) = self._segmenter.run(None, feeds)
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise BackendError(
                f"onnxruntime failed on shapes {shapes}: {error}; check the bundle with `digseg doctor`"
            ) from error
        result: NDArray[np.float32] = logits
        return result


def create_session(runtime: Any, path: Path, options: Any) -> Any:
    """A CPU session for a graph file; asserts that the provider asked for is the one that runs."""
    try:
        session = runtime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:
        raise BackendError(
            f"onnxruntime cannot load {path}: {error}; export the bundle again, or update onnxruntime"
        ) from error
    if session.get_providers()[0] != PROVIDER:
        raise BackendError(f"{path} runs on {session.get_providers()[0]}, expected {PROVIDER}; reinstall onnxruntime")
    return session
