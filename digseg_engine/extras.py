"""Optional parts of the installation: which packages each brings, whether they are there, and how to get them. Torch-free.

The one place that says what to type: from a clone `pip install -e`, from a wheel or folder the same source again, and from
an index the plain name.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from digseg_engine.errors import MissingPackageError

EXTRAS: dict[str, tuple[str, ...]] = {  # extra -> modules that must be importable
    "cpu": ("onnxruntime",),
    "gpu": ("onnxruntime",),
    "openvino": ("openvino",),
    "train": ("torch", "diffusers", "transformers", "accelerate", "skimage", "matplotlib"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "lora": ("peft",),
    "augment": ("kornia",),
    "remote": ("fsspec", "filelock"),
    "ray": ("ray",),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "contourpy"),
    "hub": ("huggingface_hub",),
    "sign": ("model_signing", "OpenSSL"),
    "export": ("torch", "diffusers", "transformers", "skimage", "onnx", "onnxscript", "onnxruntime"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "onnxruntime-tensorrt-rtx": ("onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx"),
}
OTHERS = {"triton": "triton", "tifffile": "tifffile", "rich": "rich"}  # module -> what pip calls it


def install_line(extra: str) -> str:
    """What to type to get an extra ("train", or several: "gpu,tensorrt"), true for how this copy was installed."""
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file() and (root / "digseg_engine").is_dir():
        here = root == Path.cwd()
        return f'pip install -e "{"." if here else root}[{extra}]"'
    source = _installed_from()
    return f'pip install "digseg-engine[{extra}]{f" @ {source}" if source else ""}"'


def _installed_from() -> str:
    """URL of the folder or wheel this copy was installed from; empty for an index."""
    try:
        text = distribution("digseg-engine").read_text("direct_url.json")
        url = str(json.loads(text)["url"]) if text else ""
    except (PackageNotFoundError, ValueError, KeyError, TypeError):
        return ""
    gone = url.startswith("file:") and not os.path.exists(unquote(urlsplit(url).path))
    return "" if gone else url


def lacking(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def require(what: str, *extras: str, modules: tuple[str, ...] | None = None) -> None:
    """Raises MissingPackageError naming what lacks of the extras (of `modules` alone, when given) and the one line that
    installs it."""
    for extra in extras:
        missing = [module for module in lacking(extra) if modules is None or module in modules]
        if missing:
            raise MissingPackageError(_message(what, missing, extra))


def missing_package(error: ImportError) -> str:
    """The message for an import that failed because a package is not installed; empty when it failed for another reason."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    module = error.name.split(".")[0]
    if find_spec(module) is not None:  # it is there, but broken or too old: that is another matter
        return ""
    for extra, modules in EXTRAS.items():
        if module in modules:
            return _message("this", [module], extra)
    return f"this needs the package {module}, which is not installed; run: pip install {OTHERS.get(module, module)}"


def _message(what: str, missing: list[str], extra: str) -> str:
    packages = f"package{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
    verb = "are" if len(missing) > 1 else "is"
    return f"{what} needs the {packages}, which {verb} not installed; run: {install_line(extra)}"
