"""Checkpoints too large to hold in memory: weights stay on disk and are read one module at a time.

Every parameter above `SMALL` numbers is a stand-in: one zero, expanded to the right shape. It can be traced, it knows
where its numbers lie, and `filled` or `reading` put them in, in float32, for as long as one module computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from digseg_engine.errors import CheckpointError
from digseg_engine.model.config import DigsegConfig
from digseg_engine.model.folder import check_complete, weights_of
from digseg_engine.model.pretrained import (
    Checkpoint,
    autoencoder_class,
    new_reference,
    new_student,
    quiet_libraries,
    stored_name,
)
from digseg_engine.text import PromptTokenizer

SMALL = 1 << 16  # numbers; smaller parameters are held
CHECKED_AT = 256  # pixels; what a CPU answers in seconds at the size of Stable Diffusion


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    path: Path
    key: str

    def read(self) -> Tensor:
        """Its numbers in float32; the file is closed again, so that none of its pages stay in memory."""
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor(self.key).to(torch.float32, copy=True)


class Offloaded(Checkpoint):
    """A checkpoint whose large weights are stand-ins. Its reference has no weights at all: export does not need it."""


def open_offloaded(folder: Path) -> Offloaded:
    """A checkpoint directory with its large weights left on disk. Raises CheckpointError naming what is missing."""
    quiet_libraries()
    config = DigsegConfig.load(folder)
    check_complete(folder)
    with init_empty_weights(include_buffers=False):
        kind = autoencoder_class(folder / "vae")
        vae = kind.from_config(kind.load_config(folder / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
        sizes = UNet2DConditionModel.load_config(folder / "unet")
        reference = new_reference(UNet2DConditionModel.from_config(sizes), config)
        student = new_student(UNet2DConditionModel.from_config(sizes), config, vae)
    for module, path in zip((vae, text_encoder, student), weights_of(folder)):
        _offload(module, path)
        module.eval().requires_grad_(False)
    tokenizer = PromptTokenizer.load(folder / "tokenizer" / "tokenizer.json")
    return Offloaded(config, vae, text_encoder, tokenizer, reference, student)


def _offload(module: nn.Module, path: Path) -> None:
    """Give every parameter and stored buffer its numbers, or a stand-in that knows where they are."""
    try:
        with safe_open(str(path), framework="pt") as file:
            keys = set(file.keys())
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; restore it from where it came") from error
    for name, tensor in module.state_dict(keep_vars=True).items():
        key = stored_name(name, keys)
        if key not in keys:
            raise CheckpointError(f"{path} lacks {name}; use the configuration it was trained with")
        stored = Stored(path, key)
        owner, _, last = name.rpartition(".")
        home = module.get_submodule(owner)
        if not isinstance(tensor, nn.Parameter):
            home.register_buffer(last, stored.read())
        elif tensor.numel() <= SMALL:
            home.register_parameter(last, nn.Parameter(stored.read(), requires_grad=False))
        else:
            blank = nn.Parameter(torch.zeros(1).expand(tensor.shape), requires_grad=False)
            blank.stored = stored  # type: ignore[attr-defined]
            home.register_parameter(last, blank)


def stand_ins(module: nn.Module, deep: bool = True) -> dict[str, nn.Parameter]:
    """The parameters whose numbers are on disk, by name."""
    return {name: p for name, p in module.named_parameters(recurse=deep) if hasattr(p, "stored")}


@contextmanager
def filled(module: nn.Module) -> Iterator[None]:
    """The module with all its numbers in memory, for the duration."""
    _fill(module)
    try:
        yield
    finally:
        _empty(module)


@contextmanager
def reading(*modules: nn.Module) -> Iterator[None]:
    """Let modules compute: each inner module reads its numbers when it is called and drops them after."""
    hooks: list[Any] = []
    for module in {m for outer in modules for m in outer.modules() if stand_ins(m, deep=False)}:
        hooks.append(module.register_forward_pre_hook(lambda m, _: _fill(m)))
        hooks.append(module.register_forward_hook(lambda m, _, out: _empty(m)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def computing(checkpoint: Checkpoint) -> AbstractContextManager[None]:
    """What must be entered before a checkpoint's modules are called."""
    if isinstance(checkpoint, Offloaded):
        return reading(checkpoint.vae, checkpoint.text_encoder, checkpoint.student)
    return nullcontext()


def working_size(checkpoint: Checkpoint, shape: tuple[int, ...] = (1, 1)) -> int:
    """Pixels of the longer side that a checkpoint is measured and verified at, on a picture [H, W, ...] of this shape."""
    size = checkpoint.config.working_size.of(*shape[:2])
    return min(size, CHECKED_AT) if isinstance(checkpoint, Offloaded) else size


def _fill(module: nn.Module) -> None:
    for parameter in stand_ins(module).values():
        parameter.data = _read(parameter)


def _empty(module: nn.Module) -> None:
    for parameter in stand_ins(module).values():
        parameter.data = torch.zeros(1).expand(parameter.shape)


def _read(parameter: nn.Parameter) -> Tensor:
    stored: Stored = parameter.stored  # type: ignore[attr-defined]
    values = stored.read()
    if values.shape != parameter.shape:
        raise CheckpointError(f"{stored.path}: {stored.key} has shape {list(values.shape)}, expected "
                              f"{list(parameter.shape)}; use the configuration it was trained with")  # fmt: skip
    return values
