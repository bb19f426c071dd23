"""`digseg serve`: a page to try a bundle on, and its masks over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.segment import MODEL

MIB = 2**20


def run(
    bundles: list[str], host: str, port: int, token: str | None, no_token: bool, cors: list[str], allow_host: list[str],
    backend: str, device: str | None, threads: int | None, workers: int | None, queue: int | None, max_mib: int | None,
    max_megapixels: float | None, max_prompts: int | None, max_size: int | None, keep: int | None, keep_mib: int | None,
    keep_seconds: float | None,
) -> int:  # fmt: skip
    from dataclasses import replace

    from digseg_engine.serving.limits import Limits
    from digseg_engine.serving.server import Listening, serve

    given: dict[str, Any] = {
        "workers": workers, "queue": queue, "prompts": max_prompts, "size": max_size, "encodings": keep,
        "body": None if max_mib is None else max_mib * MIB,
        "bodies": None if max_mib is None else max(max_mib * MIB, Limits.bodies),
        "pixels": None if max_megapixels is None else round(max_megapixels * 1e6),
        "encoding_bytes": None if keep_mib is None else keep_mib * MIB, "encoding_seconds": keep_seconds,
    }  # fmt: skip
    limits = replace(Limits(), **{name: value for name, value in given.items() if value is not None})
    token = None if no_token else token or os.environ.get("DIGSEG_TOKEN") or None
    return serve(Listening(tuple(map(Path, bundles)), host, port, token, no_token, tuple(cors), tuple(allow_host), backend,
                           device, threads, limits))  # fmt: skip


_USED = {option.spellings[0]: option for option in MODEL}

COMMAND = Command(
    name="serve",
    summary="Serve bundles: a page to drop pictures on and type prompts, and masks over HTTP (OpenAPI, metrics, limits).",
    run=run,
    extras=("serve",),
    options=(
        Option("bundles", "exported bundles (default: as for `digseg segment`); the first one answers where none is named",
               metavar="BUNDLE", many=True),
        Option("--host", "address to listen on; others than this machine's own need --token", default="127.0.0.1",
               metavar="ADDRESS"),
        Option("--port", "port to listen on, 0 for any free one", kind=int, default=8765, at_least=0, at_most=65535),
        Option("--token", "what requests must bear (Authorization: Bearer TOKEN)", shown="$DIGSEG_TOKEN", metavar="TOKEN"),
        Option("--no-token", "let anybody use it, also over the network", kind=bool, default=False, not_with=("--token",)),
        Option("--cors", "let pages of this origin ask; repeat for several", metavar="ORIGIN", many=True),
        Option("--allow-host", "answer for this host name too, such as a proxy's; repeat for several", metavar="NAME", many=True),
        _USED["--backend"],
        _USED["--device"],
        _USED["--threads"],
        Option("--workers", "requests that the model works on at once", kind=int, at_least=1, shown="2"),
        Option("--queue", "requests that may wait for it; more are told to come again", kind=int, at_least=0, shown="128"),
        Option("--max-mib", "MiB of one request", kind=int, at_least=1, shown="32"),
        Option("--max-megapixels", "million pixels of one picture", kind=float, at_least=0.01, shown="32"),
        Option("--max-prompts", "prompts of one question", kind=int, at_least=1, at_most=10000, shown="100"),
        Option("--max-size", "largest working size in pixels that may be asked for", kind=int, at_least=8, shown="1024"),
        Option("--keep", "encoded pictures that are kept", kind=int, at_least=1, shown="256"),
        Option("--keep-mib", "MiB that they may take", kind=int, at_least=1, shown="512"),
        Option("--keep-seconds", "seconds that one is kept after it was last asked about", kind=float, at_least=1, shown="900"),
    ),
    examples=(
        "digseg serve",
        "digseg serve digseg-tiny-fp16 --port 9000 --threads 4",
        "digseg serve my-bundle --host 0.0.0.0 --token secret",
    ),
)  # fmt: skip
