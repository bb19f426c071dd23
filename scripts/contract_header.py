"""Writes kernels/src/contract.hpp: the contract of `digseg_engine/contract.py` as C++ constants.

Usage: python scripts/contract_header.py
"""

from __future__ import annotations

import json
from pathlib import Path

from digseg_engine import contract
from digseg_engine.named import SHIPPED_BUNDLE

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "kernels" / "src" / "contract.hpp"
FRAME = """// Made by scripts/contract_header.py from digseg_engine/contract.py; do not edit.
#pragma once
#include <cstddef>

namespace digseg::contract {{

constexpr const char* kFormat = {format};
constexpr long long kVersion = {version};
constexpr float kAbsent = {absent};
constexpr size_t kTokenBuckets[] = {{{buckets}}};
constexpr const char* kShippedBundle = {shipped};
constexpr size_t kMostNames = {most_names};

{tensors}

// The graphs in the order they are asked. An open bundle may lack `presence` and has no `labels`; a folded one has
// image encoder and labels.
enum Graph {{ {graphs}, kGraphs }};
struct GraphFile {{
  const char *name, *file, *cpu_file, *data_file;
}};
constexpr GraphFile kGraphFiles[kGraphs] = {{
{files}
}};

}}  // namespace digseg::contract
"""


def camel(name: str) -> str:
    """k and the words of a Python name: TOKEN_IDS and token_ids are kTokenIds."""
    return "k" + name.title().replace("_", "")


def header() -> str:
    """The text of the header."""
    tensors = {name: value for name, value in vars(contract).items() if isinstance(value, contract.TensorSpec)}
    graphs = {**contract.GRAPHS, "labels": contract.LABELS}
    lines = [
        f"constexpr const char* {camel(name)} = {json.dumps(spec.name)};"
        f"  // {spec.dtype} [{', '.join(map(str, spec.axes))}]: {spec.meaning}"
        for name, spec in tensors.items()
    ]
    files = [
        "    {" + ", ".join(map(json.dumps, (name, graph.file, graph.cpu_file, graph.data_file))) + "},"
        for name, graph in graphs.items()
    ]
    return FRAME.format(
        format=json.dumps(contract.BUNDLE_FORMAT),
        version=contract.CONTRACT_VERSION,
        absent=f"{contract.ABSENT}f",
        buckets=", ".join(map(str, contract.TOKEN_BUCKETS)),
        most_names=contract.MOST_NAMES,
        shipped=json.dumps(SHIPPED_BUNDLE.relative_to(ROOT).as_posix()),
        tensors="\n".join(lines),
        graphs=", ".join(map(camel, graphs)),
        files="\n".join(files),
    )


if __name__ == "__main__":
    HEADER.write_text(header(), encoding="utf-8")
    print(f"wrote {HEADER.relative_to(ROOT)}")
