"""Graphs that ask for other files than their own weights, or for bytes that are not there. Their hashes are true."""

import hostile
import onnx
import pytest
from hostile import DATA, kept_outside, outside_tensor, pointing, with_graph

from digseg_engine.errors import BundleError
from digseg_engine.graph_files import check_weights
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.source import open_source


def refused(bundle, words="is refused"):
    with pytest.raises(BundleError, match=words) as caught:
        OrtBackend(open_source(bundle))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


PLACES = {
    "up": "../secret.data", "absolute": "/etc/passwd", "device": "/dev/zero", "drive": "C:\\secret", "share": "\\\\host\\secret",
    "memory of the runtime": "*/_ORT_MEM_ADDR_/*", "another graph's": "text_encoder.data", "manifest": "manifest.json",
    "through a folder": "x/../mask_decoder.data", "here": "./mask_decoder.data", "empty": "", "zero byte": "mask_decoder.data\0x",
    "address": "https://example.org/mask_decoder.data",
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_weights_in_any_other_place_are_refused(tmp_path, place):
    assert "lies in" in refused(with_graph(tmp_path, pointing(location=place)))


NUMBERS = {
    "negative offset": {"offset": "-4096"}, "offset past the end": {"offset": "99999999"}, "offset of hex": {"offset": "0x10"},
    "offset without end": {"offset": "9" * 5000}, "offset that wraps": {"offset": str((1 << 64) - 8)},
    "digits of another script": {"offset": "\u0661"},
    "negative length": {"length": "-1"}, "length past the end": {"length": "99999999"}, "no length": {"length": None},
    "length of another shape": {"length": "4"}, "length that wraps": {"length": str(1 << 64)},
    "a folder of its own": {"basepath": "/"}, "an unknown word": {"library": "/tmp/x.so"},
}  # fmt: skip


@pytest.mark.parametrize("values", NUMBERS.values(), ids=NUMBERS)
def test_bytes_that_are_not_there_are_refused(tmp_path, values):
    refused(with_graph(tmp_path, pointing(**values)))


def test_a_word_said_twice_is_refused(tmp_path):
    def change(model):
        kept_outside(model)[0].external_data.add(key="location", value=DATA)

    assert "twice" in refused(with_graph(tmp_path, change))


def test_many_tensors_on_the_same_bytes_are_refused(tmp_path):
    """A small file would otherwise become as much memory as its maker likes."""

    def change(model):
        for number in range(1000):
            model.graph.initializer.add().CopyFrom(kept_outside(model)[0])
            model.graph.initializer[-1].name = f"again{number}"

    assert "share bytes" in refused(with_graph(tmp_path, change))


def in_a_constant(model):
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["x"], value=outside_tensor()))


def in_a_list(model):
    node = model.graph.node.add(op_type="Identity", input=["x"], output=["y"])
    node.attribute.add(name="t", type=onnx.AttributeProto.TENSORS).tensors.append(outside_tensor())


def in_a_subgraph(model):
    inner = onnx.helper.make_graph([], "inner", [], [], [outside_tensor()])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def in_a_sparse_one(model):
    model.graph.sparse_initializer.add().values.CopyFrom(outside_tensor())


def in_a_function(model):
    inner = onnx.helper.make_node("Constant", [], ["x"], value=outside_tensor())
    model.functions.add(name="f", domain="d", output=["x"]).node.append(inner)


def in_a_training_graph(model):
    model.training_info.add().algorithm.initializer.append(outside_tensor())


def without_the_mark(model):
    """The place is said, and that it is outside is not."""
    kept_outside(model)[0].data_location = onnx.TensorProto.DEFAULT
    pointing_now = model.graph.initializer[0]
    pointing_now.external_data.add(key="location", value="/etc/passwd")


HIDDEN = (
    in_a_constant,
    in_a_list,
    in_a_subgraph,
    in_a_sparse_one,
    in_a_function,
    in_a_training_graph,
    without_the_mark,
)


@pytest.mark.parametrize("change", HIDDEN, ids=lambda change: change.__name__)
def test_wherever_in_the_graph_it_is_hidden(tmp_path, change):
    refused(with_graph(tmp_path, change))


def wrapped(number: int, body: bytes) -> bytes:
    """A field of that number that holds `body`."""
    length, size = b"", len(body)
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + body


def nested(depth: int) -> bytes:
    """A graph whose node has an attribute that is a graph, and so on."""
    body = b""
    for _ in range(depth):
        body = wrapped(1, wrapped(5, wrapped(6, body)))
    return wrapped(7, body)


def test_graphs_nested_without_end_are_refused_not_followed():
    with pytest.raises(BundleError, match="deep within each other"):
        check_weights(nested(2000), "g.onnx", "g.data", None)


NO_GRAPHS = (b"\xff" * 64, b"\x3a\xff\xff\xff\xff\x0f", b"\x3b", b"\x08", b"\x3a\x05\x2a\x09")


@pytest.mark.parametrize("body", NO_GRAPHS)
def test_what_is_no_graph_is_refused(body):
    with pytest.raises(BundleError, match="is refused"):
        check_weights(body, "g.onnx", "g.data", None)


def test_a_graph_cut_anywhere_is_refused_or_whole(tmp_path):
    body = (hostile.SHIPPED_BUNDLE / hostile.GRAPH).read_bytes()
    size = (hostile.SHIPPED_BUNDLE / DATA).stat().st_size
    check_weights(body, "g.onnx", DATA, size)
    cut = 0
    for end in range(1, len(body), 97):
        try:
            check_weights(body[:end], "g.onnx", DATA, size)
        except BundleError:
            cut += 1
    assert cut > 100


def test_a_graph_whose_weights_are_not_listed_is_refused(tmp_path):
    bundle = hostile.copy_of_shipped(tmp_path)
    (bundle / DATA).unlink()
    refused(hostile.with_true_hashes(bundle), "expected no other file")


def test_what_we_export_is_taken():
    OrtBackend(open_source(hostile.SHIPPED_BUNDLE))
