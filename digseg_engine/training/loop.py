"""One training loop for every stage: accelerate, cosine schedule, EMA, CSV log, curve, exact resume.

A stage supplies a module and a loss that is a pure function of (module, number of the micro-batch), so that a resumed
run repeats the interrupted one bit for bit on the same machine, and several processes (`accelerate launch`) share the
micro-batches of a step: it has as many pictures for any number of them.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from digseg_engine.errors import TrainingError, UsageError
from digseg_engine.files import write_json
from digseg_engine.training import sharding
from digseg_engine.training.averaging import Averaged, trained_weights
from digseg_engine.training.interruption import Interruption, TrainingInterruptedError
from digseg_engine.training.log import Log
from digseg_engine.training.lora import Adapters
from digseg_engine.training.meter import Meter
from digseg_engine.training.record import read_settings
from digseg_engine.training.stage_timer import StageTimer
from digseg_engine.training.state import (
    discard_states,
    fingerprint,
    load_state,
    newest_state,
    put_trained,
    remove_older,
    save_state,
    step_of,
    trained,
)
from digseg_engine.training.thrift import autocast, make_optimizer, recomputing, resolve_precision, tf32
from digseg_engine.training.trackers import MODULES, RUN_ID, open_trackers
from digseg_engine.training.validation import TABLE, Validation, Validator, undisturbed

FREE = (
    "save_every",
    "save_minutes",
    "compile",
    "stop",
    "shard",
    "tensorboard",
    "wandb",
)  # settings that a resumed run may change
Parts = Mapping[str, Tensor]  # what a loss is made of, for the log
Loss = Callable[[nn.Module, int], tuple[Tensor, Parts]]


@dataclass(frozen=True)
class StageConfig:
    """How long and how fast one stage trains. What stands here is neutral; the values of a run stand in its recipe."""

    steps: int
    batch: int
    learning_rate: float
    prompts: int = 1  # prompts asked about every picture of a batch
    warmup: int = 0  # steps over which the rate rises
    weight_decay: float = 0.0
    clip: float = math.inf  # norm of the gradients
    ema: float = 0.0  # share of the averaged weights that a step keeps
    accumulate: int = 1  # micro-batches per step, of all processes together
    precision: str = "auto"  # mixed precision: no, bf16 or fp16; auto: bf16 on a GPU that has it, else no
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    average_on_cpu: bool = False  # the averaged weights lie in the CPU's memory
    lora: int = 0  # rank of adapters in the U-Net, which train in its place; 0: all of it trains
    channels_last: bool = False  # the memory format of the weights
    tf32: bool = True  # float32 products of an NVIDIA GPU
    save_every: int = 500
    save_minutes: float = 15.0  # a state is saved at least so often
    stop: int | None = None  # leave off here, short of the end of the schedule
    compile: bool = False  # torch.compile the forward pass (needs a C++ compiler on a CPU)
    optimizer: str = "adamw"  # or adamw8bit, muon
    shard: bool = False  # several processes divide weights, gradients, moments and averages (stages of the reference)
    tensorboard: bool = False  # also log for TensorBoard, under the stage's `tensorboard`
    wandb: bool = False  # also log for Weights & Biases, under the stage's `wandb`
    validate_every: int = 0  # steps between two validations of a stage that segments; 0: none
    validate_pictures: int = 20  # of every validation set, chosen by the run's seed
    early_stop: int = 0  # end after so many validations without a better mean IoU; 0: never


def train_stage(
    name: str, module: nn.Module, loss: Loss, config: StageConfig, folder: Path, resume: bool, seed: int = 0,
    override: bool = False, validator: Validator | None = None,
) -> nn.Module:  # fmt: skip
    """Train `module` in place for `config.steps` steps and leave it with its averaged (EMA) weights; with a `validator`, with
    the best ones of `config.validate_every` (see `validation.py`). Adapters (`config.lora`) are merged in the end, and also when
    it fails. Several processes must be able to share `config.accumulate` evenly (see `run.divided`).

    Writes `folder/log.csv`, `folder/curve.png` and states under `folder/state` (see `state.py`). With resume=True it goes
    on from the last one and says from where; `override` lets other settings than the stored ones through. Raises
    TrainingError when the loss stops being finite, or the stored run had another configuration or cannot be read;
    TrainingInterruptedError, with the state saved, on Ctrl-C or SIGTERM.
    """
    accelerator = _accelerator(config)
    if config.accumulate % accelerator.num_processes:
        raise UsageError(f"{name} has {config.accumulate} micro-batches a step, expected a multiple of the "
                         f"{accelerator.num_processes} processes; set accumulate to one")  # fmt: skip
    torch.manual_seed(seed)
    module.train()
    adapters = Adapters(module, config.lora) if config.lora else None
    if config.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average, taught = averaged(module, config), module
    if sharding.divides(name, config, accelerator.num_processes):
        taught = _divided(name, module, average, config, accelerator)
    weights = list(trained_weights(taught))
    optimizer = make_optimizer(config.optimizer, weights, config.learning_rate, config.weight_decay)
    wrapped, optimizer = taught, accelerator.prepare(optimizer)
    if taught is module:
        wrapped = accelerator.prepare(module)
    forward: Any = torch.compile(wrapped) if config.compile else wrapped
    states, frozen = folder / "state", fingerprint(module)
    try:
        state = newest_state(states) if resume else None
        accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if accelerator.is_main_process:
            _prepare_folder(folder, config, resume, override, step_of(state))
        accelerator.wait_for_everyone()
        start = 0 if state is None else load_state(accelerator, state, taught, average, optimizer, frozen)
        if resume and accelerator.is_main_process:
            remove_older(states)
            print(f"{name}: going on at step {start} of {config.steps}", flush=True)
        with undisturbed(accelerator.device):
            trackers = open_trackers(config, folder, start) if accelerator.is_main_process else []
        log = Log(folder / "log.csv", start, accelerator.is_main_process, trackers)
        validation = Validation(validator, config.validate_every, config.early_stop, folder, accelerator)
        validation.restore(state, start)
        spared = recomputing(config.gradient_checkpointing, taught)
        try:
            with Interruption() as interruption, spared, tf32(config.tf32):
                work = Work(
                    name, accelerator, taught, average, optimizer, log, validation, states, interruption, frozen
                )
                done = _run_steps(work, forward, loss, config, start)
        finally:
            log.close()
        put_trained(module, sharding.gathered(trained(average.module)))
        if taught is not module:
            module.to(accelerator.device)
        validation.end(module, name, done)
    finally:
        _leave_plain(accelerator, wrapped, module, adapters)
    module.eval()
    return module


@dataclass(frozen=True)
class Work:
    """What the steps of one stage work on."""

    name: str
    accelerator: Accelerator
    module: nn.Module
    average: Averaged
    optimizer: Any
    log: Log
    validation: Validation
    states: Path
    interruption: Interruption
    frozen: str | None  # the fingerprint of what does not train

    def save(self, step: int) -> None:
        watched = self.validation.record(), self.validation.best
        save_state(
            self.accelerator, self.states, step, self.module, self.average, self.optimizer, *watched, self.frozen
        )
        self.log.draw(self.name)


def _run_steps(work: Work, forward: Any, loss: Loss, config: StageConfig, start: int) -> int:
    """The steps from `start` on; returns how many are done, fewer than asked for where validation says that it is enough."""
    accelerator, optimizer, validation = work.accelerator, work.optimizer, work.validation
    last = start if validation.exhausted else config.stop or config.steps
    pictures = config.batch * config.accumulate
    done, meter = start, Meter(accelerator.device)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    timer = StageTimer(work.name, start, last, config.save_minutes, accelerator.is_main_process)
    with _bar(accelerator.is_main_process) as bar:
        task = bar.add_task(work.name, total=config.steps, completed=start, loss="", validation=validation.said)
        for step in range(start, last):
            rate = config.learning_rate * _cosine(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = _accumulate(work, forward, loss, config, step)
            accelerator.clip_grad_norm_(weights, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            work.average.update_parameters(work.module)
            done = step + 1
            meter.count(pictures)
            work.log.note(parts)
            if done % 10 == 0 or done in (1, last):
                work.log.add(done, rate, meter.read())
            said = bar.tasks[task].fields["loss"]
            if accelerator.device.type == "cpu" or step % 10 == 0:  # reading a loss waits for the GPU
                said = " ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
            bar.update(task, advance=1, loss=said)
            timer.tell(done, validation.said)
            if validation.due(done, config.steps):
                with meter.paused():
                    validation.run(work.average, work.log, work.name, done)
                bar.update(task, validation=validation.said)
            enough = validation.exhausted
            interrupted, due = _anywhere(accelerator, work.interruption.came, timer.due())
            if interrupted or due or enough or done % config.save_every == 0 or done == last:
                with meter.paused():
                    work.save(done)
                timer.saved()
            if enough:
                break
            if interrupted and done < last:
                raise TrainingInterruptedError(f"{work.name} was interrupted and saved after step {done} of {config.steps}; "
                                          "continue with the same command and --resume",
                                               work.interruption.number or SIGINT)  # fmt: skip
    if validation.exhausted and accelerator.is_main_process:
        print(f"{work.name}: stopped after step {done} of {config.steps}: {config.early_stop} validations without a better mean "
              "IoU", flush=True)  # fmt: skip
    return done


def averaged(module: nn.Module, config: StageConfig) -> Averaged:
    """The running average of a module's weights, on its device or on the CPU."""
    return Averaged(module, config.ema, torch.device("cpu") if config.average_on_cpu else None)


