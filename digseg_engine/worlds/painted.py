"""Generated scenes as picture files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from digseg_engine.files import replacing
from digseg_engine.worlds.scenes import scene


def write_scenes(
    folder: Path, domains: Sequence[str], seeds: Sequence[int], size: int
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """One PNG per domain and seed; yields each path with the names of what is in it. Raises UsageError for an unknown
    domain, OutputError for a folder that cannot be written."""
    for domain in domains:
        for seed in seeds:
            painted = scene(seed, domain, size, "demo")
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{domain}-{seed}.png"
            with replacing(path) as temporary:
                Image.fromarray(painted.image).save(temporary, format="PNG")
            yield path, tuple(painted.names())
