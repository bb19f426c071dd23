"""The real Triton Inference Server on loopback: equal answers, clear errors, requests put together, and a server that lives on.

$DIGSEG_TRITONSERVER names a virtual environment with nvidia-pytriton (docs/triton-server.md); without it these tests skip.
"""

from __future__ import annotations

import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.triton_server import counters, export, flood, mixed
from benchmarks.triton_server_process import VARIABLE, environment, serving
from benchmarks.triton_server_requests import BAD, Good, differences, good_requests, infer, png
from digseg_engine import Engine
from digseg_engine.named import SHIPPED_BUNDLE

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(environment() is None, reason=f"${VARIABLE} names no virtual environment with nvidia-pytriton"),
]


@pytest.fixture(scope="module")
def engine():
    with Engine.load(SHIPPED_BUNDLE, "onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def model():
    return SHIPPED_BUNDLE.name


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    room = tmp_path_factory.mktemp("triton")
    export(SHIPPED_BUNDLE, room / "models")
    with serving(room / "models", room / "server") as found:
        yield found


def test_good_and_bad_requests_at_once(server, engine, model):
    """Masks bit for bit, every error in one clear line, requests put together, and no process that died."""
    before = counters(server, model)
    found = flood(server, model, engine, mixed(64, len(BAD)), 12)
    assert found["good_equal"] == 64 and found["wrong"] == {} and found["bad_told_clearly"] == len(BAD)
    assert found["worst"]["scores"] < 1e-6 and found["worst"]["presence"] < 1e-6
    after = counters(server, model)
    pictures, executions = (after[name] - before[name] for name in ("inference_count", "execution_count"))
    assert 0 < executions < pictures
    assert any(int(size) > 1 for size in after["executions_of_size"])
    assert server.lives and "is not healthy" not in server.log.read_text(errors="replace")


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.kind)
def test_what_is_wrong_is_told(server, model, bad):
    said = bad.ask(server.address, model)
    assert bad.clear(said), f"{said.status if said else 'answered'} {said}"
    assert server.lives


def test_encodings_are_put_together_too(server, engine, model):
    encoded = infer(server.address, f"{model}_encode", {"IMAGE": [png("aerial")]})
    before = server.counted(f"{model}_decode")

    def ask(k):
        return infer(server.address, f"{model}_decode", {**encoded, "PROMPTS": ["road", f"thing {k % 2}"]}, ("MASKS",))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    expected = engine.segment(str(ROOT / "examples" / "aerial.png"), ["road", "thing 0"])
    assert all(np.array_equal(answer["MASKS"][0], expected.masks[0]) for answer in answers)
    after = server.counted(f"{model}_decode")
    assert after[0] - before[0] == 24 > after[1] - before[1]


def test_the_server_has_the_configuration(server, model):
    config = server.get(f"/v2/models/{model}/config")
    assert config["max_batch_size"] == 8 and config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["model_warmup"][0]["name"] == "one picture"
    assert counters(server, model)["inference_count"] >= 1  # the warm-up
    about = server.get(f"/v2/models/{model}")
    assert {tensor["name"] for tensor in about["inputs"]} == {"IMAGE", "PIXELS", "PROMPTS"}


def test_the_example_client_prints_what_it_found(server, model, engine, monkeypatch, capsys):
    photo = str(ROOT / "examples" / "aerial.png")
    monkeypatch.setattr(
        sys, "argv", ["triton_server_client.py", photo, "road", "water", "--address", server.address, "--model", model]
    )
    runpy.run_path(str(ROOT / "examples" / "triton_server_client.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    expected = engine.segment(photo, ["road", "water"])
    assert lines[0].startswith(
        f"road: {100 * (expected.label_map == 1).mean():.1f} % of the picture, score {expected.scores[0]:.2f}, there"
    )
    alone = [engine.segment(photo, [prompt]).masks.sum() for prompt in ("road", "water")]
    assert lines[2:] == [f"{prompt}: a mask of {count} pixels" for prompt, count in zip(("road", "water"), alone)]


STANDS_IN = '''"""Runs the graph beside it with ONNX Runtime, where the server has no backend for that."""
import json, os
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx", "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]

    def execute(self, requests):
        responses = []
        for request in requests:
            feeds = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            names = list(request.requested_output_names())
            found = self.session.run(names, feeds)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(n, a) for n, a in zip(names, found)]))
        return responses
'''


def stand_in(repository):
    """Graphs as models, for a server without ONNX Runtime's backend: everything of their configurations but the backend stays, so
    that the server itself checks names, types and shapes."""
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        if 'backend: "onnxruntime"' in text.splitlines():
            config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"')
                              .replace('default_model_filename: "model.onnx"\n', ""))  # fmt: skip
            (config.parent / "1" / "model.py").write_text(STANDS_IN)


@pytest.fixture(scope="module")
def server_of_graphs(tmp_path_factory):
    room = tmp_path_factory.mktemp("triton-graphs")
    export(SHIPPED_BUNDLE, room / "models", "--triton-backend", "onnxruntime")
    stand_in(room / "models")
    with serving(room / "models", room / "server") as found:
        yield found


def test_graphs_that_are_models_of_the_server_answer_the_same(server_of_graphs, engine, model):
    """The three models ask the graphs' models from within the server."""
    for request in [
        *good_requests(12),
        Good("cells", "two steps", ("nucleus",)),
        Good("crops", "pixels", ("weed", "soil")),
    ]:
        found = differences(request.ask(server_of_graphs.address, model), request.expected(engine))
        assert found["labels"] == found["masks"] == 0, request
    for graph in engine.bundle.graphs:
        assert server_of_graphs.counted(f"{model}_{graph}")[0] > 0
    assert BAD[2].clear(BAD[2].ask(server_of_graphs.address, model)) and server_of_graphs.lives
