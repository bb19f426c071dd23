"""Verification: PyTorch float32 -> PyTorch in the precision -> graphs, stage by stage, on real pictures and prompts.

Over the limit means VerificationError and nothing is published (see `comparison.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from digseg_engine.contract import IMAGE_ENCODER, MASK_DECODER, PRESENCE, TEXT_ENCODER, GraphSpec
from digseg_engine.images import fit
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.graph_modules import GraphModules
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.model.student import FoldedText
from digseg_engine.precisions import Limits, spec_of
from digseg_engine.runtime.profile import Profile
from digseg_engine.worlds.scenes import CLASSES, DOMAINS, scene
from digseg_export.comparison import Array, Check, Tally, hold_to_limits
from digseg_export.disk_offload import Offloaded, computing, working_size
from digseg_export.own_pictures import OwnPictures
from digseg_export.ranges import session

SCENES_PER_DOMAIN = 4
PROMPTS = 5
OWN_PICTURES = 20
YARDSTICK = 5  # samples
STAGES = {
    TEXT_ENCODER: "text encoder",
    IMAGE_ENCODER: "image encoder",
    PRESENCE: "presence",
    MASK_DECODER: "mask decoder",
}
END = "end to end"
ENOUGH = 10  # pairs with something there, below which the masks are called too little evidence


@dataclass(frozen=True)
class Sample:
    """Pictures of one domain and the prompts asked about each of them, with PyTorch's float32 answers."""

    domain: str
    image: Array  # [B, 3, H, W]
    token_ids: Array  # [K, L]
    token_mask: Array  # [K, L]
    keys: Array
    values: Array
    encoding: Array  # [B, M, H/s, W/s]
    presence: Array | None  # [B, K]; None for a model without a readout
    logits: Array  # [B, K, h', w']
    prompts: tuple[str, ...]

    @property
    def first(self) -> Sample:
        """The first picture alone."""
        presence = None if self.presence is None else self.presence[:1]
        return replace(
            self, image=self.image[:1], encoding=self.encoding[:1], presence=presence, logits=self.logits[:1]
        )

    def feeds(self, spec: GraphSpec) -> dict[str, Array]:
        """What a graph is given, every part as PyTorch made it."""
        known = {"image": self.image, "token_ids": self.token_ids, "token_mask": self.token_mask,
                 "encoding": self.encoding, "text_keys": self.keys, "text_values": self.values}  # fmt: skip
        return {tensor.name: known[tensor.name] for tensor in spec.inputs}


@torch.no_grad()
def samples(checkpoint: Checkpoint, own: OwnPictures | None = None) -> list[Sample]:
    """Pictures and 5 prompts about each, absent ones included, answered by PyTorch: the user's own, else test scenes of every
    domain (4 pictures each). Of a large model: one picture, at 256 pixels."""
    few = isinstance(checkpoint, Offloaded)
    if own is not None:
        chosen = [(example, example.read()) for example in own.examples[: 1 if few else OWN_PICTURES]]
        return [answer_of(checkpoint, example.path.name,
                          fit(image, working_size(checkpoint, image.shape), checkpoint.stride).pixels, example.prompts)
                for example, image in chosen]  # fmt: skip
    return [_sample(checkpoint, domain, 1 if few else SCENES_PER_DOMAIN) for domain in DOMAINS[: 1 if few else None]]


def _sample(checkpoint: Checkpoint, domain: str, count: int) -> Sample:
    size = working_size(checkpoint)
    scenes = [scene(90_000 + i, domain, size, "test") for i in range(count)]
    present = list(dict.fromkeys(name for picture in scenes for name in picture.names()))
    prompts = (*tuple((present + [name for name in CLASSES["aerial"] if name not in present])[: PROMPTS - 1]), "zebra")
    image = np.concatenate([fit(picture.image, size, checkpoint.stride).pixels for picture in scenes])
    return answer_of(checkpoint, domain, image, prompts)


@torch.no_grad()
def shaped_sample(checkpoint: Checkpoint, profile: Profile, end: str = "opt") -> Sample:
    """One sample at the "min", "opt" or "max" of a profile: what a graph with fixed axes is checked with; the one at "opt"
    is its golden sample."""
    count, prompts, rows, columns, tokens = (getattr(profile.ranges[axis], end) for axis in "BKHWL")
    scenes = [scene(90_000 + i, DOMAINS[i % len(DOMAINS)], min(max(rows, columns), 2048), "test") for i in range(count)]
    tiles = [np.pad(picture.image, ((0, rows), (0, columns), (0, 0)), "wrap")[:rows, :columns] for picture in scenes]
    image = np.stack([pixels.transpose(2, 0, 1) / 127.5 - 1 for pixels in tiles]).astype(np.float32)
    names = [*dict.fromkeys(name for picture in scenes for name in picture.names()), "zebra"]
    return answer_of(checkpoint, scenes[0].domain, np.ascontiguousarray(image),
                   tuple(names[i % len(names)] for i in range(prompts)), tokens)  # fmt: skip


