"""Bundles of the pico checkpoint with any shapes and precision, made from one trace: fixtures for the tests beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.precisions import Limits, spec_of
from digseg_export import calibration, presence_threshold, verify
from digseg_export.progress import StepTimer
from digseg_export.publish import Exported, Known, publish, trace
from digseg_export.request import Request

__all__ = ["few_scenes", "pico_bundle", "traced"]
RANGED = {
    "min_shapes": "image_encoder.image:1x3x32x64,mask_decoder.token_mask:1x8",
    "opt_shapes": "image_encoder.image:1x3x64x64,mask_decoder.token_mask:3x16",
    "max_shapes": "image_encoder.image:2x3x96x64,mask_decoder.token_mask:7x32",
}


@pytest.fixture(scope="session")
def traced(pico_folder):
    """The checkpoint, its graphs, traced once for all exports of a worker, and its folder."""
    checkpoint = load_checkpoint(pico_folder)
    return checkpoint, trace(checkpoint, StepTimer(lambda step: None)), pico_folder


@pytest.fixture(scope="session")
def pico_bundle(traced, tmp_path_factory):
    """The pico checkpoint in fp32: it has a presence graph."""
    folder = tmp_path_factory.mktemp("pico-bundle") / "b"
    export(traced, folder, "fp32", {})
    return folder


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    """One scene of each domain: what precision costs is tested elsewhere; just enough for a presence threshold."""
    monkeypatch.setattr(verify, "SCENES_PER_DOMAIN", 1)
    monkeypatch.setattr(calibration, "SCENES_PER_DOMAIN", 1)
    monkeypatch.setattr(presence_threshold, "SCENES_PER_DOMAIN", 10)


def pico_limits(precision: str) -> Limits:
    """Limits for random weights of a few channels: 8 bits cost them up to 0.22, by the numbers that torch's release draws."""
    limits = spec_of(precision).limits
    return replace(limits, relative=max(limits.relative, 0.3)) if precision == "int8" else limits


def export(
    traced, target: Path, precision: str, options: dict, iou: float = 0.5, known: Known | None = None, **looser
) -> Exported:
    """Publish with the limits of the precision, but for masks of a few pixels: the weights are random."""
    checkpoint, graphs, folder = traced
    limits = replace(pico_limits(precision), iou=iou, **looser)
    tokenizer = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    timer, request = StepTimer(lambda step: None), Request(precision=precision, **options)
    return publish(checkpoint, graphs, tokenizer, target, precision, limits, timer, request.options(), known)
