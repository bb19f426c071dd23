"""Which bytes of which file an ONNX graph asks for, read from its protobuf before any runtime sees it. NumPy-free, onnx-free.

A graph may keep its weights in a file beside it and name any path, offset and length there. Ours name one file, the graph's
own `.data`, and every byte of it at most once; all else is refused: absolute paths and `..`, devices, the marks by which a
runtime reads its own memory, ranges outside the file or over each other. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from digseg_engine.errors import BundleError

EXTERNAL = 1  # TensorProto.data_location
DEEPEST = 64  # messages within each other; ours have about 10
MOST_TENSORS = 1 << 20
KEYS = ("location", "offset", "length", "checksum", "basepath")
SIZES = {
    1: 4,
    2: 1,
    3: 1,
    4: 2,
    5: 2,
    6: 4,
    7: 8,
    9: 1,
    10: 2,
    11: 8,
    12: 4,
    13: 8,
    16: 2,
    17: 1,
    18: 1,
    19: 1,
    20: 1,
}  # bytes
Field = tuple[int, int, int, int]  # number, value of a varint, begin and end of bytes (0, 0: it has none)

# Message -> fields that lead to further messages in which tensors may be.
INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


@dataclass(frozen=True)
class Span:
    """The bytes `begin` to `end` of a file, which are one tensor's."""

    begin: int
    end: int
    tensor: str


def check_weights(graph: bytes, path: str, data: str, size: int | None) -> None:
    """Raises BundleError where a graph asks for anything but bytes of the file `data`, `size` bytes long (None: there is no
    such file), each of them once. path: how the graph is called in messages."""
    try:
        spans = [_span(graph, begin, end, data, size) for begin, end in _tensors(graph)]
    except (ValueError, IndexError) as error:
        said = f"{error}" if isinstance(error, ValueError) else "it is cut short"
        raise BundleError(f"{path} is refused: {said}; export the bundle again") from error
    kept = sorted((span for span in spans if span is not None), key=lambda span: (span.begin, span.end))
    for left, right in pairwise(kept):
        if right.begin < left.end:
            both = f"{left.tensor!r:.60} and {right.tensor!r:.60}"
            raise BundleError(f"{path} is refused: the tensors {both} share bytes of {data}; export the bundle again")


def _tensors(body: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of every TensorProto, those of subgraphs, attributes and functions included."""
    waiting, seen = [("model", 0, len(body), 0)], 0
    while waiting:
        kind, begin, end, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"its messages lie more than {DEEPEST} deep within each other")
        for number, _, start, stop in _fields(body, begin, end):
            inner = INSIDE[kind].get(number)
            if inner == "tensor" and stop:
                seen += 1
                if seen > MOST_TENSORS:
                    raise ValueError(f"it has more than {MOST_TENSORS} tensors")
                yield start, stop
            elif inner is not None and stop:
                waiting.append((inner, start, stop, depth + 1))


def _span(body: bytes, begin: int, end: int, data: str, size: int | None) -> Span | None:
    """Where a tensor's bytes lie; None for one that has them in the graph. Raises ValueError for what is not allowed."""
    name, kind, count, external, where = "", 0, 1, False, {}
    for number, value, start, stop in _fields(body, begin, end):
        if number == 1:
            for side in _packed(body, start, stop) if stop else (value,):
                count *= side
        elif number == 2:
            kind = value
        elif number == 8:
            name = body[start:stop].decode("utf-8", "replace")
        elif number == 13:
            key, text = _entry(body, start, stop)
            if key in where:
                raise ValueError(f"the tensor {name!r:.60} says its {key!r:.20} twice")
            where[key] = text
        elif number == 14:
            external = value == EXTERNAL
    if not external and not where:
        return None
    if where.get("location") != data or size is None or set(where) - set(KEYS):
        wanted = repr(data) if size is not None else "no other file"
        raise ValueError(f"the tensor {name!r:.60} lies in {where.get('location')!r:.60}; expected {wanted}")
    if "basepath" in where:
        raise ValueError(f"the tensor {name!r:.60} names a folder of its own")
    first, length = (
        _number(where.get(key, "0" if key == "offset" else None), key, name) for key in ("offset", "length")
    )
    if first + length > size:
        raise ValueError(f"the tensor {name!r:.60} is at {first}..{first + length} of {data}, which has {size} bytes")
    if kind not in SIZES or count * SIZES[kind] != length:
        raise ValueError(f"the tensor {name!r:.60} of type {kind} has {count} values in {length} bytes")
    return Span(first, first + length, name)


def _number(text: str | None, key: str, name: str) -> int:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"the tensor {name!r:.60} has the {key} {text!r:.30}; expected a whole number")
    return int(text)


def _entry(body: bytes, begin: int, end: int) -> tuple[str, str]:
    """A StringStringEntryProto."""
    parts = {number: body[start:stop].decode("utf-8") for number, _, start, stop in _fields(body, begin, end)}
    return parts.get(1, ""), parts.get(2, "")


def _packed(body: bytes, begin: int, end: int) -> Iterator[int]:
    while begin < end:
        value, begin = _varint(body, begin, end)
        yield value


def _fields(body: bytes, begin: int, end: int) -> Iterator[Field]:
    """The fields of one message. Raises ValueError for what is no protobuf."""
    while begin < end:
        tag, begin = _varint(body, begin, end)
        number, wire, value, start, stop = tag >> 3, tag & 7, 0, 0, 0
        if wire == 0:
            value, begin = _varint(body, begin, end)
        elif wire == 2:
            length, start = _varint(body, begin, end)
            begin = stop = start + length
        elif wire in (1, 5):
            begin += 8 if wire == 1 else 4
        else:
            raise ValueError("it is no ONNX graph")
        if begin > end or number == 0:
            raise ValueError("it is no ONNX graph, or cut short")
        yield number, value, start, stop


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = body[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it is no ONNX graph, or cut short")