def answer_of(checkpoint: Checkpoint, domain: str, image: Array, prompts: tuple[str, ...], tokens: int = 0) -> Sample:
    """PyTorch's float32 answer. tokens: length of every prompt, where padding allows it (0: the tokenizer's own)."""
    ids, mask = checkpoint.tokenizer.encode(prompts)
    if tokens:
        length = max(tokens, int(mask.sum(1).max()))
        missing = max(0, length - ids.shape[1])
        ids = np.ascontiguousarray(np.pad(ids, ((0, 0), (0, missing)), "edge")[:, :length])
        mask = np.ascontiguousarray(np.pad(mask, ((0, 0), (0, missing)))[:, :length])
    x = torch.from_numpy(image)
    student = checkpoint.student
    with computing(checkpoint):
        text = checkpoint.text_encoder(torch.from_numpy(ids)).last_hidden_state
        folded = student.fold_text(text, torch.from_numpy(mask))
        live = folded.mask.to(text.dtype)[:, None, None, None, :]
        folded = FoldedText(folded.keys * live, folded.values * live.transpose(-1, -2), folded.mask)
        encoding = student.encode(*student.describe(x, encode_image(checkpoint.vae, x)))
        presence = student.presence(encoding, folded).numpy() if student.config.presence_width else None
        logits = student.answer(encoding, folded)
    return Sample(domain, image, ids, mask, folded.keys.numpy(), folded.values.numpy(), encoding.numpy(), presence,
                  logits.numpy(), prompts)  # fmt: skip


class Form(Protocol):
    """One way to compute the graphs."""

    names: dict[str, str]  # graph file -> what to call it in the report
    held_to_limits: bool  # False: reported as a yardstick, held to no limit

    def run(self, spec: GraphSpec, feeds: dict[str, Array]) -> list[Array]:
        """A graph's outputs in contract order; float inputs may have any float type."""


class Graphs:
    """Graphs (files or models in memory, by file name) on ONNX Runtime's CPU provider."""

    held_to_limits = True

    def __init__(self, models: dict[str, Any], names: dict[str, str], weights_folder: Path | None = None) -> None:
        self.models, self.weights_folder, self.names = models, weights_folder, names
        self.held = {} if weights_folder else {file: session(model) for file, model in models.items()}

    @classmethod
    def of(
        cls, folder: Path, specs: Iterable[GraphSpec], on_cpu: bool, weights_folder: Path | None = None
    ) -> Graphs:  # fmt: skip
        """The graphs of a folder; on_cpu: what a CPU runs instead, of every graph that has it."""
        chosen = {s.file: s.cpu_file if on_cpu and (folder / s.cpu_file).is_file() else s.file for s in specs}
        return cls({file: str(folder / name) for file, name in chosen.items()}, chosen, weights_folder)

    def run(self, spec: GraphSpec, feeds: dict[str, Array]) -> list[Array]:
        # of a large model the session is made for the call, so that one data file is mapped at a time
        run = self.held.get(spec.file) or session(self.models[spec.file], weights_folder=self.weights_folder)
        given = {i.name: feeds[i.name].astype(np.float16) if "float16" in i.type else feeds[i.name].astype(np.float32)
                 if "float" in i.type else feeds[i.name] for i in run.get_inputs()}  # fmt: skip
        found: list[Array] = run.run(None, given)
        return found


class Torch:
    """The same modules in PyTorch under autocast to fp16 or bf16: what the precision costs without any export.

    A yardstick: autocast knows nothing of our islands, so it may overflow where the graph does not. It is asked about one picture
    of the first samples: a CPU without units for fp16 takes longer for it than for all the rest of an export.
    """

    held_to_limits = False

    def __init__(self, parts: GraphModules, precision: str) -> None:
        self.parts: dict[str, Any] = {TEXT_ENCODER.file: parts.text_encoder, IMAGE_ENCODER.file: parts.image_encoder,
                      MASK_DECODER.file: parts.mask_decoder, PRESENCE.file: parts.presence}  # fmt: skip
        self.names = dict.fromkeys(self.parts, f"PyTorch autocast {precision}")
        self.dtype: torch.dtype = getattr(torch, spec_of(precision).onnx.lower())

    @torch.no_grad()
    def run(self, spec: GraphSpec, feeds: dict[str, Array]) -> list[Array]:
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[tensor.name])) for tensor in spec.inputs]
        with torch.autocast("cpu", self.dtype):
            found = self.parts[spec.file](*tensors)
        return [x.float().numpy() for x in (found if isinstance(found, tuple) else (found,))]


