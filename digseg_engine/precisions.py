"""What is to be known of a precision, in one table: exporters, runtimes, scripts for boards and reports ask it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from digseg_engine.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Largest relative error (L2 norm of the difference over the norm of the reference), smallest mean mask IoU, and of a folded
    bundle the smallest share of its label map that is right."""

    relative: float
    iou: float
    absolute: float | None = None  # largest error of any number; None: not looked at
    labels: float = 0.999


@dataclass(frozen=True)
class PrecisionSpec:
    """One precision. How a graph gets there: it is `reduced` (every number in a shorter float, with float32 islands), `quantised`
    (Q/DQ around the layers that bear it), or neither.

    onnx, tensorrt: names of its type in ONNX and in TensorRT
    reported: how reports on built engines call it, in any release
    width: bytes of a weight
    host: NumPy's type at the borders of an engine; bf16 travels as its 16 bits, what is quantised is float32 there
    limits: how far a bundle may be from PyTorch float32; wide enough for a model with random weights, the bundled model loses
        a tenth of them (5e-3 in bf16, 2.6e-2 in int8)
    lowest: compute capability from which NVIDIA's compilers take it, and why; found by building with TensorRT-RTX 1.7.1.116
    else_try: what to do when a bundle does not hold its limits
    unmeasured: why no pictures are needed to convert; "": they are
    opset: the first of ONNX that will do; 0: any of ours
    on_cpu: ONNX Runtime's CPU kernels run the graph as it is
    few_step: ONNX Runtime's pipelines, which run the few-step reference, take it
    """

    name: str
    onnx: str
    tensorrt: str
    reported: re.Pattern[str]
    width: int
    host: str
    limits: Limits
    lowest: tuple[int, str]
    else_try: str
    reduced: bool = False
    quantised: bool = False
    unmeasured: str = ""
    opset: int = 0
    on_cpu: bool = True
    few_step: bool = False


def _reported(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


PRECISIONS = {
    spec.name: spec
    for spec in (
        PrecisionSpec(
            "fp32", "FLOAT", "FLOAT", _reported(r"fp32|\bfloat\b|float32|kfloat"), 4, "float32", Limits(1e-3, 0.999),
            (80, "float32 products are not supported on Turing"), "raise the limits",
            unmeasured="nothing: float32 needs no calibration", few_step=True),
        PrecisionSpec(
            "fp16", "FLOAT16", "HALF", _reported(r"fp16|half|(?<!b)float16"), 2, "float16", Limits(2e-2, 0.99), (75, ""),
            "try --precision bf16 or fp32", reduced=True, few_step=True),
        PrecisionSpec(
            "bf16", "BFLOAT16", "BF16", _reported(r"bf16|bfloat16|brain"), 2, "uint16", Limits(5e-2, 0.97, labels=0.99),
            (80, "Turing has no bf16"), "try --precision fp32", reduced=True, on_cpu=False,
            unmeasured="nothing: bf16 has float32's range, no tensor can overflow",
            opset=22),  # the first in which Conv takes bf16; for our operators 21 and 22 only add types
        PrecisionSpec(
            "int8", "INT8", "INT8", _reported(r"\bint8\b|kint8"), 1, "float32", Limits(2e-1, 0.90, labels=0.99),
            (80, "what is left in float32 has products, not supported on Turing"), "try --precision fp16", quantised=True),
        PrecisionSpec(
            "fp8", "FLOAT8E4M3FN", "FP8", _reported(r"fp8|e4m3"), 1, "float32", Limits(2e-1, 0.90, labels=0.99),
            (89, "GPUs before Ada have no fp8"), "try --precision fp16", quantised=True),
    )
}  # fmt: skip
PLAIN = PRECISIONS["fp32"]  # what everything else is measured by
USUAL = PRECISIONS["fp16"]  # what is exported when none is named


def spec_of(name: str) -> PrecisionSpec:
    """The precision called `name`. Raises UsageError for one that is not in the table."""
    if name not in PRECISIONS:
        raise UsageError(f"unknown precision {name!r}; expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def those(which: Callable[[PrecisionSpec], bool]) -> str:
    """Names for people of the precisions of a kind: "fp16, int8 or fp8"."""
    names = [name for name, spec in PRECISIONS.items() if which(spec)]
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
