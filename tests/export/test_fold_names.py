"""The graph of a folded bundle answers what mask decoder and presence do, in one round, in several, name by name."""

import numpy as np
import onnx
import pytest
import torch
from nano_models import build_nano, let_it_shout, pico_preset

from digseg_engine.contract import ABSENT, LABEL_MAP, LOGITS, MASK_DECODER, PRESENCE, PRESENCE_LOGITS, SCORES, Folding
from digseg_engine.model.graph_modules import graph_modules
from digseg_export.fold_names import Sizes, Text, fold_names
from digseg_export.folded import label_map_of
from digseg_export.graph_check import check_graph, every_node
from digseg_export.ranges import session
from digseg_export.to_onnx import example_inputs, export_asked

NAMES = 7


@pytest.fixture(scope="module")
def made(nano_preset, raw_tokenizer):
    """Both graphs of a small model with a readout, text of some names, an encoding, and the sizes with a threshold that turns
    some names away."""
    checkpoint = build_nano(pico_preset(nano_preset), raw_tokenizer)
    let_it_shout(checkpoint.student)
    parts, inputs = graph_modules(checkpoint), example_inputs(checkpoint, 2 * checkpoint.stride)
    masks, presence = (
        export_asked(parts.mask_decoder, MASK_DECODER, inputs),
        export_asked(parts.presence, PRESENCE, inputs),
    )
    torch.manual_seed(3)
    config, scales = checkpoint.config.student, len(checkpoint.student.injections)
    mask = np.arange(5) < np.array([[5], [3], [4], [2], [5], [3], [2]])
    keys = np.random.default_rng(0).standard_normal((NAMES, scales, config.heads, config.width // config.heads, 5))
    values = np.random.default_rng(1).standard_normal((NAMES, scales, config.heads, 5, config.head_width))
    live = mask[:, None, None, None, :]
    text = Text(np.float32(keys * live), np.float32(values * live.swapaxes(-1, -2)), mask)
    encoding = np.float32(np.random.default_rng(2).standard_normal((2, checkpoint.student.layout.channels, 3, 4)))
    feeds = {"encoding": encoding, "text_keys": text.keys, "text_values": text.values, "token_mask": text.mask}
    (logits,), (said,) = session(masks).run(None, feeds), session(presence).run(None, feeds)
    cell = checkpoint.stride * 3 // logits.shape[2]
    return masks, presence, text, encoding, logits, said, Sizes(checkpoint.stride, cell, float(np.median(said)))


def answers(made, folding, chunk, threshold=True):
    masks, presence, text, encoding, _, _, sizes = made
    known = sizes if threshold else Sizes(sizes.stride, sizes.cell, None)
    model = fold_names(masks, presence, text, folding, known, chunk)
    run = session(model)
    return model, dict(zip([value.name for value in run.get_outputs()], run.run(None, {"encoding": encoding})))


@pytest.mark.parametrize("labels_only", [False, True])
@pytest.mark.parametrize(
    "chunk", [32, 7, 4, 3, 1]
)  # at once, at once, two rounds with one name again, three, one by one
def test_every_way_answers_as_the_open_graphs(made, chunk, labels_only, tmp_path):
    logits, presence, sizes = made[4:]
    absent = presence < sizes.threshold
    assert absent.any() and not absent.all() and (logits[~absent] > 0).any()
    wanted = np.where(absent[:, :, None, None], np.float32(ABSENT), logits)
    model, found = answers(made, Folding(NAMES, labels_only), chunk)
    assert np.abs(found[PRESENCE_LOGITS.name] - presence).max() < 1e-4
    assert found[LABEL_MAP.name].dtype == np.uint8
    wanted_map = label_map_of(wanted, sizes.cell)
    assert found[LABEL_MAP.name].shape == wanted_map.shape and len(np.unique(wanted_map)) > 2
    assert (found[LABEL_MAP.name] == wanted_map).mean() > 0.999
    assert set(found) == {LABEL_MAP.name, PRESENCE_LOGITS.name} | (set() if labels_only else {LOGITS.name, SCORES.name})
    if not labels_only:
        assert found[LOGITS.name].shape == wanted.shape and np.abs(found[LOGITS.name] - wanted).max() < 1e-3
        sure = 1 / (1 + np.exp(-wanted.astype(np.float64)))
        mean = np.where(wanted > 0, sure, 0).sum((2, 3)) / np.maximum((wanted > 0).sum((2, 3)), 1)
        assert np.abs(found[SCORES.name] - mean).max() < 1e-4 and (found[SCORES.name][absent] == 0).all()
    onnx.save(model, tmp_path / "labels.onnx")
    assert check_graph(tmp_path / "labels.onnx")["opset"] <= 20
    loops = sum(node.op_type == "Scan" for node in every_node(model.graph))
    assert loops == (0 if chunk >= NAMES else 1 if labels_only else 2)


def test_without_a_threshold_no_name_is_turned_away(made):
    logits, sizes = made[4], made[6]
    _, found = answers(made, Folding(NAMES), 3, threshold=False)
    assert np.abs(found[LOGITS.name] - logits).max() < 1e-3
    assert (found[LABEL_MAP.name] == label_map_of(logits, sizes.cell)).mean() > 0.999


def test_labels_over_255_have_16_bits(made):
    masks, _, text, encoding, _, _, sizes = made
    numbers = np.concatenate([np.zeros(273, int), np.arange(NAMES)])
    many = Text(
        text.keys[numbers] * (np.arange(280) >= 273)[:, None, None, None, None],
        text.values[numbers],
        text.mask[numbers],
    )
    many.values[:273] = 0
    silent = session(masks).run(None, {"encoding": encoding, "text_keys": many.keys, "text_values": many.values,
                                       "token_mask": many.mask})[0]  # fmt: skip
    model = fold_names(masks, None, many, Folding(len(numbers), True), Sizes(sizes.stride, sizes.cell, None), 64)
    (label_map,) = session(model).run(None, {"encoding": encoding})
    assert label_map.dtype == np.uint16 and label_map.max() > 255
    assert (label_map == label_map_of(silent, sizes.cell)).mean() > 0.999


def test_of_equal_names_the_first_wins(made):
    masks, _, text, encoding, _, _, sizes = made
    twice = Text(*(np.concatenate([part[:3], part[:3]]) for part in (text.keys, text.values, text.mask)))
    for chunk in (1, 2, 6):
        model = fold_names(masks, None, twice, Folding(6), Sizes(sizes.stride, sizes.cell, None), chunk)
        label_map = session(model).run([LABEL_MAP.name], {"encoding": encoding})[0]
        assert 0 < label_map.max() <= 3
