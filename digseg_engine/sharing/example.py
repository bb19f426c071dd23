"""A picture for the model card: that of the bundle's golden sample, with what the bundle itself answers about it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.source import Source


@dataclass(frozen=True)
class Example:
    """png: the overlay, b"" where there is none. prompts: those of the golden sample in words, as far as they can be told."""

    prompts: tuple[str, ...] = ()
    png: bytes = b""


def example_of(source: Source) -> Example:
    """Nothing where prompts cannot be told from their tokens, and of a bundle that answers a label map alone."""
    words = source.vocabulary
    if words is not None and words.labels_only:
        return Example()
    prompts = None if words is not None else golden_prompts(source)
    if words is None and not prompts:
        return Example()
    pixels = np.clip((source.golden.image[0].transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(
        np.uint8
    )  # [H, W, 3]
    with Engine.load(source.need_bundle("an example").folder, "auto", pictures=1) as engine:
        body = io.BytesIO()
        engine.segment(pixels, None if prompts is None else list(prompts)).overlay().save(body, "png")
    return Example(prompts or (), body.getvalue())


def golden_prompts(source: Source) -> tuple[str, ...]:
    """The prompts of an open bundle's golden sample; () where their tokens are not those of any words we can tell."""
    golden, tokenizer = source.golden, source.tokenizer()
    pieces = {number: piece for piece, number in tokenizer.vocabulary().items()}
    found = []
    for ids, mask in zip(golden.token_ids, golden.token_mask):
        row = [int(number) for number in ids[mask]]
        words = "".join(pieces.get(number, "") for number in row[1:-1]).replace("</w>", " ").strip()
        if not words or tokenizer.ids(words) != row:
            return ()
        found.append(words)
    return tuple(found)
