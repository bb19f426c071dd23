"""The segmenter with scanned prompts: the same logits as the graph that answers all prompts at once."""

import numpy as np
import onnx
import pytest

from digseg_engine.bundle import open_bundle
from digseg_engine.runtime.backends.ort_backend import OrtBackend, create_session
from digseg_engine.runtime.source import open_source
from digseg_export.graph_check import check_graph, every_node
from digseg_export.scan_prompts import split


@pytest.fixture(scope="module")
def backend(nano_models):
    return OrtBackend(open_source(nano_models.fp32))


def request(backend, pictures, prompts):
    rng = np.random.default_rng(pictures + prompts)
    lengths = rng.integers(3, 9, (prompts, 1))
    mask = np.arange(8)[None] < lengths
    keys, values = backend.encode_text(rng.integers(2, 700, (prompts, 8)), mask)
    image = rng.uniform(-1, 1, (pictures, 3, 32, 48)).astype(np.float32)
    return {"image": image, "text_keys": keys, "text_values": values, "token_mask": mask}


@pytest.mark.parametrize(("pictures", "prompts"), [(1, 1), (2, 5), (3, 2)])
def test_both_forms_give_the_same_logits(nano_models, backend, pictures, prompts):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    together, scanned = (
        create_session(onnxruntime, nano_models.fp32 / name, options)
        for name in ("segmenter.onnx", "segmenter.fp32.onnx")
    )
    feeds = request(backend, pictures, prompts)
    (want,), (got,) = together.run(None, feeds), scanned.run(None, feeds)
    assert got.shape == want.shape and want.std() > 0.1
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_the_cpu_runs_the_scanned_form_and_prompts_do_not_meet(backend):
    feeds = request(backend, 2, 4)
    text = (feeds["text_keys"], feeds["text_values"], feeds["token_mask"])
    all_four = backend.segment(feeds["image"], *text)
    alone = backend.segment(feeds["image"], *(array[2:3] for array in text))
    assert np.array_equal(all_four[:, 2:3], alone)  # bit for bit: a prompt's body never sees another prompt


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_what_depends_on_the_text_is_scanned(nano_models, precision):
    folder = getattr(nano_models, precision)
    assert {"segmenter.fp32.onnx", "segmenter.data"} <= set(open_bundle(folder).manifest["files"])
    model = onnx.load(str(folder / "segmenter.fp32.onnx"), load_external_data=False)
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    (body,) = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
    convolutions = sum(node.op_type == "Conv" for node in body.node)
    assert convolutions == 2 < sum(node.op_type == "Conv" for node in model.graph.node)  # the mask head's
    report = check_graph(folder / "segmenter.fp32.onnx")
    assert report["nodes"] == len(list(every_node(model.graph))) > len(model.graph.node)
    assert (folder / "segmenter.fp32.onnx").stat().st_size < 300_000  # the weights are those of the other form


def test_split_keeps_the_order_and_follows_every_path():
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["c"]), onnx.helper.make_node("Mul", ["t", "c"], ["d"]),
             onnx.helper.make_node("Neg", ["c"], ["e"]), onnx.helper.make_node("Sub", ["e", "d"], ["f"])]  # fmt: skip
    shared, inside = split(nodes, {"t"})
    assert [n.op_type for n in shared] == ["Add", "Neg"] and [n.op_type for n in inside] == ["Mul", "Sub"]
