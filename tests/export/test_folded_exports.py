"""A vocabulary folded in every precision, at once and in rounds, with shapes and without: verified, or not published."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from pico_exports import *  # noqa: F403
from pico_exports import RANGED, export, pico_limits

from digseg_engine import Engine
from digseg_engine.bundle import open_bundle
from digseg_engine.contract import contract_json
from digseg_engine.errors import UsageError, VerificationError
from digseg_export import folded as folding
from digseg_export.graph_check import every_node
from digseg_export.preflight import check_bundle
from digseg_export.request import Request

SHAPES = {"min_shapes": "image_encoder.image:1x3x32x64", "opt_shapes": "image_encoder.image:1x3x64x64",
          "max_shapes": "image_encoder.image:2x3x96x64"}  # fmt: skip
# Random weights: logits close to each other everywhere, and int8 rounds differently from CPU to CPU.
LOOSE = {"labels": 0.7}


@pytest.fixture
def names(tmp_path):
    """More names than are asked in one round."""
    words = [
        f"{colour} {shape}"
        for colour in ("red", "blue", "green", "white", "grey")
        for shape in ("ring", "star", "disc", "box")
    ]
    (tmp_path / "names.txt").write_text(
        "\n".join(f"{word}! = {word}" for word in [*words, *(f"a {word}" for word in words)])
    )
    return tmp_path / "names.txt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "shapes", "labels_only"),
    [
        ("fp16", {}, False),
        ("int8", SHAPES, True),
        ("bf16", {}, True),
        ("fp16", {"imgsz": "64x96"}, True),
    ],
)
def test_what_is_published_answers(traced, names, tmp_path, precision, shapes, labels_only):
    done = export(
        traced, tmp_path / "b", precision, {**shapes, "vocabulary": names, "labels_only": labels_only}, **LOOSE
    )
    bundle = open_bundle(tmp_path / "b")
    assert (
        bundle.manifest["contract"] == contract_json(True, bundle.vocabulary.folding)
        and len(bundle.vocabulary.names) == 40
    )
    least = 0.999 if precision == "fp16" else 0.99
    assert all(check.label_agreement > least for check in done.checks if check.stage == folding.SAME)
    forms = {check.graph for check in done.checks if check.stage == folding.STAGE}
    on_cpu = {"labels.fp32.onnx"} if precision in ("fp16", "bf16") else set()
    assert forms == on_cpu | ({"labels.onnx"} if precision != "bf16" else set())
    stored = onnx.load(str(tmp_path / "b" / "labels.onnx"), load_external_data=False)
    assert sum(node.op_type == "Scan" for node in every_node(stored.graph)) == (1 if labels_only else 2)
    policy = bundle.manifest["precision"]["graphs"]
    assert set(policy) == {"image_encoder.onnx", "labels.onnx"}
    placed = {node.name for node in every_node(stored.graph)}
    assert set(policy["labels.onnx"].get("nodes", {})) <= placed
    engine = Engine.load(tmp_path / "b")
    picture = np.random.default_rng(1).integers(0, 255, (50, 60, 3), np.uint8)
    assert engine.segment(picture).label_map.shape == (50, 60)
    assert engine.vocabulary == bundle.vocabulary.names and engine.vocabulary[0] == "red ring!"


@pytest.mark.slow
def test_a_map_over_the_limits_is_not_published(traced, names, tmp_path, monkeypatch):
    with pytest.raises(VerificationError, match=r"agrees with PyTorch on .* of the map, at least 110\.0%"):
        export(traced, tmp_path / "b", "fp32", {"vocabulary": names}, labels=1.1)
    real = folding.open_maps

    def shifted(*given):
        return {on_cpu: [np.roll(one, 1, -1) for one in maps] for on_cpu, maps in real(*given).items()}

    monkeypatch.setattr("digseg_export.publish.open_maps", shifted)
    with pytest.raises(VerificationError, match="agrees with the graphs it was made of"):
        export(traced, tmp_path / "b", "fp32", {"vocabulary": names})
    assert not (tmp_path / "b").exists() and not [path for path in tmp_path.iterdir() if "tmp-" in path.name]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_known_of_the_open_graphs_is_not_found_out_again(traced, names, tmp_path, monkeypatch, precision):
    from digseg_export import publish

    asked = {"vocabulary": names, "labels_only": True}
    fresh = export(traced, tmp_path / "fresh", precision, asked, **LOOSE)
    opened = export(traced, tmp_path / "open", precision, {})
    for step in ("verify", "choose_threshold", "samples"):
        monkeypatch.delattr(publish, step)  # any call raises NameError
    again = export(traced, tmp_path / "again", precision, asked, known=opened.known, **LOOSE)
    assert again.checks == fresh.checks and any(check.stage == folding.STAGE for check in again.checks)
    files = sorted(path.name for path in (tmp_path / "fresh").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in set(files) - {"manifest.json"}:
        assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    one, two = (open_bundle(tmp_path / name).manifest for name in ("fresh", "again"))
    assert one["files"] == two["files"] and one["verification"] == two["verification"]
    with pytest.raises(VerificationError, match=r"at least 110\.0%"):  # what is folded is judged all the same
        export(traced, tmp_path / "bad", precision, asked, known=opened.known, labels=1.1)


@pytest.mark.parametrize("builds", [{"format": "tensorrt-rtx"}, {"target": "jetson-orin"}])
def test_what_tensorrt_cannot_hold_is_refused_before_the_work(pico_folder, tmp_path, builds):
    (tmp_path / "many.txt").write_text("\n".join(f"thing {i}" for i in range(256)))
    with pytest.raises(UsageError, match="a plan can hold 32 names at most"):
        check_bundle(Request(vocabulary=tmp_path / "many.txt", **builds), pico_folder, tmp_path / "b")
    (tmp_path / "many.txt").write_text("\n".join(f"thing {i}" for i in range(32)))
    check_bundle(Request(vocabulary=tmp_path / "many.txt", **builds), pico_folder, tmp_path / "b")


def test_the_report_names_nodes_as_the_folded_graph_does():
    masks = {"name": "fp16", "islands": {"Softmax": {"count": 2, "reason": "r"}}, "nodes": {"a": "why"}, "casts": 3}
    presence = {"name": "fp16", "islands": {"Softmax": {"count": 1, "reason": "r"}, "Exp": {"count": 1, "reason": "e"}},
                "nodes": {"a": "how"}, "casts": 4}  # fmt: skip
    graphs = {
        "text_encoder.onnx": {},
        "image_encoder.onnx": {"x": 1},
        "mask_decoder.onnx": masks,
        "presence.onnx": presence,
    }
    found = folding.folded_report({"name": "fp16", "graphs": graphs})["graphs"]
    assert set(found) == {"image_encoder.onnx", "labels.onnx"} and found["labels.onnx"]["casts"] == 7
    assert found["labels.onnx"]["nodes"] == {"masks/a": "why", "presence/a": "how"}
    assert {kind: one["count"] for kind, one in found["labels.onnx"]["islands"].items()} == {"Softmax": 3, "Exp": 1}
    assert json.dumps(found)


def test_limits_for_labels():
    assert pico_limits("fp16").labels == 0.999 and replace(pico_limits("int8"), relative=0.2).labels == 0.99
    assert RANGED  # the other profile has prompts, which a vocabulary refuses
    with pytest.raises(UsageError, match="--prompts, or a shape of prompts or tokens, does not apply"):
        Request(vocabulary="names.txt", **RANGED).check()
