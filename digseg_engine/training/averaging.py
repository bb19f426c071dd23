"""The running average of a stage's weights (EMA), of those that train: the others are shared with the module, not copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from digseg_engine.training.sharding import local, sharded


class Averaged(AveragedModel):
    """`module` answers with the averaged weights. decay: share of the average that an update keeps. device: where the averaged
    weights lie; None: beside the module's."""

    def __init__(self, module: nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__(nn.Identity(), device, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)
        shared = {id(weight): weight for weight in module.parameters() if not weight.requires_grad}
        self.module = copy.deepcopy(module, shared)
        self._whole: tuple[nn.Module, ...] = ()  # no part of this module
        for tensor in chain(self.parameters(), self.module.buffers()) if device is not None else ():
            tensor.data = tensor.data.to(device)  # one by one: `Module.to` would take the shared ones along

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Those that are averaged, of a divided module this process's parts."""
        return local(trained_weights(self.module))

    def update_parameters(self, model: nn.Module) -> None:
        seen: Any = SimpleNamespace(parameters=lambda: local(trained_weights(model)), buffers=model.buffers)
        super().update_parameters(seen)

    def divide(self, whole: nn.Module, device: torch.device, processes: int) -> None:
        """Keep the averaged weights divided among the processes; `whole` takes them whenever they are asked for something."""
        self.module, self._whole = sharded(self.module, device, processes), (whole,)

    @property
    def whole(self) -> nn.Module | None:
        """What a divided average is asked through; None where it is not divided."""
        return self._whole[0] if self._whole else None


def trained_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of a module that train."""
    return (weight for weight in module.parameters() if weight.requires_grad)
