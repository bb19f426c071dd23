"""The folder of one training run: every stage leaves its weights there once, the finished checkpoint comes last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from digseg_engine.errors import UsageError
from digseg_engine.model.pretrained import Checkpoint, save_checkpoint
from digseg_engine.training.log import event_writer
from digseg_engine.training.loop import Loss, StageConfig, train_stage
from digseg_engine.training.record import record_run

Config = TypeVar("Config")
Plain = (bool, int, float, str)  # settings that `with_settings` can change


def stages_of(config: Any) -> dict[str, StageConfig]:
    """The stages of a run's settings, in order."""
    return {name: value for name, value in vars(config).items() if isinstance(value, StageConfig)}


def scaled(config: Config, factor: float) -> Config:
    """The same run with `factor` times the steps and scenes (at least a handful), for trials and tests."""
    if factor <= 0:
        raise UsageError(f"scale must be above 0, got {factor}")
    short: dict[str, Any] = {
        name: replace(stage, steps=max(2, round(stage.steps * factor))) for name, stage in stages_of(config).items()
    }
    return replace(config, **short, scenes=max(32, round(config.scenes * factor)))  # type: ignore[type-var,attr-defined]


def with_settings(config: Config, changes: Sequence[str]) -> Config:
    """The same run with changes such as "student.steps=500" or "scenes=100" applied.

    Raises UsageError for a name that the run does not have or a value of another kind.
    """
    for change in changes:
        path, _, text = change.partition("=")
        stage, _, name = path.rpartition(".")
        owner: Any = config if not stage else stages_of(config).get(stage)
        kinds = {key: value for key, value in vars(owner).items() if isinstance(value, Plain)} if owner else {}
        if name not in kinds:
            staged = [f"{each}.{setting.name}" for each in stages_of(config) for setting in fields(StageConfig)]
            raise UsageError(f"--set {change!r}: {path!r} is no setting of this run; expected one of "
                             f"{', '.join(kinds or staged)}")  # fmt: skip
        value = _parse(text, kinds[name], change)
        part = replace(owner, **{name: value})
        config = part if not stage else replace(config, **{stage: part})  # type: ignore[type-var]
    return config


def _parse(text: str, old: Any, change: str) -> Any:
    """`text` as a value of the kind of `old`."""
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(old)(text)
    except (ValueError, KeyError) as error:
        kind = "true or false" if isinstance(old, bool) else f"a {type(old).__name__}"
        raise UsageError(f"--set {change!r}: expected {kind}, as the present value {old}, got {text!r}") from error


def with_tensorboard(config: Config) -> Config:
    """The same run, every stage also logging for TensorBoard. Raises UsageError when that is not installed."""
    event_writer()
    more: dict[str, Any] = {name: replace(stage, tensorboard=True) for name, stage in stages_of(config).items()}
    return replace(config, **more)  # type: ignore[type-var]


@dataclass
class Run:
    """Raises UsageError when `out` holds something and `resume` is not set."""

    out: Path
    resume: bool
    seed: int
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The first one made decides for the whole program: without `cpu` it takes N processes without GPUs for N programs.
        processes = PartialState(cpu=not torch.cuda.is_available())
        if not self.resume and self.out.is_dir() and any(self.out.iterdir()):
            raise UsageError(f"{self.out} is not empty; expected a new folder, or --resume to continue the run in it")
        processes.wait_for_everyone()  # nobody writes before everybody has looked

    def describe(self, settings: Any, **more: Any) -> None:
        """Write the settings to `train.json`."""
        if PartialState().is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "train.json").write_text(json.dumps({**more, **asdict(settings)}, indent=2) + "\n")
        PartialState().wait_for_everyone()

    def stage(self, name: str, module: nn.Module, loss: Loss, config: StageConfig) -> None:
        """Train `module` in place, or read the weights this stage left earlier."""
        folder = self.out / name
        weights = folder / "weights.safetensors"
        if not weights.is_file():
            train_stage(name, module, loss, config, folder, self.resume, self.seed)
            if PartialState().is_main_process:
                save_file({key: value.contiguous() for key, value in module.state_dict().items()}, weights)
            PartialState().wait_for_everyone()
        module.load_state_dict(load_file(weights))
        module.eval()
        self.done.append(name)

    def finish(self, checkpoint: Checkpoint, tokenizer_json: str, start: Path | None = None) -> Path:
        """Write the checkpoint and how it was made (and how the checkpoint `start` was); returns its directory."""
        folder = self.out / "checkpoint"
        if PartialState().is_main_process:
            save_checkpoint(checkpoint, tokenizer_json, folder)
            record_run(self.out, self.done, folder, start)
        PartialState().wait_for_everyone()
        return folder


def move(checkpoint: Checkpoint) -> Checkpoint:
    """All parts of a checkpoint to this process's device."""
    device = PartialState().device if torch.cuda.is_available() else torch.device("cpu")
    for module in (checkpoint.vae, checkpoint.text_encoder, checkpoint.reference, checkpoint.student):
        module.to(device)
    return checkpoint


def freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.eval().requires_grad_(False)