def _divided(
    name: str, module: nn.Module, average: Averaged, config: StageConfig, accelerator: Accelerator
) -> nn.Module:
    """A copy of the module that trains with its weights divided, as its average is then; the module waits on the CPU."""
    sharding.check_sharding(name, config)
    place = accelerator.device, accelerator.num_processes
    taught = sharding.sharded(module, *place)
    average.divide(module.to("cpu"), *place)
    return taught


def unwrap(module: Any) -> Any:
    """The plain module behind DistributedDataParallel or torch.compile."""
    module = getattr(module, "_orig_mod", module)
    return getattr(module, "module", module)


def _accelerator(config: StageConfig) -> Accelerator:
    """This stage's own accelerator. The library shares one precision per process, so that of the last stage is forgotten
    (of the shared state only the precision and plugins are lost, process group and device stay)."""
    AcceleratorState._reset_state(reset_partial_state=False)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        raise UsageError("accelerate was told to use FSDP, which wraps more than a stage trains; launch without it (--multi_gpu "
                         "--num_processes N) and add --set reference.shard=true")  # fmt: skip
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)  # a student reads no `conv_out`
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=resolve_precision(config.precision),
        kwargs_handlers=[parallel],
    )


def _leave_plain(accelerator: Accelerator, wrapped: nn.Module, module: nn.Module, adapters: Adapters | None) -> None:
    """Take off what mixed precision put on the module's `forward` (the next stage may want another precision), and merge
    adapters."""
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    module.__dict__.pop("forward", None)
    if adapters is not None:
        adapters.merge()


