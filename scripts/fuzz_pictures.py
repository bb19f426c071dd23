"""Damage picture files in seeded ways and read them all: only pictures and InputErrors may come back.

    python scripts/fuzz_pictures.py --count 100000 --seed 0

Prints a count per format and outcome; exit code 1 and the damaged file's path for anything else. A slice of it runs with the
tests (tests/engine/test_fuzz.py).
"""

from __future__ import annotations

import argparse
import io
import os
import random
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, features

from digseg_engine.commands.boundary import quiet_readers
from digseg_engine.errors import InputError
from digseg_engine.images import read_picture
from digseg_engine.reading import decode
from digseg_engine.runtime.large import open_windows

MOST_PIXELS = 300_000  # a damaged header may promise any size; larger ones are refused as for everybody
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def whole_files() -> dict[str, bytes]:
    """Small sound files of every format and many kinds, by a name whose ending is the suffix."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (24, 32, 3), np.uint8)
    rgb[:, :16] = rgb[:1, :1]
    colour, grey = Image.fromarray(rgb), Image.fromarray(rgb[..., 0].copy())
    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x011A] = 6, "maker", 72.0
    second = colour.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    kinds: list[tuple[str, str, Image.Image, dict[str, object]]] = [
        ("rgb", "png", colour, {}), ("alpha", "png", colour.convert("RGBA"), {"exif": tags}),
        ("bits", "png", grey.convert("1"), {}),
        ("palette", "png", colour.convert("P"), {"transparency": 3}), ("deep", "png", deep, {}),
        ("animated", "png", colour, {"save_all": True, "append_images": [second]}),
        ("exif", "jpg", colour, {"exif": tags}), ("progressive", "jpg", colour, {"progressive": True, "quality": 60}),
        ("grey", "jpg", grey, {}), ("cmyk", "jpg", colour.convert("CMYK"), {}),
        ("lossy", "webp", colour, {"exif": tags}), ("lossless", "webp", colour.convert("RGBA"), {"lossless": True}),
        ("animated", "webp", colour, {"save_all": True, "append_images": [second]}),
        ("raw", "tif", colour, {"exif": tags}), ("lzw", "tif", colour, {"compression": "tiff_lzw"}),
        ("deflate", "tif", colour, {"compression": "tiff_adobe_deflate"}),
        ("fax", "tif", grey.convert("1"), {"compression": "group4"}),
        ("jpeg", "tif", colour, {"compression": "jpeg"}), ("deep", "tif", deep, {}), ("lab", "tif", colour.convert("LAB"), {}),
        ("float", "tif", Image.fromarray(rgb[..., 0].astype(np.float32) / 255), {}),
        ("pages", "tif", colour, {"save_all": True, "append_images": [second]}),
        ("rgb", "bmp", colour, {}), ("palette", "bmp", colour.convert("P"), {}),
    ]  # fmt: skip
    if features.check("avif"):
        kinds.append(("rgb", "avif", colour, {"exif": tags}))
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    files: dict[str, bytes] = {}
    for kind, suffix, picture, options in kinds:
        body = io.BytesIO()
        picture.save(body, format=formats.get(suffix, suffix.upper()), **options)
        files[f"{kind}.{suffix}"] = body.getvalue()
    pair = io.BytesIO()
    colour.save(pair, format="MPO", save_all=True, append_images=[second])
    array = io.BytesIO()
    np.save(array, rgb)
    return {**files, "pair.jpg": pair.getvalue(), "array.npy": array.getvalue(), **tiled_files(rgb)}


def tiled_files(rgb: np.ndarray) -> dict[str, bytes]:  # type: ignore[type-arg]
    """TIFFs in tiles, which only `tifffile` writes; none without it."""
    try:
        import tifffile
    except ImportError:
        return {}
    files = {}
    for name, options in {
        "tiles.tif": {},
        "deflated-tiles.tif": {"compression": "zlib"},
        "big.tif": {"bigtiff": True},
    }.items():
        body = io.BytesIO()
        tifffile.imwrite(body, rgb, photometric="rgb", tile=(16, 16), **options)
        files[name] = body.getvalue()
    return files


def damaged(body: bytes, rng: random.Random) -> bytes:
    """One to a few damages: bits, bytes, numbers of 2 or 4 bytes, pieces cut, doubled, moved, filled; most near the start."""
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data)) if rng.random() < 0.4 else min(int(rng.expovariate(1 / 60)), len(data) - 1)
        length = rng.choice((1, 2, 4, 8, 64))
        choice = rng.randrange(8)
        if choice == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif choice in (2, 3):
            kind = rng.choice(("<I", ">I"))
            value = struct.pack(kind, rng.choice(INTERESTING))
            size = rng.choice((2, 4))
            data[at : at + size] = value[:size] if kind == "<I" else value[-size:]
        elif choice == 4:
            del data[at : at + length]
        elif choice == 5:
            data[at:at] = data[at : at + length]
        elif choice == 6:
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + length]
        else:
            data = data[: max(1, at)] if rng.random() < 0.3 else data
        data = data or bytearray(b"\0")
    return bytes(data)


def outcomes(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """(suffix, what came of it) for `count` damaged files; the file stays in `folder` where it is neither read nor refused."""
    files = whole_files()
    names = sorted(files)
    for i in range(count):
        rng = random.Random(f"{seed}-{i}")
        name = names[i % len(names)]
        path = folder / f"{i}-{name}"
        path.write_bytes(damaged(files[name], rng))
        said = outcome(path)
        yield path.suffix, said
        if said in ("read", "refused"):
            path.unlink()


def outcome(path: Path) -> str:
    """ "read", "refused" (InputError of one line that names the file, by every reader that does not read it), or the fault."""
    refused = False
    for reader in READERS:
        try:
            reader(path)
        except InputError as error:
            refused = True
            if str(path) not in str(error) or "\n" in str(error):
                return f"an error that does not name the file in one line: {error}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"{reader.__name__}: {type(error).__name__}: {error}"
    return "refused" if refused else "read"


def picture(path: Path) -> None:
    if path.suffix != ".npy":
        read_picture(path, MOST_PIXELS)


def mask(path: Path) -> None:
    if path.suffix != ".npy":
        decode(path, np.asarray, MOST_PIXELS)


def windows(path: Path) -> None:
    opened = open_windows(path)
    try:
        for top in range(0, min(opened.shape[0], 64), 16):
            opened.read(top, 0, 16, 48)
    finally:
        opened.close()


READERS = (picture, mask, windows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="damaged files to read")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("DIGSEG_MAX_PIXELS", str(MOST_PIXELS))
    folder = Path(tempfile.mkdtemp(prefix="digseg-fuzz-"))
    quiet_readers()
    counts: Counter[tuple[str, str]] = Counter(outcomes(arguments.count, arguments.seed, folder))
    for (suffix, said), number in sorted(counts.items()):
        print(f"{suffix:6} {number:7}  {said}")
    faults = sum(number for (_, said), number in counts.items() if said not in ("read", "refused"))
    print(
        f"{arguments.count} damaged files, seed {arguments.seed}: {faults} faults{f', kept in {folder}' if faults else ''}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
