"""Gives a copy of an exported bundle another shape profile, with graphs and golden sample as an export of it has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from digseg_engine.bundle import sha256
from digseg_engine.contract import IMAGE_ENCODER, LABELS, MASK_DECODER, PRESENCE
from digseg_engine.runtime.backends import kinds
from digseg_engine.runtime.chunks import ChunkedRunner
from digseg_engine.runtime.presence import Asker, Gate
from digseg_engine.runtime.profile import Profile, Range
from digseg_engine.runtime.prompts import to_length
from digseg_engine.runtime.source import open_source
from digseg_export.conversion import fix_shapes

Shapes = dict[str, tuple[int, int, int]]  # of B, K, L, H, W: smallest, usual, largest


def write_shapes(folder: Path, shapes: Shapes) -> None:
    """The profile in the manifest, and its static axes in every graph that an export gives them. A golden picture that is too
    large for the profile is cut to its largest size."""
    cut_golden(folder, shapes["H"][2], shapes["W"][2])
    path = folder / "manifest.json"
    profile = Profile({axis: Range(*sizes) for axis, sizes in shapes.items()})
    manifest = {**json.loads(path.read_text()), "shapes": profile.to_json()}
    path.write_text(json.dumps(manifest))
    for spec in (IMAGE_ENCODER, PRESENCE, MASK_DECODER, LABELS):
        for name in {spec.file, spec.cpu_file} & set(manifest["files"]):
            fix_shapes(folder / name, spec, profile, manifest["model"]["stride"])
            list_again(folder, name)


def cut_golden(folder: Path, rows: int, columns: int) -> None:
    """The golden picture's first rows and columns; the right answer to it is what the bundle, still open, says of it."""
    path = folder / "golden.safetensors"
    arrays = load_file(path)
    cut = np.ascontiguousarray(arrays["image"][..., :rows, :columns])
    if cut.shape == arrays["image"].shape:
        return
    runner = ChunkedRunner(kinds()["onnxruntime"].create(open_source(folder)))
    keys, values = runner.encode_text(arrays["token_ids"], arrays["token_mask"])
    text = keys, values, to_length(arrays["token_mask"], keys.shape[-1], 1)
    found = Asker(runner, text, Gate(None, 1), 1).about_pixels(cut)[0]
    arrays |= {"image": cut, "logits": np.asarray(found.logits, arrays["logits"].dtype)}
    if "presence" in arrays:
        arrays["presence"] = np.asarray(found.presence, arrays["presence"].dtype)
    save_file(arrays, path)
    list_again(folder, path.name)


def fit_golden(folder: Path, shapes: Shapes) -> None:
    """Repeat pictures and prompts and pad tokens up to the profile's smallest shape. Prompts do not see each other, so the
    logits stay right. The picture's size is kept: the profile has to hold it."""
    path = folder / "golden.safetensors"
    arrays = load_file(path)
    pictures, prompts, tokens = (shapes[axis][0] for axis in "BKL")
    rows, columns = arrays["image"].shape[2:]
    assert shapes["H"][0] <= rows <= shapes["H"][2] and shapes["W"][0] <= columns <= shapes["W"][2]
    if "label_map" in arrays:  # of a folded bundle: everything is of pictures
        fitted = {name: array[_at_least(array, pictures)] for name, array in arrays.items()}
        save_file({name: np.ascontiguousarray(array) for name, array in fitted.items()}, path)
        return list_again(folder, path.name)
    b, k = (_at_least(array, least) for array, least in ((arrays["image"], pictures), (arrays["token_ids"], prompts)))
    missing = max(0, tokens - arrays["token_ids"].shape[1])
    fitted = {
        "image": arrays["image"][b],
        "token_ids": np.pad(arrays["token_ids"][k], ((0, 0), (0, missing)), "edge"),
        "token_mask": np.pad(arrays["token_mask"][k], ((0, 0), (0, missing))),
        "logits": arrays["logits"][b][:, k],
        **({"presence": arrays["presence"][b][:, k]} if "presence" in arrays else {}),
    }
    save_file({name: np.ascontiguousarray(array) for name, array in fitted.items()}, path)
    list_again(folder, path.name)


def _at_least(array: np.ndarray, least: int) -> np.ndarray:
    """Numbers of its entries, from the first again when there are too few."""
    return np.arange(max(least, len(array))) % len(array)


def list_again(folder: Path, name: str) -> None:
    """Put a changed file's size and hash into the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    path.write_text(json.dumps(manifest))
