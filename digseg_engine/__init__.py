"""DiGSeg Engine: text-prompted segmentation from an exported bundle.

The public names are here and are imported when they are first used, so that `import digseg_engine` costs next to nothing.
ONNX Runtime's telemetry is off in every process that imports this package, unless the user has set the variable.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from digseg_engine.errors import BackendError as BackendError
    from digseg_engine.errors import BundleError as BundleError
    from digseg_engine.errors import CheckpointError as CheckpointError
    from digseg_engine.errors import DigsegError as DigsegError
    from digseg_engine.errors import InputError as InputError
    from digseg_engine.errors import MissingPackageError as MissingPackageError
    from digseg_engine.errors import OutputError as OutputError
    from digseg_engine.errors import TrainingError as TrainingError
    from digseg_engine.errors import UsageError as UsageError
    from digseg_engine.errors import VerificationError as VerificationError
    from digseg_engine.runtime.backends import register_backend as register_backend
    from digseg_engine.runtime.encoding import Encoding as Encoding
    from digseg_engine.runtime.engine import Engine as Engine
    from digseg_engine.runtime.pipeline import Quality as Quality
    from digseg_engine.runtime.result import Segmentation as Segmentation

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported, which nothing above does

__version__ = "0.1.0"
_HOMES = {
    "Encoding": "runtime.encoding",
    "Engine": "runtime.engine",
    "Quality": "runtime.pipeline",
    "Segmentation": "runtime.result",
    "register_backend": "runtime.backends",
    "BackendError": "errors",
    "BundleError": "errors",
    "CheckpointError": "errors",
    "DigsegError": "errors",
    "InputError": "errors",
    "MissingPackageError": "errors",
    "OutputError": "errors",
    "TrainingError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """A public name, from the module it lives in; from then on it is an ordinary attribute."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
