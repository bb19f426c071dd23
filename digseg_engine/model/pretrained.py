"""Checkpoints on disk: a Stable Diffusion directory plus `digseg.json`, `text_pathway/` and `student/`.

    vae/ unet/ text_encoder/            diffusers / transformers format (config.json + safetensors)
    tokenizer/tokenizer.json            read by the `tokenizers` library, nothing else needed
    text_pathway/model.safetensors      the reference's injections
    student/model.safetensors           trunk, injections and mask head of the one-step student

Weights are stored in fp16 and always computed in fp32 once loaded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from digseg_engine import folders
from digseg_engine.errors import CheckpointError, OutputError, UsageError
from digseg_engine.files import write_text
from digseg_engine.model.autoencoder import Autoencoder, build_autoencoder, latent_stride
from digseg_engine.model.config import DigsegConfig, Preset
from digseg_engine.model.folder import BUNDLED, CONFIG, PARTS
from digseg_engine.model.reference import Reference, grid_ratio
from digseg_engine.model.sampler import Schedule
from digseg_engine.model.student import Student
from digseg_engine.text import PromptTokenizer
from digseg_engine.words import counted

CONTENTS = (CONFIG, "vae", "unet", "text_encoder", "tokenizer", "text_pathway", "student", "training", "quality.json",
            "distill.json", "distill.png")  # fmt: skip


# What building a network from a configuration of a stranger, and filling it, raises.
UNFIT = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, MemoryError, SafetensorError)
PREFIX = "text_model."  # of a text encoder's tensors, in releases of transformers before 5


@dataclass
class Checkpoint:
    """All trained parts, in evaluation mode, float32."""

    config: DigsegConfig
    vae: Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: PromptTokenizer
    reference: Reference
    student: Student

    @property
    def schedule(self) -> Schedule:
        return self.config.schedule

    @property
    def stride(self) -> int:
        """Picture sides must be multiples of this many pixels."""
        return latent_stride(self.vae) * grid_ratio(self.reference.unet)


def build(preset: Preset, tokenizer: PromptTokenizer) -> Checkpoint:
    """A freshly initialised model of the preset's sizes."""
    unet = UNet2DConditionModel(**preset.unet)
    vae = build_autoencoder(preset.vae)
    student = new_student(UNet2DConditionModel(**preset.unet), preset.digseg, vae)
    return Checkpoint(
        preset.digseg,
        vae,
        CLIPTextModel(CLIPTextConfig(**preset.text)),
        tokenizer,
        new_reference(unet, preset.digseg),
        student,
    )


def new_reference(unet: UNet2DConditionModel, config: DigsegConfig) -> Reference:
    """A reference around `unet` with a fresh text pathway."""
    return Reference(unet, config.pathway_heads, config.schedule if config.prediction == "epsilon" else None)


def new_student(unet: UNet2DConditionModel, config: DigsegConfig, vae: Autoencoder) -> Student:
    """A student around `unet` with fresh injections and head."""
    return Student(unet, config.student, latent_stride(vae), config.train_timesteps)


def deepen_stem(checkpoint: Checkpoint, blocks: int) -> None:
    """Give the student's image stem `blocks` residual blocks per resolution; new ones start as the identity.

    Every mask stays what it was. Raises UsageError when the student has no stem or already more blocks.
    """
    config, old = checkpoint.config, checkpoint.student
    if not config.student.detail_width or blocks < config.student.detail_blocks:
        raise UsageError(f"the image stem can only be deepened: this student has detail_width "
                         f"{config.student.detail_width} and {config.student.detail_blocks} blocks, got {blocks}")  # fmt: skip
    checkpoint.config = replace(config, student=replace(config.student, detail_blocks=blocks))
    checkpoint.student = new_student(old.unet, checkpoint.config, checkpoint.vae).eval().requires_grad_(False)
    checkpoint.student.load_state_dict(old.state_dict(), strict=False)


def add_presence(checkpoint: Checkpoint, width: int) -> None:
    """Give a student without a presence readout an untrained one of `width` channels; one that it has stays. Masks stay."""
    config, old = checkpoint.config, checkpoint.student
    if config.student.presence_width:
        return
    checkpoint.config = replace(config, student=replace(config.student, presence_width=width))
    checkpoint.student = new_student(old.unet, checkpoint.config, checkpoint.vae).eval().requires_grad_(False)
    checkpoint.student.load_state_dict(old.state_dict(), strict=False)


