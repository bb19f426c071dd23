"""Turn a trained checkpoint into a verified bundle."""

from digseg_engine import __version__ as __version__  # first of all: it turns ONNX Runtime's telemetry off
