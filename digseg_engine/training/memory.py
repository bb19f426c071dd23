"""How much memory a stage of training needs, counted without having it: the stage's own loss, optimizer and average run on
tensors that have shapes and no contents (PyTorch's fake tensors).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from digseg_engine.data.batch import Batch, Choose, Planes
from digseg_engine.data.query import Query
from digseg_engine.data.wordings import encode_text
from digseg_engine.model.autoencoder import encode_image, encode_mask, latent_stride
from digseg_engine.model.devices import device_of
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.model.sampler import Schedule
from digseg_engine.training.averaging import trained_weights
from digseg_engine.training.loop import Loss, StageConfig
from digseg_engine.training.lora import Adapters
from digseg_engine.training.objectives.denoising import DenoisingLoss
from digseg_engine.training.objectives.few_step import FewStepLoss
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import Pairs
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.state import KEPT, trained
from digseg_engine.training.thrift import NETWORKS, autocast, make_optimizer, recomputing

PROMPT = "a thing with a name of some words"
BYTES_8BIT = 2 * (1 + 4 / 256)  # two moments of a byte each, and a float32 scale for every 256 weights (bitsandbytes)
STAGES = ("reference", "one_step", "few_step", "student")  # what can be counted


@dataclass(frozen=True)
class StageMemory:
    """Bytes on the device while one stage trains."""

    weights: int  # of the network that is trained
    frozen: int  # of the others that its loss asks
    gradients: int
    optimizer: int
    average: int
    peak: int  # the most at any time, all of it

    @property
    def disk(self) -> int:
        """Bytes of the stage's folder at the most: the saved states that are kept and the one being written, the best weights
        and the last."""
        trained = self.gradients  # as large as what trains, wherever its average lies
        return (KEPT + 1) * (2 * trained + self.optimizer) + trained + self.weights

    @property
    def activations(self) -> int:
        """What the peak holds beside the parts that are there all the time."""
        return max(0, self.peak - self.weights - self.frozen - self.gradients - self.optimizer - self.average)


class MemoryCounter(TorchDispatchMode):
    """While open, counts the bytes of every storage that an operation makes, until the last tensor on it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class ShapedBatches:
    """Batches of the right shapes without contents, on the autoencoder's device; `encodes`: the pictures pass it at every
    step."""

    seed = 0
    names: tuple[str, ...] = (PROMPT,)

    def __init__(self, checkpoint: Checkpoint, size: int, encodes: bool) -> None:
        self.checkpoint, self.size, self.encodes = checkpoint, size, encodes

    def batch(self, step: int, size: int, prompts: int) -> Batch:
        device = device_of(self.checkpoint.vae)
        images = torch.zeros(size, 3, self.size, self.size, device=device)
        masks = torch.zeros(size, prompts, self.size, self.size, device=device)
        return Batch(images, self.latents(images), [Query(PROMPT, PROMPT)] * prompts, Planes(masks))

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        if self.encodes:
            with torch.autocast(images.device.type, enabled=False):
                return encode_image(self.checkpoint.vae, images)
        side = self.size // latent_stride(self.checkpoint.vae)
        return torch.zeros(len(images), 4, side, side, device=images.device)

    def asked_by(self, choose: Choose) -> ShapedBatches:
        return self

    def phrase(self, rng: Any, name: str) -> Query:
        return Query(PROMPT, PROMPT)

    def pictures(self, step: int, size: int) -> list[str]:
        return []


class ShapedPairs:
    """`PairSource` for shapes: which prompt a picture is asked depends on contents, its shape does not."""

    def __init__(self, batches: ShapedBatches, config: StageConfig) -> None:
        self.batches, self.config, self.vae = batches, config, batches.checkpoint.vae

    @torch.no_grad()
    def draw(self, step: int, random: torch.Generator, device: torch.device) -> Pairs:
        batch, parts = self.batches.batch(step, self.config.batch, self.config.batch), self.batches.checkpoint
        masks = batch.masks[:, 0].clone()
        text, token_mask = encode_text(parts.text_encoder, parts.tokenizer, [PROMPT] * len(masks))
        return Pairs(batch.latents, masks, encode_mask(parts.vae, masks), text, token_mask)


