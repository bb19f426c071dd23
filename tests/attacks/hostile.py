"""Hostile things, made for these tests: bundles whose hashes are true, graphs that ask for other files, files of odd kinds."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from digseg_engine.bundle import MANIFEST, finish
from digseg_engine.named import SHIPPED_BUNDLE

GRAPH = "mask_decoder.fp32.onnx"
DATA = "mask_decoder.data"


def copy_of_shipped(folder: Path) -> Path:
    """The shipped bundle, to be spoilt."""
    return Path(shutil.copytree(SHIPPED_BUNDLE, folder / "bundle"))


def with_true_hashes(folder: Path) -> Path:
    """The manifest made true again for whatever lies in the folder: its maker is the attacker."""
    body = json.loads((folder / MANIFEST).read_text())
    finish(folder, {name: value for name, value in body.items() if name != "files"})
    return folder


def with_graph(folder: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    """The shipped bundle with its mask decoder changed, all hashes true."""
    bundle = copy_of_shipped(folder)
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    change(model)
    (bundle / GRAPH).write_bytes(model.SerializeToString())
    return with_true_hashes(bundle)


def kept_outside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors whose bytes lie in a file beside the graph."""
    return [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]


def pointing(**values: str | None) -> Callable[[onnx.ModelProto], None]:
    """Let the first such tensor say other things of where it lies; None leaves one out."""

    def change(model: onnx.ModelProto) -> None:
        tensor = kept_outside(model)[0]
        said = {entry.key: entry.value for entry in tensor.external_data} | values
        del tensor.external_data[:]
        for key, value in said.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)

    return change


def outside_tensor(location: str = "/etc/passwd") -> onnx.TensorProto:
    """A tensor of 4 bytes in a file of that name."""
    tensor = onnx.TensorProto(name="stolen", data_type=onnx.TensorProto.UINT8, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG that says this size, with whatever pixels and further chunks."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    more = b"".join(chunk(kind, body) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0, tail: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: entries of (tag, type, count, value)."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + body + struct.pack("<I", following) + tail


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A file in that form, its header whatever is given; length: what its first eight bytes say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


HEADERS = {
    "longer than the file": safetensors({}, length=1 << 40),
    "negative": safetensors({}, length=(1 << 64) - 1),
    "of nothing": b"",
    "cut short": b"\x10\0\0",
    "not JSON": safetensors(b"\xff\xfe\0"),
    "a list": safetensors([]),
    "without end": safetensors({"a": "x" * 5000}),
    "too deep": safetensors(b"[" * 100_000),
    "offsets over each other": safetensors(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": at} for name, at in (("a", [0, 8]), ("b", [4, 12]))},
        bytes(12),
    ),
    "offsets turned round": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    "offsets past the end": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
    "negative offsets": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, bytes(8)),
    "a shape without end": safetensors({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}}, bytes(8)),
    "an unknown type": safetensors({"a": {"dtype": "PICKLE", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
    "a hole": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
}  # fmt: skip
