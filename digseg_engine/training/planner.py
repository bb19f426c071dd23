"""What a run will need before it begins: steps, epochs, hours and memory of every stage, and what to change so that it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from digseg_engine.extras import lacking
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.memory import STAGES, StageMemory, count_stage
from digseg_engine.words import readable

GB = 1e9
ADVISED_RANK = 16  # of adapters; every rank up to 64 needs nearly the same memory


@dataclass(frozen=True)
class StagePlan:
    """One stage: its settings, its memory, and the changes under which it fits (empty when it fits as it is)."""

    name: str
    config: StageConfig
    memory: StageMemory
    fitted: StageMemory | None = None  # with the changes; None: nothing fits
    changes: tuple[str, ...] = ()

    def fits(self, limit: float | None) -> bool:
        return limit is None or self.memory.peak <= limit


Count = Callable[[str, StageConfig], StageMemory]


def plan(
    outline: Callable[[], Checkpoint], stages: Mapping[str, StageConfig], size: int, limit: float | None = None,
    encodes: bool = True, precision: str = "no", imitate_every: int = 0, say: Callable[[str], object] = str,
) -> list[StagePlan]:  # fmt: skip
    """Every stage whose memory can be counted, at size x size pixels; limit: bytes that the device has.

    precision: what `auto` stands for on that device. say: told what is counted; a large model takes ten seconds each.
    """

    def count(name: str, config: StageConfig) -> StageMemory:
        say(f"counting {name}" + "".join(f", {change[6:]}" for change in differences(name, stages[name], config)))
        return count_stage(outline, name, config, size, encodes, precision, imitate_every)

    return [_fit(count, name, config, limit) for name, config in stages.items() if name in STAGES]


def _fit(count: Count, name: str, config: StageConfig, limit: float | None) -> StagePlan:
    memory = count(name, config)
    found = StagePlan(name, config, memory, memory)
    if found.fits(limit):
        return found
    smaller = config
    for smaller in thriftier(config):
        fitted = count(name, smaller)
        if limit is not None and fitted.peak <= limit:
            return replace(found, fitted=fitted, changes=tuple(differences(name, config, smaller)))
    return replace(found, fitted=None, changes=tuple(differences(name, config, smaller)))


def thriftier(config: StageConfig) -> Iterator[StageConfig]:
    """Settings that need ever less memory. First for the same training, cheapest in time first and smaller micro-batches last;
    then with 8-bit moments; then with adapters, where fewer weights train."""
    if not config.gradient_checkpointing:
        yield (config := replace(config, gradient_checkpointing=True))
    if not config.average_on_cpu:
        yield (config := replace(config, average_on_cpu=True))
    while config.batch > 1 and config.batch % 2 == 0:
        yield (config := replace(config, batch=config.batch // 2, accumulate=config.accumulate * 2))
    if config.optimizer == "adamw":
        yield replace(config, optimizer="adamw8bit")
    if not config.lora and not lacking("lora"):
        yield replace(config, lora=ADVISED_RANK)


def differences(name: str, before: StageConfig, after: StageConfig) -> Iterator[str]:
    """The options that turn one stage's settings into another's."""
    for key, value in vars(after).items():
        if getattr(before, key) != value:
            yield f"--set {name}.{key}={str(value).lower() if isinstance(value, bool) else value}"


def table(plans: list[StagePlan], pictures: int | None, step_seconds: float | None) -> list[list[str]]:
    """A plan as rows of text, one column per stage; pictures: in the data set, None for an endless one."""
    asked = [each.config.batch * each.config.accumulate for each in plans]
    steps = [each.config.steps for each in plans]
    sizes = ("weights", "frozen", "gradients", "optimizer", "average", "activations", "peak", "disk")
    lines = [
        ["steps", *map(str, steps)],
        ["pictures a step", *map(str, asked)],
        ["epochs", *("endless" if pictures is None else f"{n * k / pictures:.1f}" for n, k in zip(steps, asked))],
    ]
    if step_seconds is not None:
        lines.append(["time", *(readable(n * step_seconds) for n in steps)])
    unit, name, digits = (GB, "GB", 2) if any(each.memory.peak >= GB for each in plans) else (1e6, "MB", 0)
    values = {size: [getattr(each.memory, size) / unit for each in plans] for size in sizes}
    return lines + [[f"{size}, {name}", *(f"{value:.{digits}f}" for value in row)] for size, row in values.items()]


def said(plans: list[StagePlan], limit: float) -> list[str]:
    """One line per stage: whether it fits `limit` bytes, and what to change where it does not."""
    lines = []
    for each in plans:
        if each.fits(limit):
            lines.append(f"{each.name} fits {limit / GB:g} GB ({each.memory.peak / GB:.1f})")
        elif each.fitted is not None:
            lines.append(f"{each.name} needs {each.memory.peak / GB:.1f} GB; {' '.join(each.changes)} makes it "
                         f"{each.fitted.peak / GB:.1f}")  # fmt: skip
        else:
            tried = f", not even with {' '.join(each.changes)}" if each.changes else ""
            lines.append(f"{each.name} needs {each.memory.peak / GB:.1f} GB and does not fit {limit / GB:g}{tried}; train on "
                         "smaller pictures (--size)")  # fmt: skip
    return lines
