"""The folder of one training run: every stage leaves its weights there once, the finished checkpoint comes last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from digseg_engine.errors import OutputError, UsageError
from digseg_engine.files import replacing, write_json, write_text
from digseg_engine.folders import check_output
from digseg_engine.model.pretrained import Checkpoint, check_target, save_checkpoint
from digseg_engine.training import sharding
from digseg_engine.training.interruption import TrainingInterruptedError
from digseg_engine.training.loop import FREE, Loss, StageConfig, train_stage
from digseg_engine.training.recipe_files import STORED, RecipeSettings, as_toml
from digseg_engine.training.record import CHANGES, differences, flat, note_changes, record_run, settings_in_force
from digseg_engine.training.state import complete_states, newest_state, step_of
from digseg_engine.training.thrift import NETWORKS, keep_on_device
from digseg_engine.training.trackers import check_trackers
from digseg_engine.training.validation import Validator
from digseg_engine.words import did_you_mean

Config = TypeVar("Config")
WEIGHTS = "weights.safetensors"
# What the weights are.
FIXED = ("config", "init", "source", "slot", "autoencoder", "student_only", "detail_blocks")
FIXED_WITHIN = ("lora",)  # what the weights of a stage are, once it has a state
FREE_OF_RUN = (
    "folder.workers",
    "folder.readers",
    "folder.shard_cache",
    "recipe",
    "quality_pictures",
)  # change no weight
PATIENCE = timedelta(hours=6)  # of processes that wait for each other
WORTH_COMPILING = 100  # steps; compiling takes minutes, which a shorter stage does not win back
ELSEWHERE = {"lr": "learning_rate", "batch_size": "batch", "wd": "weight_decay", "epochs": "steps"}  # in other programs
IDLE = {  # settings that only these stages heed
    "prompts": ("denoiser", "text", "student", "presence"),
    "shard": sharding.STAGES,
    **dict.fromkeys(("validate_every", "validate_pictures", "early_stop"), ("one_step", "few_step", "student")),
}
Plain = (bool, int, float, str)  # settings that `with_settings` can change


def stages_of(config: Any) -> dict[str, StageConfig]:
    """The stages of a run's settings, in order."""
    return {name: value for name, value in vars(config).items() if isinstance(value, StageConfig)}


def scaled(config: Config, factor: float) -> Config:
    """The same run with `factor` times the steps and scenes (at least a handful), for trials and tests.

    Warm-up and the averaging of weights keep their share of a stage: a short run must not end before either begins.
    """
    if factor <= 0:
        raise UsageError(f"scale must be above 0, got {factor}")
    short: dict[str, Any] = {name: _scaled_stage(stage, factor) for name, stage in stages_of(config).items()}
    return replace(config, **short, scenes=max(32, round(config.scenes * factor)))  # type: ignore[type-var,attr-defined]


def _scaled_stage(stage: StageConfig, factor: float) -> StageConfig:
    steps = max(2, round(stage.steps * factor))
    share = steps / stage.steps
    return replace(
        stage,
        steps=steps,
        validate_every=stage.validate_every and max(1, round(stage.validate_every * share)),
        compile=stage.compile and steps >= WORTH_COMPILING,
        warmup=max(1, min(steps - 1, round(stage.warmup * share))),
        ema=round(max(0.0, 1 - (1 - stage.ema) / share), 6),
    )


def divided(config: Config, processes: int) -> Config:
    """The same run with micro-batches that so many processes share evenly, smaller ones where they must be; a step keeps its
    pictures. Raises UsageError where its pictures cannot be shared."""
    shared: dict[str, Any] = {name: _divided(name, stage, processes) for name, stage in stages_of(config).items()}
    return replace(config, **shared)  # type: ignore[type-var]


