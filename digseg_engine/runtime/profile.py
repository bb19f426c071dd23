"""Shape profiles: the smallest, usual and largest size of every dynamic axis; written in trtexec's spelling.

`image_encoder.image:1x3x256x256,mask_decoder.text_keys:5x3x4x16x16` names graph inputs; each axis of the contract (B, K, L,
H, W) is one range, because the graphs share them. Torch-free: the runtime checks requests with the same code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from digseg_engine.contract import ENCODING, GRAPHS
from digseg_engine.errors import InputError, UsageError

AXES = ("B", "K", "L", "H", "W")
HARD = {"B": (1, 256), "K": (1, 4096), "L": (2, 77)}  # what the graphs are traced for
MEANING = {"B": "pictures", "K": "prompts", "L": "tokens", "H": "rows of pixels", "W": "columns of pixels"}


@dataclass(frozen=True)
class Range:
    """Smallest, usual and largest size of one axis."""

    min: int
    opt: int
    max: int

    @property
    def static(self) -> bool:
        """Whether there is one size only."""
        return self.min == self.max


@dataclass(frozen=True)
class Profile:
    """One range for each of B, K, L, H, W."""

    ranges: dict[str, Range]

    def shape(self, axes: tuple[str | int, ...], end: str, sizes: dict[str, int]) -> tuple[int, ...]:
        """Concrete shape of a contract tensor at "min", "opt" or "max"; `sizes` holds the model's own axes and its stride s."""
        free = {**sizes, **{axis: int(getattr(span, end)) for axis, span in self.ranges.items()}}
        free |= {f"{axis}/s": free[axis] // sizes["s"] for axis in "HW"}
        return tuple(axis if isinstance(axis, int) else free[axis] for axis in axes)

    def check(self, request: dict[str, int]) -> None:
        """Raises InputError naming the first axis of {B, K, L, H, W} outside its range, and what is allowed."""
        for axis, size in request.items():
            span = self.ranges[axis]
            if not span.min <= size <= span.max:
                allowed = f"exactly {span.min}" if span.static else f"{span.min} to {span.max}"
                raise InputError(
                    f"{size} {MEANING[axis]} ({axis}) are outside the profile this model was built for: {allowed} "
                    "allowed; ask for less, or export it with other shapes"
                )

    def holds(self, request: dict[str, int]) -> bool:
        """Whether every axis is within its range."""
        return all(self.ranges[axis].min <= size <= self.ranges[axis].max for axis, size in request.items())

    @property
    def usual_side(self) -> int:
        """The longer side, in pixels, that pictures are worked at where no size is asked for."""
        return max(self.ranges[axis].opt for axis in "HW")

    @property
    def least(self) -> tuple[int, int]:
        """Smallest (height, width): what pictures are padded to."""
        return self.ranges["H"].min, self.ranges["W"].min

    def longest_side(self, height: int, width: int) -> int:
        """Largest working size, in pixels of the longer side, at which a picture of these proportions fits."""
        longer = max(height, width)
        return min(longer * self.ranges["H"].max // height, longer * self.ranges["W"].max // width)

    def square(self, wanted: int) -> int:
        """The square nearest to `wanted` pixels a side. Raises UsageError when the profile holds no square."""
        rows, columns = self.ranges["H"], self.ranges["W"]
        low, high = max(rows.min, columns.min), min(rows.max, columns.max)
        if low > high:
            raise UsageError(f"the profile this model was built for holds no square shape (rows up to {rows.max}, "
                             f"columns up to {columns.max}); export it with a square one")  # fmt: skip
        return min(max(wanted, low), high)

    def to_json(self) -> dict[str, dict[str, int]]:
        """As the manifest has it: {axis: {"min", "opt", "max"}}."""
        return {axis: {"min": r.min, "opt": r.opt, "max": r.max} for axis, r in self.ranges.items()}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Profile | None:
        """The profile of a manifest, or None when its shapes are free ("dynamic")."""
        if any(not isinstance(body.get(axis), dict) for axis in AXES):
            return None
        return cls({axis: Range(**{end: int(body[axis][end]) for end in ("min", "opt", "max")}) for axis in AXES})


def parse_shapes(text: str, option: str) -> dict[str, int]:
    """`image_encoder.image:1x3x256x256,...` -> sizes by axis. Raises UsageError saying what is wrong with which part."""
    known = {f"{graph}.{t.name}": t.axes for graph, spec in GRAPHS.items() for t in spec.inputs if t is not ENCODING}
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, dims = part.strip().rpartition(":")
        name = name.strip("'\"")
        if name.endswith(f".{ENCODING.name}"):
            raise UsageError(f"{option}: {name} follows from image_encoder.image; give that, and leave it out")
        if name not in known:
            raise UsageError(f"{option}: unknown input {name or part!r}; expected one of {', '.join(known)}")
        axes = known[name]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", dims) or len(dims.split("x")) != len(axes):
            wanted = "x".join(map(str, axes))
            raise UsageError(f"{option}: {name} has shape {dims!r}; expected {len(axes)} sizes {wanted}")
        for axis, size in zip(axes, map(int, dims.split("x"))):
            if isinstance(axis, int) and axis != size:
                raise UsageError(f"{option}: {name} has {size} where the model has {axis}; expected {axis}")
            if axis in AXES and found.setdefault(str(axis), size) != size:
                raise UsageError(f"{option}: {axis} is given as {found[str(axis)]} and {size}; expected one size")
    return found


def make_profile(
    low: dict[str, int], usual: dict[str, int], high: dict[str, int], size: int, stride: int
) -> Profile:  # fmt: skip
    """Complete a profile: what is not given gets the model's own picture size, 1 picture, 1 to 16 prompts.

    Raises UsageError for sizes that are not multiples of the stride, out of order, or beyond what the graphs allow.
    """
    defaults = {"B": Range(1, 1, 1), "K": Range(1, 5, 16), "L": Range(8, 16, 77),
                "H": Range(size, size, size), "W": Range(size, size, size)}  # fmt: skip
    ranges = {}
    for axis, default in defaults.items():
        sizes_given = [sizes[axis] for sizes in (low, usual, high) if axis in sizes]
        if sizes_given and len(sizes_given) < 3:  # an end that was not given is the nearest one that was
            first = usual.get(axis, sizes_given[0])
            ranges[axis] = Range(low.get(axis, min(sizes_given)), first, high.get(axis, max(sizes_given)))
        else:
            ranges[axis] = Range(low[axis], usual[axis], high[axis]) if sizes_given else default
        check_range(axis, ranges[axis], stride)
    return Profile(ranges)


def check_range(axis: str, span: Range, stride: int) -> None:
    """Raises UsageError for sizes out of order, beyond what the graphs allow, or no multiples of the stride."""
    if not span.min <= span.opt <= span.max:
        raise UsageError(
            f"shapes of {axis} are min {span.min}, opt {span.opt}, max {span.max}; expected min <= opt <= max"
        )
    low, high = HARD.get(axis, (2 * stride, 512 * stride))
    for size in (span.min, span.opt, span.max):
        if not low <= size <= high:
            raise UsageError(f"{axis} = {size} ({MEANING[axis]}); expected {low} to {high}")
        if axis in "HW" and size % stride:
            raise UsageError(f"{axis} = {size} pixels; expected a multiple of the model's stride {stride}")
