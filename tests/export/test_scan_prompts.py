"""Graphs with scanned prompts: the same answers as the graph that answers all prompts at once."""

import numpy as np
import onnx
import pytest
from pico_exports import *  # noqa: F403

from digseg_engine.bundle import open_bundle
from digseg_engine.contract import MASK_DECODER, PRESENCE
from digseg_engine.runtime.backends.ort_backend import OrtBackend, create_session
from digseg_engine.runtime.source import open_source
from digseg_export.graph_check import check_graph, every_node
from digseg_export.scan_prompts import TOKEN_AXES, split
from digseg_export.softmax_steps import softmax_in_steps


@pytest.fixture(scope="module")
def asked(pico_bundle):
    """asked(pictures, prompts): what presence and mask decoder of the pico bundle are fed, made by its own encoders."""
    backend = OrtBackend(open_source(pico_bundle))

    def request(pictures, prompts):
        rng = np.random.default_rng(pictures + prompts)
        mask = np.arange(8)[None] < rng.integers(3, 9, (prompts, 1))
        keys, values = backend.encode_text(rng.integers(2, 700, (prompts, 8)), mask)
        encoding = backend.encode_image(rng.uniform(-1, 1, (pictures, 3, 32, 48)).astype(np.float32))
        return {"encoding": encoding, "text_keys": keys, "text_values": values, "token_mask": mask}

    return request


def answer(bundle, name, feeds):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    return create_session(onnxruntime, bundle / name, options).run(None, feeds)[0]


@pytest.mark.parametrize("spec", [PRESENCE, MASK_DECODER], ids=lambda spec: spec.file)
@pytest.mark.parametrize(("pictures", "prompts"), [(1, 1), (2, 5), (3, 2)])
def test_both_forms_give_the_same_answers(pico_bundle, asked, spec, pictures, prompts):
    feeds = asked(pictures, prompts)
    want, got = (answer(pico_bundle, name, feeds) for name in (spec.file, spec.cpu_file))
    assert got.shape == want.shape and got.shape[:2] == (pictures, prompts) and (np.ptp(want) > 0 or want.size == 1)
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("spec", [PRESENCE, MASK_DECODER], ids=lambda spec: spec.file)
def test_prompts_of_the_scanned_form_do_not_meet(pico_bundle, asked, spec):
    feeds = asked(2, 4)
    alone = {name: array if name == "encoding" else array[2:3] for name, array in feeds.items()}
    all_four, one = (answer(pico_bundle, spec.cpu_file, given) for given in (feeds, alone))
    assert np.array_equal(all_four[:, 2:3], one)  # bit for bit: a prompt's body never sees another prompt


@pytest.mark.parametrize("spec", [PRESENCE, MASK_DECODER], ids=lambda spec: spec.file)
def test_padding_changes_no_bit_of_the_scanned_form(pico_bundle, asked, spec):
    feeds = asked(1, 5)
    feeds["token_mask"][1] = [True, False, True, True, False, True, False, False]  # cut behind the last one alone
    feeds["token_mask"][2] = False  # nothing to ask with, and so nothing to cut
    want = answer(pico_bundle, spec.cpu_file, feeds)
    assert np.isfinite(want).all() and np.abs(want - answer(pico_bundle, spec.file, feeds)).max() < 1e-3
    wide = {name: array if name == "encoding" else np.pad(
        array, [(0, 8 if i == array.ndim + TOKEN_AXES[name] else 0) for i in range(array.ndim)]
    ) for name, array in feeds.items()}  # fmt: skip
    assert wide["text_keys"].shape[-1] == wide["token_mask"].shape[1] == 16
    assert np.array_equal(answer(pico_bundle, spec.cpu_file, wide), want)


def test_what_a_prompt_says_as_a_whole_is_read_outside_the_loop(pico_bundle):
    model = onnx.load(str(pico_bundle / PRESENCE.cpu_file), load_external_data=False)
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    (body,) = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
    outside, inside = ([node.op_type for node in graph.node] for graph in (model.graph, body))
    assert outside.count("LayerNormalization") == 1 and "LayerNormalization" not in inside and len(scan.input) == 4
    assert [n.op_type for n in body.node].count("Shape") == 1  # of a prompt's own tokens; how many prompts: one


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_what_depends_on_the_text_is_scanned(nano_models, precision):
    folder = getattr(nano_models, precision)
    assert {"mask_decoder.fp32.onnx", "mask_decoder.data"} <= set(open_bundle(folder).manifest["files"])
    model = onnx.load(str(folder / "mask_decoder.fp32.onnx"), load_external_data=False)
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    (body,) = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
    assert sum(node.op_type == "Conv" for node in body.node) == 2  # the mask head's
    unfolded = [node for node in model.graph.node if node.op_type in ("Transpose", "DepthToSpace")]
    assert unfolded and len(body.node) > len(model.graph.node) / 3  # the encoding is taken apart once, outside
    report = check_graph(folder / "mask_decoder.fp32.onnx")
    assert report["nodes"] == len(list(every_node(model.graph))) > len(model.graph.node)
    assert (folder / "mask_decoder.fp32.onnx").stat().st_size < 50_000  # the weights are those of the other form


def test_split_keeps_the_order_and_follows_every_path():
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["c"]), onnx.helper.make_node("Mul", ["t", "c"], ["d"]),
             onnx.helper.make_node("Neg", ["c"], ["e"]), onnx.helper.make_node("Sub", ["e", "d"], ["f"])]  # fmt: skip
    shared, inside = split(nodes, {"t"})
    assert [n.op_type for n in shared] == ["Add", "Neg"] and [n.op_type for n in inside] == ["Mul", "Sub"]


def test_a_softmax_before_the_last_axis_is_taken_in_steps_wherever_it_stands():
    import onnxruntime

    def value(name, axes="pqr"):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(axes))

    node = onnx.helper.make_node
    body = onnx.helper.make_graph([node("Softmax", ["x"], ["y"], axis=-2)], "b", [value("x", "qr")], [value("y", "qr")])
    nodes = [node("Softmax", ["a"], ["middle"], axis=-3), node("Softmax", ["a"], ["last"], axis=-1),
             node("Scan", ["a"], ["looped"], body=body, num_scan_inputs=1)]  # fmt: skip
    names = ("middle", "last", "looped")
    graph = onnx.helper.make_graph(nodes, "g", [value("a")], [value(name) for name in names])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)

    def run():
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"a": x})

    x = (100 * np.random.default_rng(0).standard_normal((4, 5, 7))).astype(np.float32)
    x[0, 1] = np.finfo(np.float32).min
    want = run()
    softmax_in_steps(model)
    assert sum(n.op_type == "Softmax" for n in every_node(model.graph)) == 1
    for name, before, after in zip(names, want, run(), strict=True):
        assert np.allclose(before, after, rtol=1e-6, atol=1e-30), name
