"""Backends: ways to run the two graphs of a bundle. Each module imports its library only when it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from digseg_engine.bundle import Bundle

Array = NDArray[Any]


class Backend(Protocol):
    """Runs the graphs of one bundle; arrays follow `contract.py`. Thread-safe."""

    name: str
    detail: str  # what really runs, for people: provider, precision

    def encode_text(self, token_ids: NDArray[np.int64], token_mask: NDArray[np.bool_]) -> tuple[Array, Array]:
        """token_ids [K, L], token_mask [K, L] -> text_keys, text_values."""

    def segment(self, image: Array, keys: Array, values: Array, token_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """image [B, 3, H, W] and folded text of K prompts -> logits [B, K, h', w']."""


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
    """How to look for and create one backend."""

    name: str
    probe: Callable[[], Usable]
    create: Callable[[Bundle], Backend]


def kinds() -> dict[str, BackendKind]:
    """All backends that can run a bundle, in order of preference when speeds are equal."""
    from digseg_engine.runtime.backends import ort_backend

    return {"onnxruntime": BackendKind("onnxruntime", ort_backend.probe, ort_backend.OrtBackend)}
