"""Parameters, gradients, moments and averages of a stage divided among its processes: PyTorch's FSDP2 (`fully_shard`).

Zhao et al. 2023 (arXiv 2304.11277). Every block of the network is gathered when it is asked, and let go after. A module that
trains so is a copy: the module itself stays whole, in the CPU's memory, for validation and for what comes after the stage.
States are those of any other run (whole tensors in safetensors, see `state.py`), so that a run goes on in another number of
processes, or undivided.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from digseg_engine.errors import UsageError

STAGES = ("reference", "one_step", "few_step")  # their module is asked once, as a whole, in every micro-batch
OPTIMIZERS = ("adamw",)  # of those that work weight by weight, number by number


def divides(name: str, config: Any, processes: int) -> bool:
    """Whether the stage's weights are to be divided."""
    return bool(config.shard and name in STAGES and processes > 1)


def check_sharding(name: str, config: Any) -> None:
    """Raises UsageError for a setting of the stage that does not work on divided weights."""
    wrong = {
        "optimizer": (config.optimizer not in OPTIMIZERS, "adamw"),  # muon needs whole matrices
        "precision": (config.precision == "fp16", "bf16"),  # the scaling of fp16's losses is not built for it
        "compile": (config.compile, "false"),
        "average_on_cpu": (config.average_on_cpu, "false"),
        "channels_last": (config.channels_last, "false"),
    }
    for setting, (refused, instead) in wrong.items():
        if refused:
            raise UsageError(f"{name}.shard does not work together with {name}.{setting}={getattr(config, setting)}; set "
                             f"{name}.{setting}={instead}, or {name}.shard=false")  # fmt: skip


def sharded(module: nn.Module, device: torch.device, processes: int) -> nn.Module:
    """A copy of a module whose weights are divided, block by block. Called by every process, with equal weights."""
    mesh = init_device_mesh(device.type, (processes,))
    whole = copy.deepcopy(module)
    _give_axes(whole)
    named = _blocks(whole)
    for part in reversed([part for part in whole.modules() if type(part).__name__ in named]):  # the inner ones first
        fully_shard(part.to(device), mesh=mesh)
    return fully_shard(_rest_to(whole, device), mesh=mesh)


def _give_axes(module: nn.Module) -> None:
    """Numbers without an axis (a gate) become rows of one, which alone can be divided; `like` takes either for the other."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if not weight.dim():
                part.register_parameter(name, nn.Parameter(weight.detach().reshape(1), weight.requires_grad))


def _blocks(module: nn.Module) -> set[str]:
    """Names of the classes that the networks inside call their blocks (diffusers' `_no_split_modules`)."""
    named: Iterable[list[str]] = (getattr(part, "_no_split_modules", None) or [] for part in module.modules())
    return set(chain.from_iterable(named))


def _rest_to(module: nn.Module, device: torch.device) -> nn.Module:
    """What is not divided yet, to the device."""
    for tensor in chain(module.parameters(), module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
    return module


def divided(module: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def local(weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """This process's part of every tensor; a tensor that is not divided itself."""
    return (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors; divided ones in the CPU's memory, one after the other, where `keep` is set, and none elsewhere. Called by
    every process."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            whole = tensor.detach().full_tensor()
            if keep:
                found[name] = whole.cpu()
        elif keep:
            found[name] = tensor
    return found


def like(tensor: Tensor, weight: Any) -> Tensor:
    """A whole tensor as a weight is: divided, or a number with or without an axis."""
    if weight is None or tensor.numel() != weight.numel():
        return tensor  # it does not fit, which is told where it is to be used
    shaped = tensor.reshape(weight.shape) if tensor.numel() == 1 else tensor
    if not isinstance(weight, DTensor) or shaped.shape != weight.shape:
        return shaped
    part: Tensor = distribute_tensor(shaped.to(weight.device), weight.device_mesh, weight.placements)
    return part
