"""What an export refuses before its work: model, output, pictures, shapes. Torch-free, so that a wrong word costs no imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digseg_engine.bundle import check_target
from digseg_engine.errors import UsageError
from digseg_engine.folders import check_target as check_folder
from digseg_engine.folders import recover
from digseg_engine.model.folder import BUNDLED, LARGE, check_complete, is_large, picture_size, read_config, stride_of
from digseg_engine.precisions import spec_of, those
from digseg_engine.runtime.profile import Profile
from digseg_export.few_step_folder import MARK
from digseg_export.own_pictures import check_folders
from digseg_export.plan_builder import check_labels

if TYPE_CHECKING:
    from digseg_export.request import Request

PLAIN_NAMES = ("checkpoint", "model", "final", "best", "last")  # folders that say nothing about which model it is


@dataclass(frozen=True)
class Ready:
    """What is known of an export before it starts: the model's name, what its output replaces, its shapes (None: free), whether
    it has the presence readout."""

    name: str
    replaces: str
    profile: Profile | None
    presence: bool


def default_output(model: Path | None, precision: str) -> Path:
    """In the current directory: `digseg-tiny-fp16` for the bundled model, `b200-fp16` for `runs/b200/checkpoint`, else
    `<model>-<precision>`."""
    folder = (model or BUNDLED).resolve()
    named = folder.parent if folder.name in PLAIN_NAMES and folder.parent.name else folder
    return Path(f"{named.name}-{precision}")


def check_bundle(request: Request, model: Path | None, output: Path) -> Ready:
    """Raises UsageError, InputError or CheckpointError for the first thing that the export of a bundle cannot use."""
    folder = model or BUNDLED
    replaces = "an older bundle" if check_target(output) else "nothing"
    recover(folder)
    config = read_config(folder)
    check_complete(folder)
    check_folders(*(folder for folder in (request.calibration, request.verify_data) if folder is not None))
    names = request.names()
    check_size(folder, request.precision, names is not None)
    if names is not None and (request.format != "onnx" or request.device is not None):
        check_labels(names.folding)
    profile = request.profile(picture_size(folder), stride_of(folder))
    return Ready(str(config.get("name")), replaces, profile, _has_presence(config))


def _has_presence(config: dict[str, Any]) -> bool:
    student = config.get("student")
    return isinstance(student, dict) and bool(student.get("presence_width"))


def check_few_step(model: Path | None, precision: str, output: Path) -> None:
    """Raises UsageError for what the diffusers layout does not take, or an output that cannot be used."""
    check_folder(output, MARK)
    if not spec_of(precision).few_step:
        raise UsageError(f"--precision {precision} does not apply to --layout diffusers: ONNX Runtime's own classes run it, "
                         f"and they take {those(lambda spec: spec.few_step)}")  # fmt: skip
    folder = model or BUNDLED
    recover(folder)
    read_config(folder)
    if is_large(folder):
        raise UsageError(f"--layout diffusers does not apply to {model}: its weights are over 1 GiB, and this layout is "
                         "traced from memory; use --layout bundle")  # fmt: skip


def check_size(folder: Path, precision: str, folded: bool = False) -> None:
    """Raises UsageError for a precision that a large checkpoint is not exported in, and for a vocabulary."""
    if folded and is_large(folder):
        raise UsageError(f"--vocabulary does not apply to {folder}: its weights are over {LARGE >> 20} MiB, and graphs are "
                         "folded in memory; export it without, and keep the prompts with Engine.prepare")  # fmt: skip
    if spec_of(precision).quantised and is_large(folder):
        raise UsageError(
            f"--precision {precision} does not apply to {folder}: its weights are over {LARGE >> 20} MiB, and choosing "
            f"the layers to leave out runs the whole graph many times in memory; use {those(lambda spec: spec.reduced)}"
        )
