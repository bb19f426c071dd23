"""Tiles on a mosaic of painted scenes: `python benchmarks/tiles.py --bundle digseg-tiny-fp16 --sides 4096 16384`.

For every side, a mosaic of scenes is written to disk row by row, segmented in overlapping tiles in a process of its own
(so that peak memory is its own), and compared with the truth. "Per tile" is the same model on the scenes one by one: what
tiling should lose nothing against. The distance between the two is in points of mean IoU. The seam figure is the share of
label changes on tile borders over the share elsewhere, borders of scenes left out; beside it the same figure of the truth, which
has no tiles, and its range where there is no border. The same as the truth's, within that range: nothing can be seen.
`--sides 4096 16384 --size 128 --prompts 2 --compare 0 --output benchmarks/results/tiles-memory.json` shows memory alone, in
a fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from digseg_engine import Engine
from digseg_engine.runtime.blending import positions
from digseg_engine.runtime.machine import device_key
from digseg_engine.worlds.scenes import CLASSES, scene

RESULTS = Path(__file__).resolve().parent / "results"
TEST_SEED = 2_000_000


def mosaic(folder: Path, side: int, cell: int, domain: str, names: list[str], scenes: int) -> tuple[Path, Path]:
    """Write picture [side, side, 3] and truth [side, side] (1 + class, 0 none) as .npy; `scenes` different scenes repeat."""
    made = [scene(TEST_SEED + i, domain, cell, "test") for i in range(scenes)]
    pictures = np.stack([one.image for one in made])
    truths = np.zeros((scenes, cell, cell), np.uint8)
    for i, one in enumerate(made):
        for k, name in enumerate(names):
            truths[i][one.mask(name)] = k + 1
    paths = folder / f"mosaic-{side}.npy", folder / f"truth-{side}.npy"
    image = np.lib.format.open_memmap(paths[0], "w+", np.uint8, (side, side, 3))
    truth = np.lib.format.open_memmap(paths[1], "w+", np.uint8, (side, side))
    order = np.random.default_rng(0).integers(0, scenes, (side // cell, side // cell))
    for row, numbers in enumerate(order):
        at = slice(row * cell, (row + 1) * cell)
        image[at] = np.concatenate(pictures[numbers], axis=1)
        truth[at] = np.concatenate(truths[numbers], axis=1)
    image.flush()
    truth.flush()
    return paths


def mean_iou(found: np.ndarray, wanted: np.ndarray, classes: int, rows: int = 1024) -> float:
    """Mean over the classes of IoU between label maps (memory-mapped ones are read in strips)."""
    inter, union = np.zeros(classes), np.zeros(classes)
    for top in range(0, len(wanted), rows):
        a, b = found[top : top + rows], wanted[top : top + rows]
        for k in range(classes):
            inter[k] += ((a == k + 1) & (b == k + 1)).sum()
            union[k] += ((a == k + 1) | (b == k + 1)).sum()
    return float((inter / np.maximum(union, 1))[union > 0].mean())


def one_by_one(engine: Engine, picture: np.ndarray, cell: int, prompts: list[str]) -> np.ndarray:
    """Label map of every scene segmented on its own."""
    labels = np.zeros(picture.shape[:2], np.uint8)
    for top in range(0, picture.shape[0], cell):
        for left in range(0, picture.shape[1], cell):
            at = np.s_[top : top + cell, left : left + cell]
            labels[at] = engine.segment(np.ascontiguousarray(picture[at]), prompts, size=cell).label_map
    return labels


def seam(labels: np.ndarray, tile: int, overlap: float, cell: int, grid: int) -> tuple[float, float, float]:
    """Share of label changes at tile borders relative to other places, and the 5 to 95 % range of the same figure for the
    same number of places where no tile ends (the borders moved by 1, 2, ... logits).

    `grid` is pixels per logit: upsampling puts label changes at preferred places between logits, so only places a whole number
    of logits apart are compared. Near the borders of scenes labels change anyway: 4 pixels on either side are left out.
    """
    side, part = labels.shape[1], np.asarray(labels[:4096, :4096])
    starts = np.array(positions(side // grid, tile // grid, tile // grid - round(tile // grid * overlap))) * grid
    columns = np.arange(1, part.shape[1])
    inside = (np.abs((columns + cell // 2) % cell - cell // 2) > 4) & (columns % grid == 0)
    changes = sum((a[:, 1:] != a[:, :-1]).mean(0) for a in (part, part.T))

    def share(moved: int) -> float:
        here = np.isin(columns, [*(starts + moved), *(starts + tile + moved)]) & inside
        return float(changes[here].mean() / changes[inside].mean()) if here.any() else float("nan")

    low, high = np.nanpercentile([share(i * grid) for i in range(1, tile // 4 // grid)], (5, 95))
    return share(0), float(low), float(high)


def peak_mib() -> float:
    """Most resident memory of this process so far (getrusage would count the parent's, from before the start)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def work(options: argparse.Namespace, names: list[str]) -> None:
    """In a process of its own: segment in tiles and print seconds and peak resident memory as JSON."""
    with Engine.load(options.bundle, "onnxruntime") as engine:
        loaded = peak_mib()
        began = time.perf_counter()
        result = engine.segment_tiles(
            options.work, names, options.folder, "mosaic", options.tile, options.overlap, options.size
        )
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(), "loaded_mib": loaded, "tiles": result.tiles,
                      "timings": result.timings, "labels": str(result.files[0])}))  # fmt: skip


