"""The same hostile bundles in the C library, which reads the same files."""

import json
import os
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import test_graphs
from hostile import copy_of_shipped, kept_outside, pointing, with_graph, with_true_hashes

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from native_fixtures import *  # noqa: F403
from native_library import CANCEL, NativeEngine, NativeError


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


def after_hashing(change):
    """The engine asks whether it was cancelled when it has hashed its bundle: called then, once."""
    left = [change]

    def asked(_user):
        if left:
            left.pop()()
        return 0

    return CANCEL(asked)


def turned(path):
    """The same file with one bit of its middle turned, as another file of the same size and times."""
    about, body = path.stat(), bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.unlink()
    path.write_bytes(body)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("name", ["image_encoder.data", "mask_decoder.fp32.onnx", "golden.safetensors"])
def test_files_exchanged_between_hashing_and_opening_are_refused_in_c(library, tmp_path, name):
    bundle = copy_of_shipped(tmp_path)
    with pytest.raises(NativeError, match="has changed since") as caught:
        NativeEngine(library, bundle, cancel=after_hashing(lambda: turned(bundle / name)), backend=b"onnxruntime")
    assert caught.value.status == "corrupt" and name in caught.value.text


@pytest.mark.parametrize("name", ["text_encoder.data", "tokenizer.json"])
def test_what_is_opened_with_the_first_prompt_is_what_was_hashed_in_c(library, tmp_path, name):
    bundle = copy_of_shipped(tmp_path)
    change = after_hashing(lambda: turned(bundle / name))
    with (
        pytest.raises(NativeError, match="has changed since") as caught,
        NativeEngine(library, bundle, cancel=change) as engine,
    ):
        engine.segment(np.zeros((64, 64, 3), np.uint8), ["road"])
    assert caught.value.status == "corrupt" and name in caught.value.text


@pytest.mark.long
@pytest.mark.parametrize("touched", [False, True])
def test_large_weights_touched_while_they_are_opened_are_refused_in_c(library, tmp_path, touched):
    """Over 1 GiB they are opened by their path: here they end in zeros that take no room and that no tensor asks for."""
    bundle = copy_of_shipped(tmp_path)
    os.truncate(bundle / hostile.DATA, (1 << 30) + 1)
    change = after_hashing(lambda: touched and os.utime(bundle / hostile.DATA))
    made = with_true_hashes(bundle)
    if not touched:
        with NativeEngine(library, made, cancel=change) as engine:
            assert engine.verify().passed
        return
    with pytest.raises(NativeError, match="has changed since") as caught:
        NativeEngine(library, made, cancel=change)
    assert caught.value.status == "corrupt" and hostile.DATA in caught.value.text


def test_tensors_of_more_bytes_than_their_shape_are_refused_in_c(library, tmp_path):
    """Numbers of 16 bits were not counted: a label map could be written past its end."""
    bundle = copy_of_shipped(tmp_path)
    lying = hostile.safetensors({"label_map": {"dtype": "U16", "shape": [1, 2, 2], "data_offsets": [0, 64]}}, bytes(64))
    (bundle / "golden.safetensors").write_bytes(lying)
    with pytest.raises(NativeError, match="does not fit its shape") as caught:
        NativeEngine(library, with_true_hashes(bundle))
    assert caught.value.status == "corrupt"


def test_a_tokenizer_whose_post_processor_has_no_start_is_refused_in_c(library, tmp_path):
    bundle = copy_of_shipped(tmp_path)
    body = json.loads((bundle / "tokenizer.json").read_text())
    body["post_processor"] = {"type": "RobertaProcessing", "cls": [], "sep": []}
    (bundle / "tokenizer.json").write_text(json.dumps(body))
    with NativeEngine(library, with_true_hashes(bundle)) as engine, pytest.raises(NativeError) as caught:
        engine.tokenize("road", 8)
    assert caught.value.status == "incompatible" and "post-processor" in caught.value.text


def test_a_tokenizer_that_lets_text_grow_is_refused_in_c(library, tmp_path):
    bundle = copy_of_shipped(tmp_path)
    body = json.loads((bundle / "tokenizer.json").read_text())
    grow = {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " a a a "}
    body["normalizer"] = {"type": "Sequence", "normalizers": [grow] * 12}
    (bundle / "tokenizer.json").write_text(json.dumps(body))
    with (
        NativeEngine(library, with_true_hashes(bundle)) as engine,
        pytest.raises(NativeError, match="spaces that grow"),
    ):
        engine.tokenize("red circle", 8)