def count_stage(
    outline: Callable[[], Checkpoint], name: str, config: StageConfig, size: int, encodes: bool = True,
    precision: str = "no", imitate_every: int = 0, teacher_steps: int = 4,
) -> StageMemory:  # fmt: skip
    """Memory of the stage `name` of a checkpoint that `outline` builds, pictures of size x size pixels.

    precision: what `auto` stands for on the device in question. encodes: pictures pass the autoencoder at every step (a
    folder of pictures, new crops). Two steps are run, so that the optimizer's state is there in the second; both imitate the
    reference, where any step does (`imitate_every` above 0). What a library reserves beside tensors (a CUDA context,
    convolution workspaces, fragmentation) is not counted.
    """
    with torch.device("meta"):
        description = outline().config
    schedule = replace(description).schedule  # with contents: samplers read its numbers
    with FakeTensorMode(allow_non_fake_inputs=True), MemoryCounter() as counter:
        checkpoint = outline()
        module, loss, asked = stage_work(
            outline,
            checkpoint,
            schedule,
            name,
            config,
            ShapedBatches(checkpoint, size, encodes),
            imitate_every,
            teacher_steps,
        )
        if config.lora:
            add_adapters(module, config.lora)
        drop(checkpoint, asked)
        weights, all_parts = _bytes(module), sum(_bytes(getattr(checkpoint, part)) for part in asked)
        frozen = all_parts - weights
        module.train()
        average = [] if config.average_on_cpu else [torch.empty_like(each) for each in trained(module).values()]
        optimizer = _optimizer(config, module)
        gradients = _size(trained_weights(module))
        eight = gradients // 4 * BYTES_8BIT if config.optimizer == "adamw8bit" else 0
        mixed = config.precision if config.precision != "auto" else precision
        counter.peak = counter.now
        with recomputing(config.gradient_checkpointing, module, checkpoint.vae):
            for step in range(2):
                _step(module, loss, config, optimizer, mixed, step * max(1, imitate_every))
        moments = sum(
            value.untyped_storage().nbytes()
            for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        )  # fmt: skip
        return StageMemory(weights, frozen, gradients, int(moments + eight), _size(average), int(counter.peak + eight))


def stage_work(
    outline: Callable[[], Checkpoint],
    checkpoint: Checkpoint,
    schedule: Schedule,
    name: str,
    config: StageConfig,
    batches: ShapedBatches,
    imitate_every: int,
    teacher_steps: int,
) -> tuple[nn.Module, Loss, set[str]]:
    """(what is trained, its loss, the checkpoint's networks that the stage asks)."""
    for part in NETWORKS:
        getattr(checkpoint, part).eval().requires_grad_(False)
    pairs: Any = ShapedPairs(batches, config)
    asked = {"vae", "text_encoder", "reference"}
    if name == "student":
        frozen = (checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, checkpoint.reference, schedule)
        distilled: Any = DistillationLoss(batches, *frozen, config, teacher_steps, imitate_every)
        checkpoint.student.requires_grad_(True)
        return checkpoint.student, distilled, (asked if imitate_every else asked - {"reference"}) | {"student"}
    checkpoint.reference.requires_grad_(True)
    if name == "few_step":
        teacher = outline().reference.eval().requires_grad_(False)
        return checkpoint.reference, FewStepLoss(pairs, teacher, schedule, teacher_steps, (1,)), asked
    loss: Any = OneStepLoss(pairs, schedule) if name == "one_step" else DenoisingLoss(pairs, schedule)
    return checkpoint.reference, loss, asked


def drop(checkpoint: Checkpoint, asked: set[str]) -> None:
    """Forget the networks that the stage does not ask: they lie on the CPU meanwhile."""
    for part in set(NETWORKS) - asked:
        setattr(checkpoint, part, None)


def add_adapters(module: nn.Module, rank: int) -> None:
    """`Adapters` without contents. They are made with some and then emptied: peft moves what it makes, which tensors without
    contents do not allow."""
    with unset_fake_temporarily():
        Adapters(module, rank)
    for part in list(module.modules()):
        for name, weight in list(part.named_parameters(recurse=False)):
            if not isinstance(weight, FakeTensor):
                part.register_parameter(name, nn.Parameter(torch.empty(weight.shape)))


def _optimizer(config: StageConfig, module: nn.Module) -> torch.optim.Optimizer:
    weights = list(trained_weights(module))
    if config.optimizer == "adamw8bit":  # its kernels take no fake tensors; its state is counted by BYTES_8BIT
        return torch.optim.SGD(weights, config.learning_rate)
    return make_optimizer(config.optimizer, weights, config.learning_rate, config.weight_decay)


def _step(
    module: nn.Module, loss: Loss, config: StageConfig, optimizer: torch.optim.Optimizer, precision: str, step: int
) -> None:
    for _ in range(min(2, config.accumulate)):
        with autocast("cpu", precision):
            value, _ = loss(module, step)
        value.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _bytes(module: nn.Module) -> int:
    return _size((*module.parameters(), *module.buffers()))


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
