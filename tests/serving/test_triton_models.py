"""What a model of Triton Inference Server does with requests, without the server: one engine, answers that are the engine's,
errors for each request alone, and work that is done together. tests/serving/test_triton_server.py asks the real server."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.triton_server_requests import BAD, OUTPUTS, differences, pixels, png
from digseg_engine import Engine
from digseg_engine.errors import BackendError, DigsegError, UsageError
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.triton_model import open_role, python_model
from digseg_engine.serving.triton_server import (
    Asked,
    Decode,
    Encode,
    Whole,
    borders_of,
    grouped,
)

PICTURES = ("aerial", "cells", "crops")
ALL = frozenset(OUTPUTS)


@pytest.fixture(scope="module")
def engine():
    with Engine.load(SHIPPED_BUNDLE, "onnxruntime", threads=1) as opened:
        yield opened


def texts(*values):
    return np.array([[value if isinstance(value, bytes) else value.encode() for value in values]], object)


def asked(name="aerial", prompts=("road",), wanted=ALL, **parameters):
    """A question about one of the example pictures."""
    return Asked({"IMAGE": texts(png(name)), "PROMPTS": texts(*prompts)}, parameters, frozenset(wanted))


def first(answer):
    """The outputs of a request's first picture."""
    assert not isinstance(answer, DigsegError), answer
    return {name: array[0] for name, array in answer.items()}


class Counted:
    """How often the graphs are run, and with how many pictures."""

    def __init__(self, engine, monkeypatch):
        self.encoded, self.asked = [], []
        backend = engine.backend
        encode, presence = backend.encode_image, backend.presence

        def counted_encode(image):
            self.encoded.append(len(image))
            return encode(image)

        def counted_presence(encoding, *text):
            self.asked.append(len(encoding))
            return presence(encoding, *text)

        monkeypatch.setattr(backend, "encode_image", counted_encode)
        monkeypatch.setattr(backend, "presence", counted_presence)


def test_answers_are_the_engines_and_pictures_go_together(engine, monkeypatch):
    counted = Counted(engine, monkeypatch)
    requests = [asked("aerial", ["road"]), asked("cells", ["road"]), asked("crops", ["weed", "soil"], threshold=0.3),
                asked("aerial", ["road"], all_prompts=True)]  # fmt: skip
    answers = Whole(engine, Limits()).answer(requests)
    assert counted.encoded == [4]
    assert counted.asked == [2, 1, 1]  # two of one question, and two of their own
    for request, answer, name in zip(requests, answers, ("aerial", "cells", "crops", "aerial")):
        prompts = [text.decode() for text in request.tensors["PROMPTS"][0]]
        found = differences(first(answer), engine.segment(pixels(name), prompts, **request.parameters))
        assert found["labels"] == found["masks"] == 0 and max(found["scores"], found["presence"]) < 1e-6


def test_two_steps_are_the_whole(engine, monkeypatch):
    limits = Limits()
    encoded = Encode(engine, limits).answer(
        [Asked({"IMAGE": texts(png(name))}, {"size": 192}, frozenset(("ENCODING", "FRAME"))) for name in PICTURES]
    )
    assert all(answer["ENCODING"].dtype == np.float32 and answer["FRAME"].dtype == np.int64 for answer in encoded)
    counted = Counted(engine, monkeypatch)
    requests = [Asked({**answer, "PROMPTS": texts("road", "soil")}, {}, ALL) for answer in encoded]
    answers = Decode(engine, limits).answer(requests)
    assert (counted.encoded, counted.asked) == ([], [3])
    for name, answer in zip(PICTURES, answers):
        found = differences(first(answer), engine.segment(pixels(name), ["road", "soil"], 192))
        assert found["labels"] == found["masks"] == 0


def test_a_bad_request_is_told_and_its_neighbours_are_answered(engine):
    """Every kind that reaches a model, between two good ones."""
    reached = [bad for bad in BAD if not bad.told.startswith(("unexpected", "data-type", "unknown model"))]
    assert len(reached) >= 18
    for bad in reached:
        role = (Decode if bad.suffix == "_decode" else Whole)(engine, Limits())
        inputs = {name: np.asarray(value)[None] if isinstance(value, np.ndarray) else texts(*value).reshape(1, len(value))
                  for name, value in bad.inputs().items()}  # fmt: skip
        neighbour = asked("cells", ["nucleus"])
        if bad.suffix:
            (encoded,) = Encode(engine, Limits()).answer(
                [Asked({"IMAGE": texts(png("cells"))}, {}, frozenset(("ENCODING", "FRAME")))]
            )
            neighbour = Asked({**encoded, "PROMPTS": texts("nucleus")}, {}, ALL)
        answers = role.answer([neighbour, Asked(inputs, bad.parameters, frozenset(bad.outputs)), neighbour])
        assert isinstance(answers[1], DigsegError) and bad.told in str(answers[1]), bad.kind
        expected = engine.segment(pixels("cells"), ["nucleus"])
        for answer in (answers[0], answers[2]):
            assert np.array_equal(first(answer)["LABELS"], expected.label_map)


def test_several_pictures_of_one_request(engine):
    two = np.stack([pixels("aerial"), pixels("cells")])
    both = Asked({"PIXELS": two, "PROMPTS": np.concatenate([texts("road"), texts("nucleus")])}, {}, ALL)
    (answer,) = Whole(engine, Limits()).answer([both])
    for row, (name, prompt) in enumerate((("aerial", "road"), ("cells", "nucleus"))):
        assert np.array_equal(answer["LABELS"][row], engine.segment(pixels(name), [prompt]).label_map)


