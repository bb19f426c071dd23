"""A prompt about a labelled picture. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """A prompt as typed and the canonical name whose region it means."""

    text: str
    name: str
