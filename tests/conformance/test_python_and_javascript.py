"""Python and JavaScript answer alike: the same masks, or the same kind of error, for every case of cases.json."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
sys.path.insert(0, str(Path(__file__).parents[1] / "web"))
from runtimes import CASES, ask_python, label, make_bundle, picture_of, prompts_of
from web_cases import needs, room_of, run_node

from digseg_engine.runtime.rle import decode

pytestmark = needs("onnxruntime-node")
KINDS = {"InputError": "input", "UsageError": "input", "BundleError": "bundle"}


@pytest.fixture(scope="module")
def bundle_of(bundle, folded, tmp_path_factory):
    made, room = {}, tmp_path_factory.mktemp("conformance-js")

    def find(name):
        if name not in made:
            recipe = CASES["bundles"][name]
            source = getattr(folded, recipe["folded"]) if "folded" in recipe else bundle
            made[name] = make_bundle(source, room / name, recipe)
        return made[name]

    return find


@pytest.fixture(scope="module")
def answers_of(bundle_of, tmp_path_factory):
    """What JavaScript says to all cases of a bundle, asked in one process."""
    room, known = room_of(tmp_path_factory.mktemp("js"), "onnxruntime-node"), {}

    def find(name):
        if name not in known:
            pictures = []
            for i, case in enumerate(case for case in CASES["cases"] if case["bundle"] == name):
                pixels, path = picture_of(case), room / f"{len(known)}-{i}.bin"
                path.write_bytes(pixels.tobytes())
                options = {"size": case.get("size"), "labels": case.get("labels"), "against": case.get("against", []),
                           "allPrompts": case.get("all", False)}  # fmt: skip
                pictures.append({"file": str(path), "width": pixels.shape[1], "height": pixels.shape[0],
                                 "prompts": prompts_of(case), "first": case.get("encoded"),
                                 "options": {key: value for key, value in options.items() if value is not None}})  # fmt: skip
            request = {"bundle": str(bundle_of(name)), "options": {"backend": "cpu"}, "pictures": pictures}
            done = run_node("ask.mjs", stdin=json.dumps(request), cwd=room)
            assert done.returncode == 0, done.stderr
            known[name] = json.loads(done.stdout)
        return known[name]

    return find


def agree(left, right) -> float:
    union = (left | right).sum()
    return float((left & right).sum() / union) if union else 1.0


@pytest.mark.parametrize("case", CASES["cases"], ids=label)
def test_both_give_the_same_answer(bundle_of, answers_of, case):
    python, said = ask_python(bundle_of(case["bundle"]), case), answers_of(case["bundle"])
    number = [each for each in CASES["cases"] if each["bundle"] == case["bundle"]].index(case)
    found = said if "error" in said else said["results"][number]
    if "error" in case:
        assert python == case["error"] and KINDS.get(found["error"]["name"]) == case["error"], found
        return
    assert "error" not in found, found
    assert not isinstance(python, str), python
    shape = tuple(case["picture"])
    assert (found["height"], found["width"]) == shape
    for k, mask in enumerate(found["masks"]):
        theirs = np.zeros(shape, bool) if mask["rle"] is None else decode(mask["rle"])
        assert agree(theirs, np.asarray(python.mask(k))) >= 0.999
        assert (mask["score"] is None) == bool(np.isnan(python.scores[k]))
        assert mask["there"] == (python.there is None or python.there[k])
        assert (mask["presence"] is None) == (python.presence is None)
        assert mask["presence"] is None or abs(mask["presence"] - python.presence[k]) <= 1e-3
    assert (np.array(found["labels"]).reshape(shape) != python.label_map).mean() <= 1e-3