def _anywhere(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether any process says so, for every flag; all processes get the same answer."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=accelerator.device), "sum")
    return [bool(count > 0) for count in counts]


def _accumulate(work: Work, forward: Any, loss: Loss, config: StageConfig, step: int) -> Parts:
    """Add up the gradients of this process's micro-batches of one step; returns the parts of the last loss."""
    accelerator, values = work.accelerator, []
    parts: Parts = {}
    first, end = step * config.accumulate, (step + 1) * config.accumulate
    numbers = range(first + accelerator.process_index, end, accelerator.num_processes)
    for number in numbers:
        ready = number == numbers[-1] or accelerator.num_processes == 1
        with nullcontext() if ready else accelerator.no_sync(forward):
            with autocast(accelerator.device.type, accelerator.mixed_precision):
                value, parts = loss(forward, number)
            accelerator.backward(value / len(numbers))
        values.append(value.detach())
    total = torch.stack(values)
    if not bool(total.isfinite().all()):  # the one point of a step that waits for a GPU
        value, number = next((value, n) for value, n in zip(total.tolist(), numbers) if not math.isfinite(value))
        raise TrainingError(f"loss is {value}, expected a finite number, in {work.name}, step {step + 1}, "
                            f"{culprits(loss, work.module, number)}; go on from the last saved state with a lower learning rate: "
                            f"the same command with --resume --override --set {work.name}.learning_rate="
                            f"{config.learning_rate / 2:g}")  # fmt: skip
    return parts


def culprits(loss: Any, module: nn.Module, number: int) -> str:
    """Batch `number` in words: its files or scenes, where the loss draws from `batches` (itself or through its `source`), and
    weights that are not finite, which no picture is to blame for."""
    drawn = getattr(loss, "source", loss)
    batches: Any = getattr(drawn, "batches", None)
    pictures = dict.fromkeys(batches.pictures(number, drawn.config.batch)) if hasattr(batches, "pictures") else ()
    broken = next(
        (
            name
            for name, weight in module.named_parameters()
            if not all(part.isfinite().all() for part in sharding.local([weight]))
        ),
        None,
    )
    said = f"batch {number}" + (f" ({', '.join(pictures)})" if pictures else "")
    return said if broken is None else f"{said}, weights {broken} are not finite either"


def _cosine(step: int, config: StageConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    part = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def _prepare_folder(folder: Path, config: StageConfig, resume: bool, override: bool, step: int) -> None:
    """Compare the settings with the stored ones, keep both where they differ, and clear what a new run begins without."""
    folder.mkdir(parents=True, exist_ok=True)
    path, body = folder / "config.json", asdict(config)
    if not resume:
        for old in ("log.csv", TABLE, RUN_ID):
            (folder / old).unlink(missing_ok=True)
        for old in MODULES:  # the trackers' own folders
            shutil.rmtree(folder / old, ignore_errors=True)
        discard_states(folder / "state")
    elif step and path.is_file():
        stored = read_settings(path)
        changed = [key for key in body if stored.get(key) != body[key] and key not in FREE]
        if changed and not override:
            raise TrainingError(f"cannot resume {folder}: {', '.join(changed)} differ from the stored run; expected "
                                f"{[stored.get(k) for k in changed]}, got {[body[k] for k in changed]}; "
                                "repeat the original command, add --override, or start a new folder")  # fmt: skip
        if changed:
            write_json(folder / f"config-until-{step}.json", stored)
    write_json(path, body)


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[validation]}"),
        refresh_per_second=2, disable=not shown,
    )  # fmt: skip
