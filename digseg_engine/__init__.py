"""DiGSeg Engine: text-prompted segmentation from an exported bundle. The heavy parts are imported when they are used.

ONNX Runtime's telemetry is off in every process that imports this package, unless the user has set the variable.
"""

import os

from digseg_engine.errors import DigsegError
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.result import Segmentation

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported, which nothing above does

__all__ = ["DigsegError", "Engine", "Segmentation", "__version__"]
__version__ = "0.1.0"
