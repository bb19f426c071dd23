"""Stand-in `tensorrt` modules: the names and argument lists of 10.3, 10.16 and 11.1, and no behaviour worth the name.

They answer one question: does our code use only what every supported release has? A name that a release lacks raises
AttributeError, a call with arguments its bindings do not take raises TypeError. `tensorrt_api.json` holds the lists.
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
VERSIONS = tuple(API["versions"])
ABSTRACT = {"ILogger", "IProgressMonitor", "IErrorRecorder"}  # classes that users derive from
NESTED = {"ILogger": "Severity", "Logger": "Severity"}
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
    ("OnnxParser", "get_error"): "ParserError",
}


def fits(overloads: list[list[list[Any]]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does one overload take these arguments?"""
    for parameters in overloads:
        names = [name for name, _ in parameters]
        needed = [name for name, default in parameters[len(args) :] if not default and name not in kwargs]
        if len(args) <= len(names) and set(kwargs) <= set(names[len(args) :]) and not needed:
            return True
    return False


class Base:
    """An instance of a bound class: only its own names can be read or set; calls are recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        overloads = self._names.get("__init__")
        if overloads is not None and type(self)._bound and not fits(overloads, args, kwargs):
            raise TypeError(f"{self._kind}() does not take {args} {kwargs}")
        self.__dict__["values"] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._names:
            raise AttributeError(f"tensorrt {self._version}: {self._kind} has no {name}")
        if self._names[name] is None:
            found = self.__dict__["values"].get(name, self._script.get((self._kind, name)))
            return found
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self)._bound and (name not in self._names or self._names[name] is not None):
            raise AttributeError(f"tensorrt {self._version}: {self._kind} has no property {name}")
        if type(self)._bound:
            self.__dict__["values"][name] = value
            self._log.append((self._kind, name, (value,)))
        else:
            self.__dict__[name] = value

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not fits(self._names[name], args, kwargs):
            raise TypeError(f"tensorrt {self._version}: {self._kind}.{name} does not take {args} {kwargs}")
        self._log.append((self._kind, name, args))
        scripted = self._script.get((self._kind, name))
        if scripted is not None:
            return scripted(*args) if callable(scripted) else scripted
        kind = RETURNS.get((self._kind, name))
        return getattr(self._module, kind)._make() if kind else None


def standin(version: str, script: dict[tuple[str, str], Any] | None = None) -> types.ModuleType:
    """A module with the names of one release. script: {(class, name): value or function} for what must answer."""
    module = types.ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    module.log = []  # type: ignore[attr-defined]
    for name, body in API["versions"][version]["classes"].items():
        if body["kind"] == "enum":
            kind: Any = enum.IntEnum(
                name, {v: i for i, v in enumerate(n for n, call in body["names"].items() if call is None)}
            )
        else:
            shared = {"_names": body["names"], "_kind": name, "_version": version, "_log": module.log,
                      "_script": script or {}, "_module": module, "_bound": True}  # fmt: skip
            kind = type(name, (Base,), shared)
            kind._make = classmethod(_make)
            if name in ABSTRACT:
                kind.__init_subclass__ = classmethod(lambda cls: setattr(cls, "_bound", False))
        setattr(module, name, kind)
    for owner, inner in NESTED.items():
        setattr(getattr(module, owner), inner, getattr(module, inner))
    return module


def _make(kind: Any) -> Any:
    made = kind.__new__(kind)
    made.__dict__["values"] = {}
    return made
