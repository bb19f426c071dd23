"""DiGSeg Engine: text-prompted segmentation from an exported bundle. The heavy parts are imported when they are used."""

from digseg_engine.errors import DigsegError
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.result import Segmentation

__all__ = ["DigsegError", "Engine", "Segmentation", "__version__"]
__version__ = "0.1.0"
