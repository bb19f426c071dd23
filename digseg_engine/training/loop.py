"""One training loop for every stage: accelerate, cosine schedule, EMA, CSV log, curve, exact resume.

A stage supplies a module and a loss that is a pure function of (module, number of the micro-batch), so that a resumed
run repeats the interrupted one bit for bit on the same machine, and several processes (`accelerate launch`) share the
micro-batches that one process would have accumulated.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from digseg_engine.errors import TrainingError
from digseg_engine.training.log import Log
from digseg_engine.training.muon import Muon

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.98)),
    "muon": Muon,
}
FREE = ("save_every", "compile", "stop", "tensorboard")  # settings that a resumed run may change
Loss = Callable[[nn.Module, int], tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True)
class StageConfig:
    """How long and how fast one stage trains."""

    steps: int
    batch: int
    learning_rate: float
    prompts: int = 16  # prompts asked about every picture of a batch
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.995
    accumulate: int = 1  # micro-batches per step and process
    precision: str = "no"  # mixed precision: no, bf16 or fp16
    save_every: int = 500
    stop: int | None = None  # leave off here, short of the end of the schedule
    compile: bool = False  # torch.compile the forward pass (needs a C++ compiler on a CPU)
    optimizer: str = "muon"  # or "adamw"
    tensorboard: bool = False  # also log for TensorBoard, under the stage's `tensorboard`


@dataclass
class _Progress:
    """Step counter that accelerate saves with the model."""

    step: int = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])


def train_stage(
    name: str, module: nn.Module, loss: Loss, config: StageConfig, folder: Path, resume: bool, seed: int = 0
) -> nn.Module:
    """Train `module` in place for `config.steps` steps and leave it with its averaged (EMA) weights.

    Writes `folder/log.csv`, `folder/curve.png` and checkpoints under `folder/state`. With resume=True it continues
    from the last one. Raises TrainingError when the loss stops being finite or the stored run had another configuration.
    """
    accelerator = _accelerator(config)
    torch.manual_seed(seed)
    module.train()
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[config.optimizer](weights, config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, config))
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    forward: Any = torch.compile(wrapped) if config.compile else wrapped
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    progress = _Progress()
    accelerator.register_for_checkpointing(average, progress, schedule)
    if accelerator.is_main_process:
        _prepare_folder(folder, config, resume)
    accelerator.wait_for_everyone()
    state = folder / "state"
    if resume and (state / "done").is_file():
        accelerator.load_state(str(state))
    start, last = progress.step, config.stop or config.steps
    log = Log(folder / "log.csv", start, accelerator.is_main_process, config.tensorboard)
    with _bar(accelerator.is_main_process) as bar:
        task = bar.add_task(name, total=config.steps, completed=start, loss="")
        for step in range(start, last):
            parts = _accumulate(accelerator, forward, loss, config, step, _where(name, step, config, state))
            accelerator.clip_grad_norm_(weights, config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(module)
            progress.step = step + 1
            if step % 10 == 0 or step + 1 == last:
                log.add(step, parts, schedule.get_last_lr()[0])
            bar.update(task, advance=1, loss=" ".join(f"{k} {v:.4f}" for k, v in parts.items()))
            if progress.step % config.save_every == 0 or progress.step == last:
                _save_state(accelerator, state)
                log.draw(name)
    log.close()
    module.load_state_dict(average.module.state_dict())
    module.eval()
    return module


def unwrap(module: Any) -> Any:
    """The plain module behind DistributedDataParallel or torch.compile."""
    module = getattr(module, "_orig_mod", module)
    return getattr(module, "module", module)


def _accelerator(config: StageConfig) -> Accelerator:
    """This stage's own accelerator. The library shares one precision per process, so that of the last stage is forgotten
    (of the shared state only the precision and plugins are lost, process group and device stay)."""
    AcceleratorState._reset_state(reset_partial_state=False)
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)  # a student reads no `conv_out`
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=config.precision, kwargs_handlers=[parallel])


def _where(name: str, step: int, config: StageConfig, state: Path) -> str:
    return f"{name}, step {step}: lower the learning rate ({config.learning_rate}) and resume from {state}"


def _accumulate(
    accelerator: Accelerator, forward: Any, loss: Loss, config: StageConfig, step: int, where: str
) -> Mapping[str, float]:
    """Add up the gradients of this process's micro-batches of one step; returns the parts of the last loss."""
    parts: Mapping[str, float] = {}
    for i in range(config.accumulate):
        number = (step * config.accumulate + i) * accelerator.num_processes + accelerator.process_index
        ready = i + 1 == config.accumulate or accelerator.num_processes == 1
        with nullcontext() if ready else accelerator.no_sync(forward):
            with accelerator.autocast():
                value, parts = loss(forward, number)
            if not math.isfinite(float(value.detach())):
                raise TrainingError(f"loss is {float(value.detach())}, expected a finite number, in {where}")
            accelerator.backward(value / config.accumulate)
    return parts


def _cosine(step: int, config: StageConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    part = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def _prepare_folder(folder: Path, config: StageConfig, resume: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path, body = folder / "config.json", asdict(config)
    if resume and path.is_file():
        stored = json.loads(path.read_text())
        changed = [key for key in body if stored.get(key) != body[key] and key not in FREE]
        if changed:
            raise TrainingError(f"cannot resume {folder}: {', '.join(changed)} differ from the stored run; expected "
                                f"{[stored.get(k) for k in changed]}, got {[body[k] for k in changed]}; "
                                "repeat the original command or start a new folder")  # fmt: skip
    elif not resume:
        (folder / "log.csv").unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        (folder / "state" / "done").unlink(missing_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n")


def _save_state(accelerator: Accelerator, state: Path) -> None:
    """A complete state is marked by the file `done`; an interrupted save leaves none."""
    if accelerator.is_main_process:
        (state / "done").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(state), safe_serialization=False)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (state / "done").touch()


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[loss]}"), refresh_per_second=2, disable=not shown
    )
