"""Calibration data: pictures and prompts. The generated training scenes, or a folder of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.shares import Share
from digseg_engine.images import fit
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.worlds.scenes import DOMAINS, is_scenes, scene
from digseg_engine.worlds.sources import parse_domains
from digseg_export.disk_offload import Offloaded, working_size
from digseg_export.own_pictures import own_mixture

SCENES_PER_DOMAIN = 8
PICTURES = 96  # of all folders together; each is run through every graph, and a largest value hardly grows after that
PROMPTS_PER_BATCH = 8


@dataclass(frozen=True)
class Calibration:
    """One batch: pictures [B, 3, H, W] in -1..1 and the tokens of the prompts asked about them [K, L]."""

    image: NDArray[np.float32]
    token_ids: NDArray[np.int64]
    token_mask: NDArray[np.bool_]

    def text_feeds(self) -> dict[str, Any]:
        return {"token_ids": self.token_ids, "token_mask": self.token_mask}


def painted_domains(shares: Sequence[Share]) -> tuple[str, ...]:
    """The domains of painted scenes among the data of a record."""
    painted = {domain for share in shares if is_scenes(share.data) for domain in parse_domains(share.data)}
    return tuple(domain for domain in DOMAINS if domain in painted)


def calibration(
    checkpoint: Checkpoint, folders: Sequence[Path] = (), painted: Sequence[str] = ()
) -> tuple[list[Calibration], str]:
    """Batches of one picture or domain each, and words on where they come from: the pictures of `folders` and scenes of the
    `painted` domains; without either, scenes of every domain (of a large model one).

    Raises InputError for a folder without pictures or prompts, or a picture that cannot be read.
    """
    batches, words = [], []
    if folders:
        own = own_mixture(folders, PICTURES, PROMPTS_PER_BATCH, held_out=False)
        batches += [_batch(checkpoint, [example.read()], list(example.prompts)) for example in own.examples]
        words.append(own.origin)
    if painted or not folders:
        few = isinstance(checkpoint, Offloaded)
        count, domains = (1, tuple(painted or DOMAINS)[:1]) if few else (SCENES_PER_DOMAIN, painted or DOMAINS)
        batches += [_domain(checkpoint, domain, count) for domain in domains]
        words.append(f"{count} training scene{'s' * (count > 1)} of each of {', '.join(domains)}, with their prompts")
    return batches, "; ".join(words)


def _domain(checkpoint: Checkpoint, domain: str, count: int) -> Calibration:
    scenes = [scene(70_000 + i, domain, working_size(checkpoint), "train") for i in range(count)]
    present = list(dict.fromkeys(name for picture in scenes for name in picture.names()))
    return _batch(checkpoint, [picture.image for picture in scenes], [*present[: PROMPTS_PER_BATCH - 1], "zebra"])


def _batch(checkpoint: Checkpoint, pictures: list[NDArray[np.uint8]], prompts: list[str]) -> Calibration:
    size = working_size(checkpoint)
    image = np.concatenate([fit(rgb, size, checkpoint.stride).pixels for rgb in pictures])
    return Calibration(image, *checkpoint.tokenizer.encode(tuple(prompts)))
