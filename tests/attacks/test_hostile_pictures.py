"""Picture files made to take memory or time: small on disk, endless when they are read."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import hostile
import numpy as np
import pytest

from digseg_engine.data.classes import parse_classes
from digseg_engine.data.masks import read_mask
from digseg_engine.errors import InputError
from digseg_engine.images import read_image
from digseg_engine.runtime.large import open_windows

TABLE = parse_classes({"classes": [{"name": "a", "id": 1}], "background": 0}, "here")


def refused(path, read=read_image, most=64 << 20):
    """One line, without room being made for what the file says it holds."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def read_or_refused(path, read, most=128 << 20):
    """What is read, None where one line refuses it; in either case without much memory."""
    tracemalloc.start()
    said, found = path.name, None
    try:
        found = read(path)
    except InputError as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert path.name in said and "\n" not in said and peak < most
    return found


SIDES = {
    "square": (100_000, 100_000),
    "a line": (1, 1 << 30),
    "a row": (1 << 30, 1),
    "largest": (0x7FFFFFFF, 0x7FFFFFFF),
}


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_small_png_that_says_it_is_huge(tmp_path, side):
    (tmp_path / "a.png").write_bytes(hostile.png(*side, zlib.compress(bytes(1000))))
    refused(tmp_path / "a.png")


def test_a_png_with_more_pixels_than_it_says(tmp_path):
    """What is over is not kept."""
    (tmp_path / "a.png").write_bytes(hostile.png(16, 16, zlib.compress(bytes(200 << 20), 9)))
    tracemalloc.start()
    assert read_image(tmp_path / "a.png").shape == (16, 16, 3)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_whose_text_swells(tmp_path, kind):
    swollen = zlib.compress(bytes(128 << 20), 9)
    between = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[kind]
    (tmp_path / "a.png").write_bytes(hostile.png(16, 16, zlib.compress(bytes(17 * 16)), (kind, between + swollen)))
    assert read_or_refused(tmp_path / "a.png", lambda path: read_image(path).shape) in ((16, 16, 3), None)


SHORT, LONG = 3, 4
PLAIN = [(256, LONG, 1, 16), (257, LONG, 1, 16), (258, SHORT, 1, 8), (259, SHORT, 1, 1), (262, SHORT, 1, 1),
         (273, LONG, 1, 8), (277, SHORT, 1, 1), (278, LONG, 1, 16), (279, LONG, 1, 256)]  # fmt: skip


def with_entry(tag, *value):
    return sorted([entry for entry in PLAIN if entry[0] != tag] + [(tag, *value)])


TIFFS = {
    "huge": hostile.tiff(sorted([*with_entry(256, LONG, 1, 1 << 30)[1:], (256, LONG, 1, 1 << 30)])),
    "a directory of itself": hostile.tiff(PLAIN, 8),
    "strips without end": hostile.tiff(with_entry(273, LONG, 0xFFFFFFFF, 8)),
    "bands without end": hostile.tiff(with_entry(277, SHORT, 1, 65535)),
    "values past the end": hostile.tiff(with_entry(258, SHORT, 0x7FFFFFFF, 8)),
    "no entries": hostile.tiff([]),
    "cut short": b"II*\0\xff\xff\xff\xff",
}


@pytest.mark.parametrize("read", [read_image, open_windows], ids=["whole", "tiles"])
@pytest.mark.parametrize("body", TIFFS.values(), ids=TIFFS)
def test_hostile_tiffs_are_read_or_refused_without_much_memory(tmp_path, body, read):
    (tmp_path / "a.tif").write_bytes(body + bytes(256))

    def whole(path):
        opened = read(path)
        if read is open_windows:
            opened.read(0, 0, 8, 8)
            opened.close()

    read_or_refused(tmp_path / "a.tif", whole)


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + body


ARRAYS = {
    "code": npy("{'descr': '|O', 'fortran_order': False, 'shape': (8, 8, 3)}", b"\x80\x04c__main__\nx\n."),
    "a call": npy("__import__('os').abort()"),
    "huge": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1048576, 1048576, 3)}", bytes(100)),
    "negative": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-8, 8, 3)}", bytes(192)),
    "deep": npy("(" * 5000),
    "another type": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (8, 8, 3)}", bytes(1536)),
    "no header": b"\x93NUMPY\x01\0",
}


@pytest.mark.parametrize("body", ARRAYS.values(), ids=ARRAYS)
def test_hostile_arrays_are_refused(tmp_path, body):
    (tmp_path / "a.npy").write_bytes(body)
    refused(tmp_path / "a.npy", open_windows)


def test_a_bomb_of_zipped_arrays_is_refused_unopened(tmp_path):
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(
            "a.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (16384, 16384, 1)}") + bytes(256 << 20)
        )
    (tmp_path / "a.npy").write_bytes(room.getvalue())
    assert "several arrays" in refused(tmp_path / "a.npy", open_windows)


def matlab(height: int, width: int) -> bytes:
    """A compressed MATLAB file whose LabelMap says this size and is zeros."""

    def element(kind: int, body: bytes) -> bytes:
        return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)

    flags = element(6, struct.pack("<II", 9, 0))  # unsigned bytes
    size, name = element(5, struct.pack("<ii", height, width)), element(1, b"LabelMap")
    values = struct.pack("<II", 2, height * width)
    packer = zlib.compressobj(9)
    head = flags + size + name + values
    body = packer.compress(struct.pack("<II", 14, len(head) + height * width) + head)
    for _ in range(height):
        body += packer.compress(bytes(width))
    body += packer.flush()
    return (
        b"MATLAB 5.0 MAT-file".ljust(124)
        + struct.pack("<HH", 0x0100, 0x4D49)
        + struct.pack("<II", 15, len(body))
        + body
    )


def test_a_mask_of_matlab_that_swells_is_refused_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", "1e6")
    (tmp_path / "small.mat").write_bytes(matlab(16, 24))
    assert read_mask(tmp_path / "small.mat", TABLE).shape == (16, 24)
    (tmp_path / "a.mat").write_bytes(matlab(16384, 8192))
    assert (tmp_path / "a.mat").stat().st_size < 1 << 20
    assert "million pixels" in refused(tmp_path / "a.mat", lambda path: read_mask(path, TABLE), 16 << 20)


@pytest.mark.parametrize("body", [b"", b"MATLAB", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\xff" * 64])
def test_a_mask_of_matlab_that_is_none_is_refused(tmp_path, body):
    (tmp_path / "a.mat").write_bytes(body)
    refused(tmp_path / "a.mat", lambda path: read_mask(path, TABLE))


def test_what_is_read_stays_as_it_was(tmp_path):
    (tmp_path / "a.png").write_bytes(
        hostile.png(16, 16, zlib.compress(b"".join(b"\0" + bytes([7] * 16) for _ in range(16))))
    )
    assert np.array_equal(read_image(tmp_path / "a.png"), np.full((16, 16, 3), 7))
