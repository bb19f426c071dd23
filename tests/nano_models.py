"""Nano checkpoints exported once per test session, and backends that are wrong or slow on purpose."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digseg_engine.runtime.backends import BackendKind, Usable
from digseg_engine.runtime.backends.ort_backend import OrtBackend


@dataclass(frozen=True)
class NanoModels:
    checkpoint: Path
    fp32: Path
    fp16: Path


def build_nano(preset, raw_tokenizer):
    """A seeded, untrained nano checkpoint in evaluation mode."""
    import torch

    from digseg_engine.model.pretrained import build
    from digseg_engine.text import PromptTokenizer

    torch.manual_seed(0)
    checkpoint = build(preset, PromptTokenizer(raw_tokenizer))
    for module in (checkpoint.vae, checkpoint.text_encoder, checkpoint.reference, checkpoint.student):
        module.eval().requires_grad_(False)
    checkpoint.student.neutral.normal_()
    return checkpoint


def make_nano_models(folder: Path, preset, raw_tokenizer) -> NanoModels:
    """The nano model that hears its prompts: its checkpoint and its fp32 and fp16 bundles."""
    from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint
    from digseg_engine.precisions import Limits, spec_of
    from digseg_export.progress import StepTimer
    from digseg_export.publish import Options, publish, trace

    checkpoint = build_nano(preset, raw_tokenizer)
    let_it_shout(checkpoint.student)
    save_checkpoint(checkpoint, raw_tokenizer.to_str(), folder / "nano")
    silent = StepTimer(lambda step: None)
    checkpoint = load_checkpoint(folder / "nano")  # stored in half precision: what a user exports
    traced, tokenizer = trace(checkpoint, silent), raw_tokenizer.to_str().encode()
    for precision, limits in (("fp32", spec_of("fp32").limits), ("fp16", Limits(0.05, 0.9))):
        publish(checkpoint, traced, tokenizer, folder / precision, precision, limits, silent, Options())
    return NanoModels(folder / "nano", folder / "fp32", folder / "fp16")


def let_it_shout(student) -> None:
    """An untrained model hardly hears its prompts."""
    for inject in student.injections:
        inject.gate.fill_(20.0)
    student.head.logits.weight.mul_(8)
    student.head.logits.bias.zero_()


@dataclass(frozen=True)
class PresenceModels:
    """A checkpoint with a presence readout of random weights and its bundle, and what they were split by: of the pairs of
    `pictures` [H, W, 3] and `prompts`, some are under the threshold of both, in every picture others."""

    checkpoint: Path
    bundle: Path
    prompts: tuple[str, ...] = ("red circle", "a tree", "water", "blue star", "soil", "a very small weed", "road")

    @property
    def pictures(self):
        """Pictures of one shape with other colours in each."""
        rng = np.random.default_rng(7)
        return [(rng.integers(0, 256, 3) * rng.uniform(0.3, 1, (32, 48, 1))).astype(np.uint8) for _ in range(5)]


def make_presence_models(folder: Path, preset, raw_tokenizer) -> PresenceModels:
    """The nano sizes in a fraction of the time, with a readout."""
    import json
    from dataclasses import replace

    from digseg_engine import Engine
    from digseg_engine.bundle import MANIFEST, finish
    from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint
    from digseg_engine.precisions import spec_of
    from digseg_export.progress import StepTimer
    from digseg_export.publish import Options, publish, trace

    made = PresenceModels(folder / "checkpoint", folder / "bundle")
    checkpoint = build_nano(pico_preset(preset), raw_tokenizer)
    let_it_shout(checkpoint.student)
    checkpoint.student.read_presence.evidence.weight.mul_(4)
    save_checkpoint(checkpoint, raw_tokenizer.to_str(), made.checkpoint)
    silent = StepTimer(lambda step: None)
    checkpoint = load_checkpoint(made.checkpoint)
    tokenizer = raw_tokenizer.to_str().encode()
    publish(
        checkpoint, trace(checkpoint, silent), tokenizer, made.bundle, "fp32", spec_of("fp32").limits, silent, Options()
    )
    engine = Engine.load(made.bundle, "onnxruntime")
    text = engine.prompts.fold(made.prompts)
    logits = np.concatenate([engine.runner.presence(engine.encode(each).place, text)[0] for each in made.pictures])
    middle = np.sort(logits[:, logits.mean(0).argsort()[len(made.prompts) // 2]])  # one that is in some pictures
    widest = int(np.diff(middle).argmax())
    threshold = float(middle[widest : widest + 2].mean())
    replace(checkpoint.config, presence_threshold=threshold).save(made.checkpoint)
    manifest = json.loads((made.bundle / MANIFEST).read_text())
    (made.bundle / MANIFEST).unlink()
    finish(made.bundle, {**manifest, "presence": {"threshold": threshold}})
    return made


@dataclass(frozen=True)
class FoldedModels:
    """A vocabulary of the checkpoint of `PresenceModels` folded, with the threshold of its open bundle: with logits, and the
    label map alone."""

    full: Path
    labels_only: Path
    open: Path
    names: tuple[str, ...]


def make_folded_models(folder: Path, models: PresenceModels) -> FoldedModels:
    """Names differ from the prompts they stand for; the last one is its own."""
    import json

    from digseg_engine.bundle import MANIFEST
    from digseg_engine.model.pretrained import load_checkpoint
    from digseg_engine.precisions import spec_of
    from digseg_engine.vocabulary import Vocabulary
    from digseg_export import publish
    from digseg_export.progress import StepTimer

    names = (*(f"{prompt}!" for prompt in models.prompts[:-1]), models.prompts[-1])
    stated = json.loads((models.bundle / MANIFEST).read_text())["presence"]
    made = FoldedModels(folder / "full", folder / "labels", models.bundle, names)
    silent = StepTimer(lambda step: None)
    checkpoint = load_checkpoint(models.checkpoint)
    traced, chosen = publish.trace(checkpoint, silent), publish._choose_threshold
    publish._choose_threshold = lambda *given: {**stated, "threshold": stated["threshold"]}
    try:
        for path, labels_only in ((made.full, False), (made.labels_only, True)):
            options = publish.Options(vocabulary=Vocabulary(names, models.prompts, labels_only))
            publish.publish(checkpoint, traced, b"", path, "fp32", spec_of("fp32").limits, silent, options)
    finally:
        publish._choose_threshold = chosen
    return made


class AsItIs:
    """Part of a made-up backend: an encoding is the picture, and nothing is said of presence."""

    def encode_image(self, image):
        return image

    def presence(self, encoding, keys, values, token_mask):
        return None


class Shifted(OrtBackend):
    """Masks one pixel too far right."""

    def decode(self, encoding, keys, values, token_mask):
        return np.roll(super().decode(encoding, keys, values, token_mask), 1, axis=-1)


class NotANumber(OrtBackend):
    """One logit in a thousand is NaN."""

    def decode(self, encoding, keys, values, token_mask):
        logits = super().decode(encoding, keys, values, token_mask)
        logits.reshape(-1)[::1000] = np.nan
        return logits


class Slow(OrtBackend):
    """Right, and at least ten times slower."""

    def decode(self, encoding, keys, values, token_mask):
        began = time.perf_counter()
        logits = super().decode(encoding, keys, values, token_mask)
        time.sleep(max(0.25, 9 * (time.perf_counter() - began)))
        return logits


def kind(name: str, backend) -> BackendKind:
    def create(source):
        made = backend(source)
        made.name = name
        return made

    return BackendKind(name, lambda: Usable(name, True, "made for a test"), create)


def pico_preset(preset):
    """The nano sizes with one U-Net block, an autoencoder of stride 2 and a presence readout: traced in a fraction of it."""
    from dataclasses import replace

    student = replace(preset.digseg.student, detail_width=0, presence_width=8)
    unet = {
        **preset.unet,
        "block_out_channels": (16,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    vae = {**preset.vae, "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
           "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip
    return replace(preset, digseg=replace(preset.digseg, image_size=32, student=student), unet=unet, vae=vae)


def with_profile(model: Path, target: Path, **ranges: tuple[int, int, int]) -> Path:
    """A copy of a bundle that was exported for shapes: (min, opt, max) of B, K, L, H, W. Its backend refuses all others."""
    import json
    import shutil

    from safetensors.numpy import load_file

    from digseg_engine.bundle import MANIFEST, finish
    from digseg_engine.files import write_arrays
    from digseg_engine.runtime.chunks import repeated
    from digseg_engine.runtime.profile import Profile, Range
    from digseg_engine.runtime.prompts import to_length
    from digseg_engine.runtime.source import open_source

    profile = Profile({axis: Range(*ends) for axis, ends in ranges.items()})
    usual = {axis: span.opt for axis, span in profile.ranges.items()}
    shutil.copytree(model, target)
    golden, free = load_file(target / "golden.safetensors"), OrtBackend(open_source(model))
    image = np.random.default_rng(0).uniform(-1, 1, (usual["B"], 3, usual["H"], usual["W"])).astype(np.float32)
    ids, mask = (repeated(golden[name], usual["K"])[: usual["K"]] for name in ("token_ids", "token_mask"))
    ids = np.pad(ids, ((0, 0), (0, max(0, usual["L"] - ids.shape[1]))), "edge")[:, : usual["L"]]
    mask = to_length(mask, usual["L"], 1)
    logits = free.decode(free.encode_image(image), *free.encode_text(ids, mask), mask)
    arrays = {"image": image, "token_ids": ids, "token_mask": mask, "logits": logits}
    write_arrays(target / "golden.safetensors", {**golden, **arrays})
    manifest = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).unlink()
    finish(target, {**manifest, "shapes": profile.to_json()})
    return target