class Stages:
    """What a form answers at every stage, over the samples."""

    def __init__(self) -> None:
        self.text, self.image = Tally(masks=False), Tally(masks=False)
        self.presence, self.presence_at_the_end = Tally(masks=False), Tally(masks=False)
        self.masks, self.masks_at_the_end = Tally(), Tally()

    def ask(self, form: Form, s: Sample) -> None:
        """One sample: every graph alone on PyTorch's own inputs, and then all in a row."""
        keys, values = form.run(TEXT_ENCODER, s.feeds(TEXT_ENCODER))
        (encoding,) = form.run(IMAGE_ENCODER, s.feeds(IMAGE_ENCODER))
        for want, got in ((s.keys, keys), (s.values, values)):
            self.text.add(want, got)
        self.image.add(s.encoding, encoding)
        row = {"encoding": encoding, "text_keys": keys, "text_values": values, "token_mask": s.token_mask}
        if s.presence is not None:
            self.presence.add(s.presence, form.run(PRESENCE, s.feeds(PRESENCE))[0])
            self.presence_at_the_end.add(s.presence, form.run(PRESENCE, row)[0])
        self.masks.add(s.logits, form.run(MASK_DECODER, s.feeds(MASK_DECODER))[0])
        self.masks_at_the_end.add(s.logits, form.run(MASK_DECODER, row)[0])

    def checks(self, names: dict[str, str]) -> list[Check]:
        """One check for every stage that was asked."""
        joined = " + ".join(dict.fromkeys(names[spec.file] for spec in (TEXT_ENCODER, IMAGE_ENCODER, MASK_DECODER)))
        found = [
            (STAGES[TEXT_ENCODER], names[TEXT_ENCODER.file], self.text),
            (STAGES[IMAGE_ENCODER], names[IMAGE_ENCODER.file], self.image),
            (STAGES[PRESENCE], names.get(PRESENCE.file, ""), self.presence),
            (STAGES[MASK_DECODER], names[MASK_DECODER.file], self.masks),
            (f"{STAGES[PRESENCE]}, {END}", names.get(PRESENCE.file, ""), self.presence_at_the_end),
            (END, joined, self.masks_at_the_end),
        ]
        return [tally.check(stage, graph) for stage, graph, tally in found if tally.count]


def verify(forms: Iterable[Form], data: list[Sample], limits: Limits, progress: Callable[[str], None]) -> list[Check]:
    """Every form on every sample, stage by stage, then end to end. Raises CheckError at the first check over its limits."""
    checks = []
    for form in forms:
        stages = Stages()
        asked = data if form.held_to_limits else [s.first for s in data[:YARDSTICK]]
        for number, s in enumerate(asked, 1):
            progress(f"{form.names[IMAGE_ENCODER.file]} on {s.domain} ({number} of {len(asked)})")
            stages.ask(form, s)
        found = stages.checks(form.names)
        for check in found if form.held_to_limits else ():
            hold_to_limits(check, limits)
        checks += found
        del form  # a large form is gone before the next one is made
    return checks


def evidence(checks: list[Check]) -> str:
    """On how many masks the agreement rests, and whether that is enough, in words."""
    pairs, empty = max(((check.pairs, check.empty) for check in checks if check.stage == END), default=(0, 0))
    words = f"{pairs} of {pairs + empty} (picture, prompt) pairs show something"
    if pairs >= ENOUGH:
        return words
    return (
        f"too little evidence: {words}, at least {ENOUGH} expected; numbers were compared, masks hardly; verify on more pictures "
        "in which the model finds what is asked for (--verify-data FOLDER)"
    )


def report(checks: list[Check], limits: Limits, data: list[Sample], own: OwnPictures | None = None) -> dict[str, Any]:
    """The verification as written into the manifest."""
    scenes = f"{len(data[0].image)} test scenes of each of {', '.join(s.domain for s in data)}, {PROMPTS} prompts each"
    return {
        "evidence": evidence(checks),
        "reference": f"PyTorch {torch.__version__} float32",
        "data": own.origin if own else scenes,
        "limits": asdict(limits),
        "checks": [_plain(asdict(check)) for check in checks],
    }


def _plain(check: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: a number that is not finite becomes null."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in check.items()}
