"""Both runtimes behind one question: bundle, picture, prompts, size -> masks, or the kind of error.

The cases are in cases.json; a bundle there is the exported one with another shape profile, with a presence graph, or with a harm
done to it. A case that is "encoded" is asked in two steps, after another question about the same encoding.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from profiled import fit_golden, write_shapes
from readout import add_readout

from digseg_engine.errors import BundleError, DigsegError, InputError, UsageError
from digseg_engine.runtime.labels import LABEL_RULES

CASES = json.loads((Path(__file__).parent / "cases.json").read_text(encoding="utf-8"))
PICTURE = Path(__file__).parents[2] / "examples" / "aerial.png"
WORDS = ("road", "building", "water", "trees", "a road", "grey", "something green", "field", "roof")
KINDS = {"invalid argument": "input", "corrupt": "bundle", "incompatible": "bundle", "not found": "bundle"}


def label(case: dict[str, Any]) -> str:
    asked = case["prompts"] if isinstance(case["prompts"], (int, type(None))) else " ".join(case["prompts"])[:20]
    where = f"{'x'.join(map(str, case['picture']))} at {case.get('size', 'its own size')}"
    how = [name for name in ("encoded", "all", "against") if case.get(name)]
    return ", ".join(str(part) for part in (case["bundle"], where, asked, case.get("labels"), *how) if part is not None)


def prompts_of(case: dict[str, Any]) -> list[str] | None:
    """A number stands for that many different prompts, null for all names of a folded bundle."""
    asked = case["prompts"]
    return (
        asked
        if asked is None or isinstance(asked, list)
        else [WORDS[i % 9] + " again" * (i // 9) for i in range(asked)]
    )


def picture_of(case: dict[str, Any]) -> np.ndarray:
    """The example picture, cut and scaled to rows x columns."""
    rows, columns = case["picture"]
    with Image.open(PICTURE) as picture:
        side = min(picture.width / columns, picture.height / rows)
        box = (0, 0, round(side * columns), round(side * rows))
        return np.ascontiguousarray(picture.convert("RGB").crop(box).resize((columns, rows)))


def make_bundle(source: Path, folder: Path, recipe: dict[str, Any]) -> Path:
    """A copy of a bundle with the recipe's profile and harm."""
    shutil.copytree(source, folder)
    if recipe.get("readout"):
        add_readout(folder)
    if recipe["shapes"] != "dynamic":
        write_shapes(folder, recipe["shapes"])
        if recipe.get("harm") != "golden sample of other shapes":
            fit_golden(folder, recipe["shapes"])
    harm(folder, recipe.get("harm"), json.loads((folder / "manifest.json").read_text()))
    return folder


def harm(folder: Path, kind: str | None, manifest: dict[str, Any]) -> None:
    path, tokenizer = folder / "manifest.json", folder / "tokenizer.json"
    if kind == "links":
        away = folder.with_name(folder.name + " elsewhere")
        folder.rename(away)
        folder.mkdir()
        for file in away.iterdir():
            (folder / file.name).symlink_to(file)
    elif kind == "engines":
        (folder / kind).mkdir()
    elif kind in ("unlisted", "hidden"):
        (folder / ("notes.txt" if kind == "unlisted" else ".notes")).write_text("mine")
    elif kind == "no threshold":
        path.write_text(json.dumps({**manifest, "presence": {"threshold": None}}))
    elif kind == "key twice":
        path.write_text(json.dumps(manifest)[:-1] + ', "format": "digseg.bundle/2"}')
    elif kind == "cut":
        tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
    elif kind == "flip":
        body = tokenizer.read_bytes()
        tokenizer.write_bytes(body[:-5] + bytes([body[-5] ^ 1]) + body[-4:])
    elif kind == "no manifest":
        path.unlink()
    elif kind in ("format", "format 1"):
        path.write_text(json.dumps({**manifest, "format": f"digseg.bundle/{1 if kind[-1] == '1' else 99}"}))
    elif kind == "size in words":
        path.write_text(json.dumps({**manifest, "model": {**manifest["model"], "image_size_max": "large"}}))
    elif kind == "leading zero":
        path.write_text(json.dumps({**manifest, "note": 7654321}).replace("7654321", "07"))
    elif kind == "brackets":
        path.write_text('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}")


def ask_python(bundle: Path, case: dict[str, Any]):
    """A result with masks [K, H, W] and logits, or "input" or "bundle"."""
    from digseg_engine import Engine

    try:
        engine = Engine.load(bundle, backend="onnxruntime")
        picture: Any = picture_of(case)
        asked: dict[str, Any] = {
            "size": case.get("size"), "labels": case.get("labels"), "against": case.get("against", ()),
            "all_prompts": case.get("all", False),
        }  # fmt: skip
        if case.get("encoded"):
            picture = engine.encode(picture, size=asked.pop("size"))
            engine.segment(picture, None if engine.vocabulary else ["another question"])
        return engine.segment(picture, prompts_of(case), **asked)
    except BundleError:
        return "bundle"
    except (InputError, UsageError):
        return "input"
    except (DigsegError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


def ask_native(library, bundle: Path, case: dict[str, Any]):
    from native_library import ALL_PROMPTS, NativeEngine, NativeError

    asked = {
        "size": case.get("size", 0), "labels": LABEL_RULES.index(case.get("labels", LABEL_RULES[0])),
        "flags": ALL_PROMPTS if case.get("all") else 0,
    }  # fmt: skip
    try:
        with NativeEngine(library, bundle, backend=b"onnxruntime") as engine:
            picture, run = picture_of(case), engine.run_options(case.get("against"), **asked)
            if case.get("encoded"):
                picture = engine.encode(picture, run=run)
                engine.segment(picture, None if engine.vocabulary() else ["another question"])
            return engine.segment(picture, prompts_of(case), run=run)
    except NativeError as error:
        return KINDS.get(error.status, str(error))
