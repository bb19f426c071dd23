"""Low-rank adapters: instead of the attention projections of a pretrained U-Net, small matrices beside them train, and at the
end of the stage they are added to them, so that what is kept is an ordinary network.

Hu et al. 2021 (arXiv 2106.09685), by the package peft. What is new or widened trains whole: the first convolution, and all
that is not the U-Net (text pathway, injections, image stem, mask head). Every other weight of the U-Net stays as it is.
"""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from torch import nn

from digseg_engine.errors import UsageError
from digseg_engine.extras import require

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # diffusers' names of an attention's four matrices
WHOLE = ("conv_in",)  # parts of the U-Net that train as ever


class Adapters:
    """Adapters of rank `rank` in the U-Net of `module`, which changes nothing until they are trained: one of each pair of
    matrices is zero. The other is drawn from torch's generator.

    Raises UsageError for a rank below 1 and a module without a U-Net, MissingPackageError without peft.
    """

    def __init__(self, module: nn.Module, rank: int) -> None:
        check_rank(rank)
        from peft.tuners.lora import LoraConfig, LoraModel

        unet = next((part for part in module.modules() if isinstance(part, UNet2DConditionModel)), None)
        if unet is None:
            raise UsageError(
                "adapters (lora) go into the U-Net of a stage, and this one trains none; set lora to 0 in it"
            )
        self._trained = [weight for weight in unet.parameters() if weight.requires_grad]
        scale = rank  # peft multiplies by lora_alpha / rank: by 1
        config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules=list(PROJECTIONS))
        self._tuner = LoraModel(unet, config, "default")  # also: only what it adds trains
        for name in WHOLE:
            unet.get_submodule(name).requires_grad_(True)

    def merge(self) -> None:
        """Add every adapter to its projection and leave the U-Net as it was made, with all of it training again."""
        unet = self._tuner.merge_and_unload()
        vars(unet).pop("peft_config", None)  # some releases of peft leave it behind, and warn of it the next time
        for weight in self._trained:
            weight.requires_grad_(True)


def check_rank(rank: int) -> None:
    """Raises UsageError for a rank below 1, MissingPackageError where peft is not installed."""
    if rank < 1:
        raise UsageError(f"lora, the rank of adapters, must be 1 or more, or 0 for none, got {rank}")
    require("training adapters (lora)", "lora")