def with_attention_pool(checkpoint: Checkpoint, pool: int) -> Checkpoint:
    """The same weights in a student of its own whose attention looks at averages of pool x pool cells (`pooled_attention.py`)."""
    config, old = checkpoint.config, checkpoint.student
    config = replace(config, student=replace(config.student, attention_pool=pool))
    student = new_student(copy.deepcopy(old.unet), config, checkpoint.vae).eval().requires_grad_(False)
    student.load_state_dict(old.state_dict())
    return replace(checkpoint, config=config, student=student)


def save_checkpoint(
    checkpoint: Checkpoint, tokenizer_json: str, folder: Path, add_files: Callable[[Path], object] | None = None
) -> None:  # fmt: skip
    """Write every part in fp16. `folder` appears whole or not at all; an older checkpoint in its place is replaced.

    add_files: given the folder while it is filled, adds files of its own. Raises UsageError when something else is at `folder`,
    OutputError for what the file system refuses, such as a full disk.
    """
    quiet_libraries()
    try:
        with folders.writing(folder, MARK) as draft:
            _fill(draft, checkpoint, tokenizer_json)
            if add_files is not None:
                add_files(draft)
            checkpoint.config.save(draft)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}; what was there is as "
                          "before; free the place or choose another") from error  # fmt: skip


def _fill(folder: Path, checkpoint: Checkpoint, tokenizer_json: str) -> None:
    for name in ("tokenizer", "text_pathway", "student"):
        (folder / name).mkdir()
    _half(checkpoint.vae).save_pretrained(folder / "vae")
    _half(checkpoint.reference.unet).save_pretrained(folder / "unet")
    _half(checkpoint.text_encoder).save_pretrained(folder / "text_encoder")
    write_text(folder / "tokenizer" / "tokenizer.json", tokenizer_json)
    save_file(_half(checkpoint.reference.pathway).state_dict(), folder / "text_pathway" / "model.safetensors")
    save_file(_half(checkpoint.student).state_dict(), folder / "student" / "model.safetensors")


def _half(module: Any) -> Any:
    """A copy in fp16 whose tensors lie in memory as safetensors writes them, whatever the layout of the original's."""
    module = copy.deepcopy(module).half()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()
    return module


def as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with every weight rounded, in place, to what `save_checkpoint` keeps of it."""
    for module in (checkpoint.vae, checkpoint.text_encoder, checkpoint.reference, checkpoint.student):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data.copy_(tensor.data.half())
    return checkpoint


def check_target(folder: Path) -> bool:
    """Is there an older checkpoint that `save_checkpoint` will replace? Raises UsageError where it cannot write."""
    return folders.check_target(folder, MARK)


def _foreign(folder: Path) -> str:
    """What in an existing folder is not of a checkpoint of ours; "" when all of it is."""
    if not (folder / CONFIG).is_file():
        return f"it has no {CONFIG}"
    strangers = folders.others(folder, CONTENTS)
    return f"it holds {strangers[0]}" if strangers else ""


MARK = folders.Mark("a checkpoint", CONFIG, _foreign)


def load_checkpoint(folder: Path | str | None = None) -> Checkpoint:
    """Load a checkpoint directory; None loads the bundled `digseg-tiny`.

    Raises CheckpointError naming the missing file, or the weights that do not fit.
    """
    folder = BUNDLED if folder is None else Path(folder)
    folders.recover(folder)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} not found; expected a directory written by `digseg train`")
    quiet_libraries()
    config = DigsegConfig.load(folder)
    for part in PARTS:
        if not (folder / part).is_file():
            raise CheckpointError(f"{folder} lacks {part}; expected a complete checkpoint as written by `digseg train`")
    vae = from_pretrained(autoencoder_class(folder / "vae"), folder / "vae")
    unet = from_pretrained(UNet2DConditionModel, folder / "unet")
    text_encoder = from_pretrained(CLIPTextModel, folder / "text_encoder")
    tokenizer = PromptTokenizer.load(folder / "tokenizer" / "tokenizer.json")
    loaded = assemble(config, Networks(unet, vae, text_encoder), tokenizer)
    _load_into(loaded.reference.pathway, folder / "text_pathway" / "model.safetensors")
    _load_into(loaded.student, folder / "student" / "model.safetensors")
    for module in (vae, text_encoder, loaded.reference, loaded.student):
        module.eval().requires_grad_(False)
    return loaded


@dataclass
class Networks:
    """The three networks of a directory."""

    unet: UNet2DConditionModel
    vae: Autoencoder
    text_encoder: CLIPTextModel


def assemble(config: DigsegConfig, networks: Networks, tokenizer: PromptTokenizer) -> Checkpoint:
    """A checkpoint around networks that are there; the parts that only DiGSeg has, and the student, are drawn at random."""
    try:
        student = new_student(UNet2DConditionModel.from_config(networks.unet.config), config, networks.vae)
        reference = new_reference(networks.unet, config)
    except UNFIT as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the sizes of {CONFIG} give no network: {first}; use the one it was trained with"
        ) from error
    return Checkpoint(config, networks.vae, networks.text_encoder, tokenizer, reference, student)


def outline_networks(folder: Path, vae: Path) -> Networks:
    """The networks of a directory built from their `config.json` alone, weights random; `vae`: the autoencoder's directory."""
    quiet_libraries()
    kind = autoencoder_class(vae)
    return Networks(
        UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
        kind.from_config(kind.load_config(vae)),
        CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder", local_files_only=True)),
    )


