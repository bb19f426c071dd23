"""Traced graphs kept for the length of a run: many tests export one of a few small models, and tracing is most of an export.

A graph is taken from the folder only for the same weights, in modules of the same classes with the same settings, for the same
border and shapes. A test that is about tracing itself is marked `traces_anew`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PLAIN = (int, float, str, bool, bytes, type(None))
MODULE = "digseg_export.to_onnx"


def said(value: Any) -> str:
    """A setting of a module in words that another process would use for it too."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(said, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{said(key)}:{said(one)}' for key, one in sorted(value.items(), key=lambda item: str(item[0])))}}}"
    named = getattr(value, "__qualname__", None)
    return named if named is not None else f"{type(value).__qualname__}({said(settings(value))})"


def settings(value: Any) -> dict[str, Any]:
    """What plain settings an object holds, but for the parts that a module counts by itself."""
    held = getattr(value, "__dict__", {})
    return {
        name: one for name, one in held.items() if not name.startswith("_") and isinstance(one, (*PLAIN, tuple, list))
    }


def key_of(module: Any, about: Iterable[Any]) -> str:
    """Of a module's weights, classes and settings, and of what it is traced with."""
    import numpy as np

    found = hashlib.sha256()
    for name, part in module.named_modules():
        processor = getattr(part, "processor", None)
        own = {key: one for key, one in vars(part).items() if not key.startswith("_") and key != "training"}
        found.update(f"{name} {type(part).__qualname__} {said(own)} {said(processor)}\n".encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        found.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    for one in about:
        found.update(repr(one).encode())
    return found.hexdigest()


def keeping(trace: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`export_graph` that looks into the folder first."""

    def export_graph(module: Any, spec: Any, arguments: tuple[Any, ...], shapes: dict[str, Any]) -> Any:
        import onnx

        from digseg_export.disk_offload import stand_ins

        if stand_ins(module):
            return trace(module, spec, arguments, shapes)
        borders = [(tuple(one.shape), str(one.dtype)) for one in arguments]
        kept = folder / f"{key_of(module, (spec, borders, sorted(map(str, shapes.items()))))}.onnx"
        if kept.is_file():
            return onnx.ModelProto.FromString(kept.read_bytes())
        made = trace(module, spec, arguments, shapes)
        folder.mkdir(exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}")
        draft.write_bytes(made.SerializeToString())
        draft.replace(kept)
        return made

    export_graph.plain = trace  # type: ignore[attr-defined]
    return export_graph


def prepare(anew: bool, folder: Path) -> None:
    """Before a test: traced graphs are kept, or, with `anew`, are not. What was never imported is left alone."""
    module: Any = sys.modules.get(MODULE)
    if module is None:
        return
    plain = getattr(module.export_graph, "plain", module.export_graph)
    module.export_graph = plain if anew else keeping(plain, folder)