def test_pictures_of_different_sizes_in_one_request(engine):
    file = io.BytesIO()
    Image.fromarray(pixels("cells")[:100]).save(file, "PNG")
    files = np.concatenate([texts(png("aerial")), texts(file.getvalue())])
    request = Asked({"IMAGE": files, "PROMPTS": np.concatenate([texts("road")] * 2)}, {}, ALL)
    good = asked()
    told, answer = Whole(engine, Limits()).answer([request, good])
    assert "different shapes; send each in a request of its own" in str(told) and "LABELS" in answer


def test_masks_that_take_too_much_are_refused_and_run_lengths_are_not(engine, monkeypatch):
    from digseg_engine.serving import triton_server

    monkeypatch.setattr(triton_server, "IN_MEMORY", 256 * 256)
    role, prompts = Whole(engine, Limits()), ["road", "water"]
    told, answer = role.answer([asked(prompts=prompts), asked(prompts=prompts, wanted=("RLE", "LABELS"))])
    assert "name the outputs that you want, RLE in place of MASKS" in str(told)
    assert answer["RLE"].shape == (1, 2) and set(answer) == {"RLE", "LABELS"}


def test_limits_are_those_that_are_given(engine):
    role = Whole(engine, replace(Limits(), body=1000, prompts=2, size=128, pixels=10_000))
    told = role.answer([asked(), asked(prompts=["a", "b", "c"]), asked(size=256)])
    assert [str(answer).split(", ")[1].split(";")[0] for answer in told] == [
        "this server takes at most 1000", "at most 2 are answered at once", "this server takes at most 128",
    ]  # fmt: skip
    raw = Asked({"PIXELS": pixels("aerial")[None], "PROMPTS": texts("road")}, {}, ALL)
    for small in Whole(engine, replace(Limits(), pixels=10_000)).answer([asked(), raw]):
        assert "this server takes at most 0.01 million" in str(small)


def test_where_a_batch_fails_each_picture_is_encoded_alone(engine, monkeypatch):
    encode = engine.backend.encode_image

    def only_one(image):
        if len(image) > 1 or image.mean() > 0.9:
            raise BackendError("the graph failed")
        return encode(image)

    monkeypatch.setattr(engine.backend, "encode_image", only_one)
    white = Asked({"PIXELS": np.full((1, 64, 64, 3), 255, np.uint8), "PROMPTS": texts("road")}, {}, ALL)
    small = Asked({"PIXELS": pixels("cells")[None, :64, :64], "PROMPTS": texts("road")}, {}, ALL)
    told, answer, other = Whole(engine, Limits()).answer([white, small, small])
    assert "the graph failed" in str(told)
    expected = engine.segment(pixels("cells")[:64, :64], ["road"]).label_map
    assert np.array_equal(answer["LABELS"][0], expected) and np.array_equal(other["LABELS"][0], expected)


def test_a_folded_bundle_answers_all_of_its_names_and_some(folded):
    for model in (folded.full, folded.labels_only):
        with Engine.load(model, "onnxruntime", threads=1) as opened:
            picture = np.random.default_rng(0).integers(0, 255, (1, 48, 64, 3), np.uint8)
            everything = Asked({"PIXELS": picture}, {}, frozenset(("LABELS", "THERE")))
            some = Asked({"PIXELS": picture, "PROMPTS": texts(folded.names[1])}, {}, frozenset(("LABELS", "THERE")))
            foreign = Asked({"PIXELS": picture, "PROMPTS": texts("a zebra")}, {}, frozenset(("LABELS",)))
            answers = Whole(opened, Limits()).answer([everything, some, foreign])
            assert np.array_equal(answers[0]["LABELS"][0], opened.segment(picture[0]).label_map)
            assert answers[0]["THERE"].shape == (1, len(folded.names)) and answers[1]["THERE"].shape == (1, 1)
            assert np.array_equal(answers[1]["LABELS"][0], opened.segment(picture[0], [folded.names[1]]).label_map)
            assert "a zebra" in str(answers[2])


def test_borders_follow_the_bundle():
    inputs, outputs = borders_of("whole", presence=False, folded=True)
    assert [border.name for border in inputs if border.optional] == ["IMAGE", "PIXELS", "PROMPTS"]
    assert "PRESENCE" not in [border.name for border in outputs]
    assert not borders_of("decode", presence=True, folded=False)[0][2].optional


def test_grouping_keeps_order():
    assert grouped([3, 1, 4, 1, 5, 9, 2], lambda number: number % 2) == {1: [3, 1, 1, 5, 9], 0: [4, 2]}


PARAMETERS = {"role": "whole", "bundle": "b", "graphs": "engine", "models": "m", "backend": "onnxruntime", "threads": "1",
              "max_bytes": "1", "max_pixels": "1", "max_prompts": "1", "max_size": "1"}  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"role": "half"}, {"max_pixels": "many"}, {"threads": "x"}, {"graphs": "somewhere"}, {"backend": None}]
)
def test_a_configuration_that_was_changed_wrongly_is_told(change):
    given = {key: {"string_value": value} for key, value in {**PARAMETERS, **change}.items() if value is not None}
    args = {"model_config": json.dumps({"parameters": given}), "model_repository": "/nowhere", "model_name": "m"}
    with pytest.raises(UsageError, match=r"config\.pbtxt of m: .*write the repository again, or set it right"):
        open_role(args, None)


def test_the_class_has_what_the_server_calls():
    made = python_model(None)
    assert made.__name__ == "TritonPythonModel" and all(
        hasattr(made, name) for name in ("initialize", "execute", "finalize")
    )


def test_it_asks_for_nothing_of_the_http_server():
    """A server's Python has NumPy and the engine, and need not have FastAPI or PyTorch."""
    asks = "import sys, digseg_engine.serving.triton_model; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert not {"fastapi", "starlette", "pydantic", "torch", "onnx", "contourpy", "uvicorn"} & set(done.stdout.split())
