"""The checkpoint on the way to the next bundled model: its parts, put together as its card says, are a model that answers."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.model.folder import BUNDLED

PARTS = Path(__file__).resolve().parents[2] / "benchmarks" / "checkpoints" / "digseg-real"


@pytest.mark.slow
def test_the_parts_are_a_checkpoint_that_answers_with_presence(tmp_path):
    folder = tmp_path / "real"
    shutil.copytree(PARTS, folder)
    for name in ("unet", "vae", "text_pathway"):
        shutil.copytree(BUNDLED / name, folder / name)
    picture = np.zeros((96, 128, 3), np.uint8)
    rows, columns = np.ogrid[:96, :128]
    picture[(rows - 40) ** 2 + (columns - 60) ** 2 < 20**2] = (
        180  # a bright disc on black: a nucleus as fluorescence shows it
    )
    with Engine.load(folder, backend="torch") as engine:
        result = engine.segment(picture, ["nucleus", "a photo of a nucleus"])
    assert result.presence is not None and result.presence.shape == (2,)
    plain, phrased = result.masks
    inside = picture[..., 0] > 0
    assert (plain & inside).sum() > 0.8 * inside.sum() and (plain & ~inside).sum() < 0.3 * inside.sum()
    assert (plain & phrased).sum() > 0.9 * (plain | phrased).sum()