def outline_checkpoint(folder: Path) -> Checkpoint:
    """The networks that `load_checkpoint` would give, built from their configurations alone, weights random."""
    tokenizer = PromptTokenizer.load(folder / "tokenizer" / "tokenizer.json")
    return assemble(DigsegConfig.load(folder), outline_networks(folder, folder / "vae"), tokenizer)


def autoencoder_class(folder: Path) -> Any:
    """AutoencoderKL or AutoencoderTiny, as `folder`/config.json says. Raises CheckpointError for anything else."""
    config = folder / "config.json"
    try:
        name = json.loads(config.read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{config} cannot be read: {error}; restore it from the training run") from error
    kinds = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if not isinstance(name, str) or name not in kinds:
        raise CheckpointError(f"{config} names the class {name!r:.60}; expected one of {', '.join(kinds)}")
    return kinds[name]


def quiet_libraries() -> None:
    """Our own messages say what matters; the libraries' progress bars and notes on every load do not."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def from_pretrained(kind: Any, folder: Path, variant: str | None = None) -> Any:
    """One network from its directory, in float32, safetensors only.

    Raises CheckpointError when it cannot be loaded or lacks weights, which the libraries would fill with random ones.
    """
    try:
        key = "dtype" if kind is CLIPTextModel else "torch_dtype"
        options = {key: torch.float32, "use_safetensors": True, **({"variant": variant} if variant else {})}
        network, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
        missing = sorted(found["missing_keys"])
        if missing and kind is CLIPTextModel:
            missing = _load_text_encoder(network, folder, variant)
    except UNFIT as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder} cannot be loaded as {kind.__name__}: {first}; restore it from where it came"
        ) from error
    if missing:
        raise CheckpointError(f"{folder} has no weights for {missing[0]} ({counted(len(missing), 'tensor')} missing); expected "
                              f"all of the {kind.__name__} of its config.json; restore it from where it came")  # fmt: skip
    return network


def _load_text_encoder(network: nn.Module, folder: Path, variant: str | None) -> list[str]:
    """Load a text encoder whose tensors another release of transformers named: 5 dropped the prefix `text_model.`.

    Returns the names that are still without weights.
    """
    stored: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"*.{variant}*.safetensors" if variant else "*.safetensors")):
        stored.update(load_file(path))
    wanted = {name: stored_name(name, stored) for name in network.state_dict()}
    network.load_state_dict({name: stored[key] for name, key in wanted.items() if key in stored}, strict=False)
    return sorted(name for name, key in wanted.items() if key not in stored and not key.endswith("position_ids"))


def stored_name(name: str, keys: Collection[str]) -> str:
    """The name under which a text encoder's tensor is among `keys`: its own, or with or without the prefix `text_model.`."""
    other = name.removeprefix(PREFIX) if name.startswith(PREFIX) else PREFIX + name
    return other if name not in keys and other in keys else name


def _load_into(module: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} not found; expected the weights written by `digseg train`")
    try:
        module.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the configuration: {str(error).splitlines()[0]}; "
                              "use the digseg.json it was trained with") from error  # fmt: skip
