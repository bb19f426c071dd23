"""Calibration data: pictures and prompts. The generated training scenes, or a folder of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.images import fit
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.worlds.scenes import DOMAINS, scene
from digseg_export.disk_offload import Offloaded, working_size
from digseg_export.own_pictures import own_pictures

SCENES_PER_DOMAIN = 8
PROMPTS_PER_BATCH = 8


@dataclass(frozen=True)
class Calibration:
    """One batch: pictures [B, 3, H, W] in -1..1 and the tokens of the prompts asked about them [K, L]."""

    image: NDArray[np.float32]
    token_ids: NDArray[np.int64]
    token_mask: NDArray[np.bool_]

    def text_feeds(self) -> dict[str, Any]:
        return {"token_ids": self.token_ids, "token_mask": self.token_mask}


def calibration(checkpoint: Checkpoint, folder: Path | None) -> tuple[list[Calibration], str]:
    """Batches of one picture or domain each, and words on where they come from.

    Raises InputError for a folder without pictures or prompts, or a picture that cannot be read.
    """
    if folder is None:
        few = isinstance(checkpoint, Offloaded)
        count, domains = (1, DOMAINS[:1]) if few else (SCENES_PER_DOMAIN, DOMAINS)
        words = f"{count} training scene{'s' * (count > 1)} of each of {', '.join(domains)}, with their prompts"
        return [_domain(checkpoint, domain, count) for domain in domains], words
    own = own_pictures(folder, prompts=PROMPTS_PER_BATCH, held_out=False)
    return [_batch(checkpoint, [example.read()], list(example.prompts)) for example in own.examples], own.origin


def _domain(checkpoint: Checkpoint, domain: str, count: int) -> Calibration:
    scenes = [scene(70_000 + i, domain, working_size(checkpoint), "train") for i in range(count)]
    present = list(dict.fromkeys(name for picture in scenes for name in picture.names()))
    return _batch(checkpoint, [picture.image for picture in scenes], [*present[: PROMPTS_PER_BATCH - 1], "zebra"])


def _batch(checkpoint: Checkpoint, pictures: list[NDArray[np.uint8]], prompts: list[str]) -> Calibration:
    size = working_size(checkpoint)
    image = np.concatenate([fit(rgb, size, checkpoint.stride).pixels for rgb in pictures])
    return Calibration(image, *checkpoint.tokenizer.encode(tuple(prompts)))