def measure(options: argparse.Namespace, side: int, folder: Path) -> dict[str, object]:
    """All figures of one mosaic."""
    names = list(CLASSES[options.domain])[: options.prompts]
    image, truth_path = mosaic(folder, side, options.cell, options.domain, names, options.scenes)
    call = [sys.executable, __file__, *sys.argv[1:], "--work", str(image), "--folder", str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    row = json.loads(done.stdout.strip().splitlines()[-1])
    found, truth = np.load(row.pop("labels"), mmap_mode="r"), np.load(truth_path, mmap_mode="r")
    grid = 2 * options.tile // (options.size or options.tile)
    here, low, high = seam(found, options.tile, options.overlap, options.cell, grid)
    there = seam(truth, options.tile, options.overlap, options.cell, grid)[0]
    row |= {"side": side, "miou": mean_iou(found, truth, len(names))}
    row |= {"seam": here, "seam_of_the_truth": there, "seam_where_none_is": [low, high]}
    if side <= options.compare:
        with Engine.load(options.bundle, "onnxruntime") as engine:
            alone = one_by_one(engine, np.load(image, mmap_mode="r"), options.cell, names)
        row["miou_scene_by_scene"] = mean_iou(alone, truth, len(names))
        row["points_lost"] = 100 * (row["miou_scene_by_scene"] - row["miou"])
    print(", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, (int, float))), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("digseg-tiny-fp16"))
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 16384], help="pixels per side of the mosaics")
    parser.add_argument("--cell", type=int, default=128, help="pixels per side of one scene")
    parser.add_argument("--scenes", type=int, default=64, help="different scenes in a mosaic")
    parser.add_argument("--domain", default="aerial")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--size", type=int, help="pixels a tile is worked at [default: its own]")
    parser.add_argument("--prompts", type=int, help="ask for the first so many classes of the domain [default: all]")
    parser.add_argument("--compare", type=int, default=4096, help="largest side that is also segmented scene by scene")
    parser.add_argument("--output", type=Path, default=RESULTS / "tiles.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options, list(CLASSES[options.domain])[: options.prompts])
        return
    with tempfile.TemporaryDirectory(prefix="tiles.tmp-", dir=Path.cwd()) as folder:
        rows = [measure(options, side, Path(folder)) for side in options.sides]
    about = {"bundle": options.bundle.name, "tile": options.tile, "overlap": options.overlap, "cell": options.cell,
             "size": options.size or options.tile, "prompts": list(CLASSES[options.domain])[: options.prompts],
             "domain": options.domain, "machine": device_key(), "rows": rows}  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(about, indent=2) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
