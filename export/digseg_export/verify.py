"""Verification: the exported graphs against PyTorch in float32, stage by stage, on real pictures and prompts.

Numbers and masks are compared: a graph that is close in norm but flips masks is wrong, and so is the reverse. Over the
limit means VerificationError and nothing is published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from digseg_engine.contract import SEGMENTER, TEXT_ENCODER
from digseg_engine.errors import VerificationError
from digseg_engine.images import fit
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.runtime.backends.ort_backend import PROVIDER, wide_name
from digseg_engine.training.scenes import CLASSES, DOMAINS, scene

Array = NDArray[Any]
SCENES_PER_DOMAIN = 4
PROMPTS = 5


@dataclass(frozen=True)
class Limits:
    """Largest relative error (L2 norm of the difference over the norm of the reference) and smallest mean mask IoU."""

    relative: float
    iou: float


LIMITS = {"fp32": Limits(1e-3, 0.999), "fp16": Limits(2e-2, 0.99)}


@dataclass(frozen=True)
class Sample:
    """Pictures of one domain and the prompts asked about each of them, with PyTorch's float32 answers."""

    domain: str
    image: Array  # [B, 3, H, W]
    token_ids: Array  # [K, L]
    token_mask: Array  # [K, L]
    keys: Array
    values: Array
    logits: Array  # [B, K, h', w']
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One comparison with PyTorch float32. `iou` is the mean over (picture, prompt) pairs; both masks empty counts 1."""

    stage: str
    graph: str
    max_error: float
    mean_error: float
    relative: float
    iou: float | None = None
    worst_iou: float | None = None
    pairs: int = 0


@torch.no_grad()
def samples(checkpoint: Checkpoint) -> list[Sample]:
    """Test scenes of every domain (4 pictures x 5 prompts each, absent prompts included) answered by PyTorch."""
    return [_sample(checkpoint, domain) for domain in DOMAINS]


def _sample(checkpoint: Checkpoint, domain: str) -> Sample:
    size = checkpoint.config.image_size
    scenes = [scene(90_000 + i, domain, size, "test") for i in range(SCENES_PER_DOMAIN)]
    present = list(dict.fromkeys(name for one in scenes for name in one.names()))
    prompts = (*tuple((present + [name for name in CLASSES["aerial"] if name not in present])[: PROMPTS - 1]), "zebra")
    image = np.concatenate([fit(one.image, size, checkpoint.stride).pixels for one in scenes])
    ids, mask = checkpoint.tokenizer.encode(prompts)
    text = checkpoint.text_encoder(torch.from_numpy(ids)).last_hidden_state
    folded = checkpoint.student.fold_text(text, torch.from_numpy(mask))
    x = torch.from_numpy(image)
    logits = checkpoint.student(x, encode_image(checkpoint.vae, x), folded)
    live = mask[:, None, None, None, :]
    keys, values = folded.keys.numpy() * live, folded.values.numpy() * np.swapaxes(live, -1, -2)
    return Sample(domain, image, ids, mask, keys, values, logits.numpy(), prompts)


class Graphs:
    """The two graphs of a bundle under test on ONNX Runtime's CPU provider; wide=True takes the float32 twins."""

    def __init__(self, room: Path, wide: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        names = [wide_name(spec) if wide else spec.file for spec in (TEXT_ENCODER, SEGMENTER)]
        self.text, self.segmenter = (
            onnxruntime.InferenceSession(str(room / name), options, providers=[PROVIDER]) for name in names
        )
        self.names = names
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.dtype = kinds[next(i.type for i in self.segmenter.get_inputs() if i.name == "text_keys")]

    def encode(self, s: Sample) -> tuple[Array, Array]:
        keys, values = self.text.run(None, {"token_ids": s.token_ids, "token_mask": s.token_mask})
        return keys, values

    def segment(self, s: Sample, keys: Array, values: Array) -> Array:
        feeds = {"image": s.image, "text_keys": keys.astype(self.dtype), "text_values": values.astype(self.dtype)}
        (logits,) = self.segmenter.run(None, {**feeds, "token_mask": s.token_mask})
        return np.asarray(logits)


def verify(
    room: Path, data: list[Sample], precision: str, limits: Limits, progress: Callable[[str], None]
) -> list[Check]:
    """All checks of a bundle being written. Raises VerificationError with the table's worst row."""
    checks = []
    for wide in (False, True) if precision != "fp32" else (False,):
        graphs = Graphs(room, wide)
        texts, alone, whole = [], [], []
        for s in data:
            progress(f"{graphs.names[1]} on {s.domain}")
            keys, values = graphs.encode(s)
            texts.append(
                (np.concatenate([s.keys.ravel(), s.values.ravel()]), np.concatenate([keys.ravel(), values.ravel()]))
            )
            alone.append((s.logits, graphs.segment(s, s.keys, s.values)))
            whole.append((s.logits, graphs.segment(s, keys, values)))
        checks.append(compare("text encoder", graphs.names[0], texts, masks=False))
        checks.append(compare("segmenter", graphs.names[1], alone))
        checks.append(compare("end to end", " + ".join(graphs.names), whole))
    for check in checks:
        judge(check, limits)
    return checks


def compare(stage: str, graph: str, pairs: list[tuple[Array, Array]], masks: bool = True) -> Check:
    """(reference, exported) arrays -> errors; with masks=True arrays are logits [B, K, h, w] and IoU is computed too."""
    want = np.concatenate([a.ravel() for a, _ in pairs]).astype(np.float64)
    got = np.concatenate([b.ravel() for _, b in pairs]).astype(np.float64)
    error = np.abs(got - want)
    relative = float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-12))
    numbers = (stage, graph, float(error.max()), float(error.mean()), relative)
    if not masks:
        return Check(*numbers)
    ious = np.concatenate([pair_iou(a > 0, b > 0) for a, b in pairs])
    return Check(*numbers, float(ious.mean()), float(ious.min()), len(ious))


def pair_iou(want: NDArray[np.bool_], got: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of every (picture, prompt) pair, [B * K]; 1 where both masks are empty."""
    inter = (want & got).sum((-2, -1)).ravel()
    union = (want | got).sum((-2, -1)).ravel()
    return np.where(union == 0, 1.0, inter / np.maximum(union, 1))


def judge(check: Check, limits: Limits) -> None:
    """Raises VerificationError when a check is over its limits (or not finite)."""
    if not np.isfinite(check.relative):
        raise VerificationError(f"{check.stage} ({check.graph}) gives NaN or infinity; expected finite numbers; nothing was "
                                "published; try --precision fp32")  # fmt: skip
    if check.relative > limits.relative:
        raise VerificationError(f"{check.stage} ({check.graph}) differs from PyTorch by {check.relative:.2e} relative, at most "
                                f"{limits.relative:.0e} allowed; nothing was published; try --precision fp32")  # fmt: skip
    if check.iou is not None and check.iou < limits.iou:
        raise VerificationError(f"{check.stage} ({check.graph}) has mask IoU {check.iou:.4f} with PyTorch, at least "
                                f"{limits.iou} expected; nothing was published; try --precision fp32")  # fmt: skip


def report(checks: list[Check], limits: Limits) -> dict[str, Any]:
    """The verification as written into the manifest."""
    return {
        "reference": f"PyTorch {torch.__version__} float32",
        "data": f"{SCENES_PER_DOMAIN} test scenes of each of {', '.join(DOMAINS)}, {PROMPTS} prompts each",
        "limits": asdict(limits),
        "checks": [asdict(check) for check in checks],
    }