def _divided(name: str, stage: StageConfig, processes: int) -> StageConfig:
    pieces = processes // math.gcd(stage.accumulate, processes)  # of every micro-batch
    if stage.batch % pieces:
        raise UsageError(f"{processes} processes cannot share the {stage.batch * stage.accumulate} pictures of a step of {name} "
                         f"({stage.batch} x {stage.accumulate}); change them, as with --set {name}.accumulate={processes}, or "
                         "the number of processes")  # fmt: skip
    return replace(stage, batch=stage.batch // pieces, accumulate=stage.accumulate * pieces)


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
            meant = did_you_mean(ELSEWHERE.get(name, name), kinds)
            raise UsageError(f"--set {change!r}: {path!r} is no setting of this run{meant}; expected one of "
                             f"{', '.join(kinds or staged)}")  # fmt: skip
        if stage and stage not in IDLE.get(name, (stage,)):
            heeding = [each for each in IDLE[name] if each in stages_of(config)]
            raise UsageError(f"--set {change!r} has no effect on this stage; {name} is heeded by {', '.join(heeding)} alone; "
                             "leave it out")  # fmt: skip
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


def in_every_stage(config: Config, **settings: Any) -> Config:
    """The same run with these settings in every stage. Raises UsageError when a tracker is asked for and not installed."""
    check_trackers(settings)
    changed: dict[str, Any] = {name: replace(stage, **settings) for name, stage in stages_of(config).items()}
    return replace(config, **changed)  # type: ignore[type-var]


@dataclass
class Run:
    """Raises UsageError when `out` holds something and `resume` is not set, unless all it holds is a run that never
    got to its first saved state."""

    out: Path
    resume: bool
    seed: int
    override: bool = False  # a resumed run may go on with other settings
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The first one made decides for the whole program: without `cpu` it takes N processes without GPUs for N programs.
        # While the first process scores or writes, the others wait, longer than the ten minutes after which PyTorch gives up.
        processes = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        check_output(self.out)
        if not self.resume and self.out.is_dir() and any(self.out.iterdir()) and not self._only_begun():
            raise UsageError(f"{self.out} is not empty; expected a new folder, or --resume to continue the run in it")
        if self.override and not self.resume:
            raise UsageError("--override changes the settings of a run that goes on; it needs --resume")
        if (self.out / "checkpoint").exists():
            check_target(self.out / "checkpoint")  # now, not after days of training
        processes.wait_for_everyone()  # nobody writes before everybody has looked

    def describe(self, settings: Any, **more: Any) -> None:
        """Write the settings to `train.json` and, where a recipe gives them, to `recipe.toml`; or compare them with those of
        the run that goes on.

        Raises UsageError naming every difference, unless `override` is set: then `changes.json` says what changed and when.
        """
        for name, stage in stages_of(settings).items():  # now, not when its turn comes after days
            if sharding.divides(name, stage, PartialState().num_processes):
                sharding.check_sharding(name, stage)
        now = flat({**more, **asdict(settings)})
        before = settings_in_force(self.out) if self.resume and not self._only_begun() else {}
        changed = [name for name in differences(before, now) if before]
        self._refuse(changed, before, now)
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            if changed:
                note_changes(self.out, *self._reached(stages_of(settings)), before, now)
            elif not before:
                _make_folder(self.out)
                if isinstance(settings, RecipeSettings):
                    write_text(self.out / STORED, as_toml(settings))
                write_json(self.out / "train.json", {**more, **asdict(settings)})
                (self.out / CHANGES).unlink(missing_ok=True)
        PartialState().wait_for_everyone()

    def _refuse(self, changed: Sequence[str], before: dict[str, Any], now: dict[str, Any]) -> None:
        fixed_changes = [name for name in changed if name.rpartition(".")[2] not in FREE and name not in FREE_OF_RUN]
        listed = "; ".join(f"{name}: {before.get(name)} before, {now.get(name)} now" for name in fixed_changes)
        if fixed_changes and not self.override:
            raise UsageError(f"cannot resume {self.out} with other settings: {listed}; repeat the original command, add "
                             "--override to go on with the new ones, or start a new folder")  # fmt: skip
        fixed = [name for name in fixed_changes if name in FIXED or self._settled(*name.partition(".")[::2])]
        if fixed:
            raise UsageError(f"cannot resume {self.out} with another {fixed[0]} ({before.get(fixed[0])} before, "
                             f"{now.get(fixed[0])} now), not even with --override: what is trained was trained with it; "
                             "start a new folder")  # fmt: skip

    def _settled(self, stage: str, setting: str) -> bool:
        """Whether what a stage has trained so far was trained with this setting for good."""
        begun = setting in FIXED_WITHIN and bool(complete_states(self.out / stage / "state"))
        return begun or (self.out / stage / WEIGHTS).is_file()

    def _reached(self, stages: Iterable[str]) -> tuple[str, int]:
        """The first stage that is not complete, and its last saved step."""
        for name in stages:
            states = self.out / name / "state"
            if not (self.out / name / WEIGHTS).is_file() and complete_states(states):
                return name, step_of(newest_state(states))
        begun = [name for name in stages if not (self.out / name / WEIGHTS).is_file()]
        return (begun[0] if begun else "", 0)

    def _only_begun(self) -> bool:
        """Whether `out` holds nothing but the start of a run: its settings and caches, no state and no weights."""
        if not (self.out / "train.json").is_file():
            return False
        return not any(self.out.glob(f"*/{WEIGHTS}")) and not any(self.out.glob("*/state/*"))

    def stage(
        self, name: str, module: nn.Module, loss: Loss, config: StageConfig, validator: Validator | None = None
    ) -> None:
        """Train `module` in place, or read the weights this stage left earlier. `validator`: what to choose the best by."""
        folder = self.out / name
        weights = folder / WEIGHTS
        if not weights.is_file():
            train_stage(name, module, loss, config, folder, self.resume, self.seed, self.override, validator)
            if config.stop is not None and config.stop < config.steps:
                raise TrainingInterruptedError(f"{name} was left off after step {config.stop} of {config.steps} as told; "
                                          "continue with --resume and without `stop`")  # fmt: skip
            if PartialState().is_main_process:
                tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
                with replacing(weights) as path:
                    save_file(tensors, path)
            PartialState().wait_for_everyone()
        elif PartialState().is_main_process:
            print(f"{name}: already trained, weights read from {weights}", flush=True)
        module.load_state_dict(load_file(weights))
        module.eval()
        self.done.append(name)

    def finish(self, checkpoint: Checkpoint, tokenizer_json: str, start: Path | None = None) -> Path:
        """Write the checkpoint and how it was made (and how the checkpoint `start` was); returns its directory. Presence
        threshold, largest working size and licence were those of other weights, and are left out."""
        folder = self.out / "checkpoint"
        checkpoint.config = replace(checkpoint.config, presence_threshold=None, image_size_max=None, licence=None)
        if PartialState().is_main_process:
            save_checkpoint(
                checkpoint, tokenizer_json, folder, lambda draft: record_run(self.out, self.done, draft, start)
            )
        PartialState().wait_for_everyone()
        return folder


def move(checkpoint: Checkpoint) -> Checkpoint:
    """All parts of a checkpoint to this process's device."""
    keep_on_device(checkpoint, NETWORKS)
    return checkpoint


def freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.eval().requires_grad_(False)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose another --output") from error
