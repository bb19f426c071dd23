"""The folder of a checkpoint, judged by its files alone: names, sizes, strides. Torch-free, so that a wrong folder is refused
before seconds of imports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from digseg_engine.bundle import MANIFEST
from digseg_engine.errors import CheckpointError
from digseg_engine.folders import meant_instead
from digseg_engine.named import SHIPPED_CHECKPOINT

BUNDLED = SHIPPED_CHECKPOINT
CONFIG = "digseg.json"
CHECKPOINT_FORMAT = "digseg.checkpoint/1"
PARTS = ("vae/config.json", "unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json")
WEIGHTS = {"vae": "diffusion_pytorch_model", "text_encoder": "model", "student": "model"}  # what an export reads
LARGE = 1 << 30  # bytes of stored weights from which a checkpoint is read one module at a time
WANTED = ("*/config.json", "*/*.safetensors", "*/*.safetensors.index.json", "tokenizer/*", "scheduler/*", "*.json")


def check_start(source: str | Path) -> Path | None:
    """The local directory called `source`, or the bundled checkpoint for its name; None for what looks like a hub id.

    Raises CheckpointError when it is none of them.
    """
    folder, name = Path(source), str(source)
    if folder.is_dir():
        return folder
    if name == BUNDLED.name:
        return BUNDLED
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise CheckpointError(f"{name} is neither a directory nor a hub id; expected digseg-tiny, a Stable Diffusion "
                              "directory in diffusers' format, or a name such as owner/model")  # fmt: skip
    return None


def find_directory(source: str | Path) -> Path:
    """`check_start`, and a hub repository `owner/name` is brought to the local cache. Raises CheckpointError."""
    if (folder := check_start(source)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(WANTED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{source} is not a local directory and could not be downloaded: {reason}; check the name "
                              "and the network, or give the path of a downloaded copy") from error  # fmt: skip


def find_start(source: str) -> Path:
    """The directory to train from. Raises CheckpointError for an exported bundle, which holds no weights to train."""
    folder = find_directory(source)
    if (folder / MANIFEST).is_file() and not (folder / CONFIG).is_file():
        raise CheckpointError(f"{source} is an exported bundle, which cannot be trained; expected the checkpoint it was made "
                              "from, such as digseg-tiny or RUN/checkpoint")  # fmt: skip
    return folder


def text_width(folder: Path) -> int:
    """Features of a token in a Stable Diffusion directory's text encoder; 0 where that cannot be read."""
    try:
        return int(json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # loading the directory says what is wrong with it


def read_config(folder: Path) -> dict[str, Any]:
    """`digseg.json` without its format. Raises CheckpointError when it is missing, damaged or of another format."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} not found; expected a directory written by `digseg train`")
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a DiGSeg checkpoint: {path.name} not found; expected the directory "
                              f"written by `digseg train`{meant_instead(folder)}")  # fmt: skip
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = body.pop("format", None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; restore it from the training run") from error
    if found != CHECKPOINT_FORMAT:
        raise CheckpointError(f"{path}: format {found!r}, expected {CHECKPOINT_FORMAT!r}; use a matching release")
    return body


def picture_size(folder: Path) -> int:
    """Side of the training pictures in pixels. Raises CheckpointError."""
    size = read_config(folder).get("image_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{folder / CONFIG}: image_size is {size!r}; expected pixels")
    return size


def weights_of(folder: Path) -> list[Path]:
    """The weight files that an export reads."""
    return [folder / part / f"{name}.safetensors" for part, name in WEIGHTS.items()]


def is_large(folder: Path) -> bool:
    """Are the weights of this checkpoint over `LARGE`?"""
    return sum(path.stat().st_size for path in weights_of(folder) if path.is_file()) > LARGE


def check_complete(folder: Path) -> None:
    """Raises CheckpointError for the first file that an export reads and that is not there."""
    for path in [*(folder / part for part in PARTS), *weights_of(folder)]:
        if not path.is_file():
            raise CheckpointError(f"{path} not found; expected a complete checkpoint as written by `digseg train`")


def stride_of(folder: Path) -> int:
    """`Checkpoint.stride` from the configurations alone. Raises CheckpointError when they cannot be read."""
    try:
        blocks = [len(json.loads((folder / part / "config.json").read_text())[key])
                  for part, key in (("vae", "block_out_channels"), ("unet", "down_block_types"))]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"a configuration of {folder} cannot be read: {error!r:.500}; restore it from where it came"
        ) from error
    return int(2 ** (sum(blocks) - 2))
