"""The same hostile bundles in the C library, which reads the same files."""

import sys
from pathlib import Path

import hostile
import pytest
import test_graphs
from hostile import copy_of_shipped, kept_outside, pointing, with_graph, with_true_hashes

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from native_fixtures import *  # noqa: F403
from native_library import NativeEngine, NativeError


def refused(library, bundle, words):
    with pytest.raises(NativeError, match=words) as caught, NativeEngine(library, bundle):
        pass
    assert caught.value.status == "corrupt" and "\n" not in caught.value.text and len(caught.value.text) < 600


@pytest.mark.parametrize("place", test_graphs.PLACES.values(), ids=test_graphs.PLACES)
def test_weights_in_any_other_place_are_refused_in_c(library, tmp_path, place):
    refused(library, with_graph(tmp_path, pointing(location=place)), "is refused: the tensor")


@pytest.mark.parametrize("values", test_graphs.NUMBERS.values(), ids=test_graphs.NUMBERS)
def test_bytes_that_are_not_there_are_refused_in_c(library, tmp_path, values):
    refused(library, with_graph(tmp_path, pointing(**values)), "is refused: the tensor")


@pytest.mark.parametrize("change", test_graphs.HIDDEN, ids=lambda change: change.__name__)
def test_wherever_in_the_graph_it_is_hidden_in_c(library, tmp_path, change):
    refused(library, with_graph(tmp_path, change), "is refused: the tensor")


def test_many_tensors_on_the_same_bytes_are_refused_in_c(library, tmp_path):
    def change(model):
        model.graph.initializer.add().CopyFrom(kept_outside(model)[0])
        model.graph.initializer[-1].name = "again"

    refused(library, with_graph(tmp_path, change), "share bytes")


@pytest.mark.parametrize("body", test_graphs.NO_GRAPHS)
def test_what_is_no_graph_is_refused_in_c(library, tmp_path, body):
    bundle = copy_of_shipped(tmp_path)
    (bundle / hostile.GRAPH).write_bytes(body)
    refused(library, with_true_hashes(bundle), "is refused")


def test_graphs_nested_without_end_are_refused_in_c(library, tmp_path):
    bundle = copy_of_shipped(tmp_path)
    (bundle / hostile.GRAPH).write_bytes(test_graphs.nested(2000))
    refused(library, with_true_hashes(bundle), "deep within each other")


@pytest.mark.parametrize("body", hostile.HEADERS.values(), ids=hostile.HEADERS)
def test_a_golden_sample_with_a_hostile_header_is_refused_in_c(library, tmp_path, body):
    bundle = copy_of_shipped(tmp_path)
    (bundle / "golden.safetensors").write_bytes(body)
    with pytest.raises(NativeError) as caught, NativeEngine(library, with_true_hashes(bundle)) as engine:
        engine.verify()
    assert (
        caught.value.status == "corrupt" and "golden.safetensors" in caught.value.text and "\n" not in caught.value.text
    )


def test_a_plan_that_the_manifest_lists_is_refused_in_c(library, tmp_path):
    bundle = copy_of_shipped(tmp_path)
    (bundle / "mask_decoder.plan").write_bytes(b"code")
    refused(library, with_true_hashes(bundle), "a plan is code for one machine")


def test_a_signed_bundle_is_read_in_c(library, tmp_path):
    bundle = copy_of_shipped(tmp_path)
    (bundle / "model.sig").write_text("{}")
    with NativeEngine(library, bundle):
        pass
