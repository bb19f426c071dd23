"""Small random data sets in the true on-disk layouts of the known ones, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 56)  # height, width


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def label_map(values: list[int], seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Blocks of 8 pixels, every one of `values` at least once."""
    grid = np.resize(np.random.default_rng(seed).permutation(np.resize(values, 35)), (5, 7))
    return np.kron(grid, np.ones((8, 8), int))[: size[0], : size[1]]


def grey(path: Path, values: np.ndarray, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(dtype)).save(path)


def palette(path: Path, values: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", values.shape[::-1], values.astype(np.uint8).tobytes())
    image.putpalette([v for i in range(256) for v in colours.get(i, (0, 0, 0))])
    image.save(path)


def voc_colour(index: int) -> tuple[int, int, int]:
    """Pascal VOC's colour map: the bits of the index, dealt to red, green and blue from the top."""
    rgb = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            rgb[channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
    return rgb[0], rgb[1], rgb[2]


def ade20k(root: Path) -> list[int]:
    values = [0, 1, 2, 75, 150]
    for split in ("training", "validation"):
        for n in range(3):
            picture(root / f"images/{split}/ADE_{split[:5]}_{n:08d}.jpg", n)
            grey(root / f"annotations/{split}/ADE_{split[:5]}_{n:08d}.png", label_map(values, n))
    for text in ("objectInfo150.txt", "sceneCategories.txt"):
        (root / text).write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return values


def cityscapes(root: Path) -> list[int]:
    values = [0, 3, 7, 8, 9, 18, 24, 26, 30, 33]
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "munster"), ("test", "berlin")):
        for n in range(2):
            stem = f"{city}_{n:06d}_000019"
            picture(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", n)
            folder = root / f"gtFine/{split}/{city}"
            grey(folder / f"{stem}_gtFine_labelIds.png", label_map(values, n))
            grey(folder / f"{stem}_gtFine_instanceIds.png", label_map(values, n).astype(int) * 1000, np.uint16)
            picture(folder / f"{stem}_gtFine_color.png", n)
            (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
    return values


def voc2012(root: Path) -> list[int]:
    values = [0, 1, 15, 20, 255]
    colours = {i: voc_colour(i) for i in values}
    for n in range(6):
        picture(root / f"JPEGImages/2007_{n:06d}.jpg", n)
    for n in range(4):
        palette(root / f"SegmentationClass/2007_{n:06d}.png", label_map(values, n), colours)
        palette(root / f"SegmentationObject/2007_{n:06d}.png", label_map(values, n), colours)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000002\n2007_000000\n2007_000001\n")
    (lists / "val.txt").write_text("2007_000003\n")
    return values


def pascal_context(root: Path) -> list[int]:
    values = [0, 1, 11, 59]
    lists = root / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    for n, split in enumerate(("train", "train", "val")):
        picture(root / f"JPEGImages/2008_{n:06d}.jpg", n)
        palette(root / f"SegmentationClassContext/2008_{n:06d}.png", label_map(values, n), {})
        with (lists / f"{split}.txt").open("a") as file:
            file.write(f"2008_{n:06d}\n")
    return values


def pascal_context_mat(root: Path) -> list[int]:
    """The original: .mat files with 459 labels, whose names are in labels.txt; `dog` is 113 there and `table` 397."""
    from scipy.io import savemat

    from digseg_engine.data.layouts import known_layout

    values = [1, 113, 397, 459]
    names = {1: "accordion", 113: "dog", 397: "table", 459: "zebra"}
    free = iter(i for i in range(2, 459) if i not in names)
    for name in known_layout("pascal-context-mat").table.names:
        if name not in names.values():
            names[next(free)] = name
    rest = {i: names.get(i, f"thing{i}") for i in range(1, 460)}
    (root / "trainval").mkdir(parents=True)
    (root / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in rest.items()))
    (root / "ImageSets/Main").mkdir(parents=True)
    for n, split in enumerate(("train", "train", "val")):
        picture(root / f"JPEGImages/2008_{n:06d}.jpg", n)
        savemat(root / f"trainval/2008_{n:06d}.mat", {"LabelMap": label_map(values, n).astype(np.uint16)})
        with (root / f"ImageSets/Main/{split}.txt").open("a") as file:
            file.write(f"2008_{n:06d}\n")
    return values


def coco_stuff(root: Path) -> list[int]:
    values = [0, 11, 66, 91, 181, 255]
    for year, count in (("train2017", 3), ("val2017", 2)):
        for n in range(count):
            picture(root / f"images/{year}/{n:012d}.jpg", n)
            grey(root / f"annotations/{year}/{n:012d}.png", label_map(values, n))
    return values


def isic2018(root: Path) -> list[int]:
    for split in ("Training", "Validation", "Test"):
        images = root / f"ISIC2018_Task1-2_{split}_Input"
        for n in range(2):
            picture(images / f"ISIC_{n:07d}.jpg", n)
            mask = root / f"ISIC2018_Task1_{split}_GroundTruth/ISIC_{n:07d}_segmentation.png"
            grey(mask, label_map([0, 255], n))
        (images / "ATTRIBUTION.txt").write_text("attribution")
        (images / "LICENSE.txt").write_text("licence")
    return [0, 255]


def kvasir(root: Path) -> list[int]:
    for n in range(3):
        picture(root / f"images/cju0{n}.jpg", n)
        (root / "masks").mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(label_map([0, 255], n).astype(np.uint8)).convert("RGB")
        mask.save(root / f"masks/cju0{n}.jpg", quality=95)
    (root / "kavsir_bboxes.json").write_text("{}")
    return [0, 255]


def loveda(root: Path) -> list[int]:
    values = list(range(8))
    for split, area, n in (
        ("Train", "Urban", 1366),
        ("Train", "Rural", 0),
        ("Val", "Urban", 3514),
        ("Val", "Rural", 2522),
    ):
        picture(root / f"{split}/{area}/images_png/{n}.png", n)
        grey(root / f"{split}/{area}/masks_png/{n}.png", label_map(values, n))
    picture(root / "Test/Urban/images_png/5167.png")
    return values


def phenobench(root: Path) -> list[int]:
    values = list(range(5))
    for split in ("train", "val"):
        for n in range(2):
            stem = f"05-15_{n:05d}_P0030851"
            picture(root / f"{split}/images/{stem}.png", n)
            grey(root / f"{split}/semantics/{stem}.png", label_map(values, n), np.uint16 if n else np.uint8)
            for more in ("plant_instances", "leaf_instances"):
                grey(root / f"{split}/{more}/{stem}.png", label_map(values, n), np.uint16)
    picture(root / "test/images/05-15_00002_P0030851.png")
    return values


CLASSES = [
    {"name": "road", "id": 7, "colour": [128, 64, 128], "synonyms": ["street"]},
    {"name": "car", "id": 9, "colour": [0, 0, 142]},
]
EXTRA = {"ignore": 0, "ignore_colour": [0, 0, 0]}


def own(root: Path, classes: object = None, count: int = 3, kind: str = "grey", **extra: object) -> list[int]:
    """Own data: ids 7 and 9 and ignored 0, as grey, palette or colour PNGs."""
    values = [0, 7, 9]
    colours = {0: (0, 0, 0), 7: (128, 64, 128), 9: (0, 0, 142)}
    for n in range(count):
        picture(root / f"images/p{n}.png", n)
        path, labels = root / f"masks/p{n}.png", label_map(values, n)
        if kind == "grey":
            grey(path, labels)
        elif kind == "deep":
            grey(path, labels, np.uint16)
        elif kind == "palette":
            palette(path, labels, colours)
        else:
            table = np.zeros((256, 3), np.uint8)
            table[list(colours)] = list(colours.values())
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(table[labels]).save(path)
    body = {"classes": classes or CLASSES, **EXTRA, **extra}
    (root / "classes.json").write_text(json.dumps(body))
    return values


TREES = {
    "ade20k": ade20k, "cityscapes": cityscapes, "coco-stuff": coco_stuff, "folder": own, "isic2018": isic2018,
    "kvasir": kvasir, "loveda": loveda, "pascal-context": pascal_context, "pascal-context-mat": pascal_context_mat,
    "phenobench": phenobench, "voc2012": voc2012,
}  # fmt: skip
