"""Python and C answer alike: the same masks, or the same kind of error, for every case of cases.json."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from native_fixtures import *  # noqa: F403
from runtimes import CASES, ask_native, ask_python, label, make_bundle


@pytest.fixture(scope="module")
def bundle_of(native_bundle, folded, tmp_path_factory):
    made, room = {}, tmp_path_factory.mktemp("conformance")

    def find(name):
        if name not in made:
            recipe = CASES["bundles"][name]
            source = getattr(folded, recipe["folded"]) if "folded" in recipe else native_bundle
            made[name] = make_bundle(source, room / name, recipe)
        return made[name]

    return find


def agree(left, right) -> float:
    union = (left | right).sum()
    return float((left & right).sum() / union) if union else 1.0


@pytest.mark.parametrize("case", CASES["cases"], ids=label)
def test_both_give_the_same_answer(library, bundle_of, case):
    bundle = bundle_of(case["bundle"])
    native, python = ask_native(library, bundle, case), ask_python(bundle, case)
    if "error" in case:
        assert (native, python) == (case["error"], case["error"])
        return
    assert not isinstance(native, str), native
    assert not isinstance(python, str), python
    assert native.masks.shape[1:] == tuple(case["picture"])
    alone = "alone" in case["bundle"]  # the label map alone
    assert (native.logits is None) == alone and (alone or np.ptp(native.logits) > 1 or case.get("absent"))
    assert not alone or len(np.unique(native.label_map)) > 1
    assert native.masks.shape == python.masks.shape and agree(native.masks, np.asarray(python.masks)) >= 0.999
    assert alone or np.abs(native.logits - python.logits).max() <= 1e-3
    assert not alone or np.array_equal(native.scores < 0, np.isnan(python.scores))
    assert (native.label_map != python.label_map).mean() <= 1e-3
    if python.presence is None:
        assert (native.presence == -1).all() and native.there.all()
    else:
        assert np.abs(native.presence - python.presence).max() <= 1e-3 and np.array_equal(native.there, python.there)


def test_the_cases_have_masks_to_agree_on(library, bundle_of):
    case = next(case for case in CASES["cases"] if (case["bundle"], case["prompts"]) == ("fixed", 20))
    areas = ask_native(library, bundle_of(case["bundle"]), case).masks.mean((1, 2))
    assert len(np.unique(areas)) > 5 and (areas > 0.01).sum() > 5 and areas.max() < 1


def test_the_rules_of_the_label_map_are_told_apart(library, bundle_of):
    cases = [case for case in CASES["cases"] if "labels" in case and "error" not in case]
    maps = [ask_native(library, bundle_of(case["bundle"]), case).label_map for case in cases]
    usual = {key: value for key, value in cases[0].items() if key != "labels"}
    assert np.array_equal(ask_native(library, bundle_of("free"), usual).label_map, maps[0])
    assert all((maps[i] != maps[j]).mean() > 0.01 for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("case", [case for case in CASES["cases"] if "readout" in case["bundle"]], ids=label)
def test_presence_leaves_some_prompts_out(library, bundle_of, case):
    there = ask_native(library, bundle_of(case["bundle"]), case).there
    if "all" in case or "without threshold" in case["bundle"]:
        assert there.all()
    else:
        assert not there.any() if "absent" in case else there.any() and not there.all()
