"""Prepare one peer at one size, in its environment: count it and write its ONNX files and `about.json`. Run by `speed_peers.py`
as `python -m benchmarks.peers.prepare NAME SIZE FOLDER PROMPTS...`; what imports and exports here is not measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.peers.registry import PEERS


def main() -> None:
    name, size, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    prompts, peer = [int(text) for text in sys.argv[4:]], PEERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    if not peer.asks_again:
        from benchmarks.peers import yolo

        about = yolo.prepare(peer.model, size, prompts, folder)
    else:
        from benchmarks.peers import models, parts

        built = models.build(peer.model, size)
        about = {**parts.counted(built, prompts), "vocabulary": built.vocabulary}
        if peer.is_exported:
            parts.export(built, folder)
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
