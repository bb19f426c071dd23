"""`digseg-export --triton-repository` up to the server itself (tests/serving asks that): what it writes, replaces and refuses,
and that the server's own schema reads every configuration as what it was meant to be."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from nano_models import with_profile
from programs import run_program

from benchmarks.triton_server_process import VARIABLE, environment
from digseg_engine.bundle import finish, open_bundle, read_manifest
from digseg_engine.errors import BundleError, UsageError
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.triton_server import ROLES
from digseg_export import triton_repository
from digseg_export.triton_config import BATCH, Word, text
from digseg_export.triton_repository import RepositoryBuilder

NAME = SHIPPED_BUNDLE.name
READS = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
found = {}
for path in sys.argv[1:]:
    config = text_format.Parse(open(path, encoding="utf-8").read(), model_config_pb2.ModelConfig())
    found[path] = json_format.MessageToDict(config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
print(json.dumps(found))
"""
needs_schema = pytest.mark.skipif(
    environment() is None, reason=f"${VARIABLE} names no environment with the server's schema"
)
RUNS = {
    "onnxruntime-cpu": ("onnxruntime", "cpu"),
    "onnxruntime-gpu": ("onnxruntime", "gpu"),
    "tensorrt": ("tensorrt", "gpu"),
}
TYPES = {"tensor(float)": "FP32", "tensor(float16)": "FP16", "tensor(int64)": "INT64", "tensor(bool)": "BOOL",
         "tensor(uint8)": "UINT8"}  # fmt: skip


def quiet(step):
    """No progress."""


def write(bundle, output, *how):
    return RepositoryBuilder(bundle, output, *how).run(quiet)


def read_back(folder):
    """Every configuration by its model's name, read with the server's own schema."""
    paths = sorted(folder.glob("*/config.pbtxt"))
    done = run_program([environment() / "bin" / "python", "-c", READS, *paths])
    assert done.returncode == 0, done.stderr
    return {Path(path).parent.name: config for path, config in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write(SHIPPED_BUNDLE, tmp_path_factory.mktemp("triton") / "models")


def test_it_lists_its_files_and_the_bundle_opens(repository):
    folder = repository.folder
    listed = json.loads((folder / "digseg-repository.json").read_text())
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*listed["files"], "digseg-repository.json"}
    assert listed["files"] == {name: (folder / name).stat().st_size for name in listed["files"]}
    assert repository.bytes == sum(listed["files"].values())
    assert open_bundle(folder / NAME / "1" / "bundle").digest == open_bundle(SHIPPED_BUNDLE).digest
    assert listed["models"] == [NAME, f"{NAME}_encode", f"{NAME}_decode"] == list(repository.models)
    assert {path.name for path in folder.iterdir()} == {*repository.models, "digseg-repository.json"}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o444 for path in folder.rglob("*"))


def test_requests_with_other_numbers_of_prompts_go_together(repository):
    for name in (NAME, f"{NAME}_decode"):
        config = (repository.folder / name / "config.pbtxt").read_text()
        assert "allow_ragged_batch: true" in config.split('name: "PROMPTS"')[1].split("}")[0]


@needs_schema
def test_models_in_python_are_read_as_they_are_meant(repository):
    configs = read_back(repository.folder)
    assert set(configs) == set(repository.models)
    for role, (inputs, outputs) in ROLES.items():
        config = configs[NAME if role == "whole" else f"{NAME}_{role}"]
        assert config["name"] in configs and config["backend"] == "python" and config["max_batch_size"] == BATCH
        assert config["instance_group"][0]["count"] == 1 and config["instance_group"][0]["kind"] == "KIND_CPU"
        assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == Limits.queue
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        assert (given["role"], given["graphs"], int(given["max_pixels"])) == (role, "engine", Limits.pixels)
        assert (int(given["max_bytes"]), int(given["max_prompts"])) == (Limits.body, Limits.prompts)
        assert (repository.folder / config["name"] / given["bundle"]).resolve().is_dir()
        for ends, listed in ((inputs, config["input"]), (outputs, config["output"])):
            assert [(b.name, f"TYPE_{b.kind}", list(b.dims)) for b in ends] == [
                (t["name"], t["data_type"], [int(size) for size in t["dims"]]) for t in listed
            ]
        flags = [(tensor["optional"], tensor["allow_ragged_batch"]) for tensor in config["input"]]
        assert flags == [(border.optional, border.ragged) for border in inputs]
        warm = [sample for each in config["model_warmup"] for sample in each["inputs"].values()]
        assert len(warm) == {"whole": 2, "encode": 1, "decode": 0}[role]
        for sample in warm:
            body = (repository.folder / config["name"] / "warmup" / sample["input_data_file"]).read_bytes()
            assert int.from_bytes(body[:4], "little") == len(body) - 4 > 0


def ends_of(path):
    """Inputs and outputs of a graph, as ONNX Runtime sees them."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [{value.name: (TYPES[value.type], [size if isinstance(size, int) else -1 for size in value.shape]) for value in ends}
            for ends in (session.get_inputs(), session.get_outputs())]  # fmt: skip


@needs_schema
@pytest.mark.parametrize("how", RUNS)
def test_models_of_graphs_have_the_graphs_own_borders(how, tmp_path):
    backend, device = RUNS[how]
    made = write(SHIPPED_BUNDLE, tmp_path / "models", backend, device, 2)
    configs, bundle = read_back(made.folder), open_bundle(SHIPPED_BUNDLE)
    assert len(made.models) == len(configs) == 3 + len(bundle.graphs)
    for graph, spec in bundle.graphs.items():
        config = configs[f"{NAME}_{graph}"]
        file = spec.cpu_file if device == "cpu" else spec.file
        assert config["backend"] == backend and config["platform"] == ("tensorrt_plan" if backend == "tensorrt" else "")
        kind = f"KIND_{device.upper()}"
        assert [(group["kind"], group["count"]) for group in config["instance_group"]] == [(kind, 2)]
        ends = ends_of(bundle.file(file))
        most = config["max_batch_size"]
        usual = {"onnxruntime": BATCH, "tensorrt": 1}[backend]  # plans of a free bundle are built for one picture
        assert most == (usual if graph == "image_encoder" else 0)
        assert ("dynamic_batching" in config) == bool(most)
        (warm,) = config["model_warmup"]
        assert warm["inputs"].keys() == ends[0].keys() and warm["batch_size"] == 1
        for name, sample in warm["inputs"].items():
            free = ends[0][name][1][1 if most else 0 :]
            assert sample["zero_data"] and len(sample["dims"]) == len(free)
            assert all(int(size) == fixed or fixed == -1 for size, fixed in zip(sample["dims"], free))
        for listed, real in zip((config["input"], config["output"]), ends):
            stated = {
                t["name"]: (t["data_type"].removeprefix("TYPE_"), [int(size) for size in t["dims"]]) for t in listed
            }
            assert stated == {name: (kind, sizes[1:] if most else sizes) for name, (kind, sizes) in real.items()}
        place = made.folder / config["name"] / "1"
        if backend == "onnxruntime":
            assert config["default_model_filename"] == "model.onnx"
            assert ends_of(place / "model.onnx" / "model.onnx") == ends  # its weights are found beside it
        else:
            assert config["default_model_filename"] == "model.plan" and not list(place.iterdir())
    forms = {configs[name]["parameters"]["graphs"]["string_value"] for name in made.models[:3]}
    assert forms == {{"onnxruntime-cpu": "wide", "onnxruntime-gpu": "stored", "tensorrt": "plans"}[how]}
    assert all(configs[name]["instance_group"][0]["kind"] == "KIND_CPU" for name in made.models[:3])


def test_a_script_builds_the_plans_of_every_graph(tmp_path):
    made = write(SHIPPED_BUNDLE, tmp_path / "models", "tensorrt", "gpu")
    script = made.folder / "build-plans.sh"
    program = tmp_path / "trtexec"
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done >> "$SEEN"\n')
    program.chmod(0o755)
    done = subprocess.run(["bash", script], env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}",
                                                 "SEEN": str(tmp_path / "seen")}, check=False)  # fmt: skip
    seen = (tmp_path / "seen").read_text().splitlines()
    assert done.returncode == 0
    graphs = [word.removeprefix("--onnx=") for word in seen if word.startswith("--onnx=")]
    plans = [word.removeprefix("--saveEngine=") for word in seen if word.startswith("--saveEngine=")]
    assert all(Path(graph).is_file() for graph in graphs) and len(graphs) == len(plans) == 4
    assert all(Path(plan).parent.is_dir() and plan.endswith("/1/model.plan") for plan in plans)
    (most,) = [word for word in seen if word.startswith("--maxShapes=image:")]
    assert most == "--maxShapes=image:1x3x256x256"


def test_shapes_of_a_bundle_bound_what_is_put_together(nano_models, tmp_path):
    one = {"B": (1, 2, 4), "K": (1, 2, 3), "L": (8, 16, 32), "H": (64, 64, 64), "W": (64, 64, 64)}
    bundle = with_profile(nano_models.fp32, tmp_path / "b", **one)
    write(bundle, tmp_path / "models", "onnxruntime", "cpu")
    config = (tmp_path / "models" / "b_image_encoder" / "config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config


def test_a_folded_bundle_needs_no_prompts(folded, tmp_path):
    made = write(folded.labels_only, tmp_path / "models", "onnxruntime", "cpu")
    assert made.models[3:] == ("labels_image_encoder", "labels_labels")
    whole = (made.folder / "labels" / "config.pbtxt").read_text()
    prompts = whole.split('name: "PROMPTS"')[1].split("}")[0]
    assert "optional: true" in prompts and "PRESENCE" in whole
    assert not (made.folder / "labels" / "warmup" / "prompt").exists()


def test_half_floats_that_python_does_not_have_are_refused(pico_bf16, tmp_path):
    with pytest.raises(
        UsageError, match=r"is bf16, which the server's Python backend cannot pass on; export with --precision fp16"
    ):
        write(pico_bf16, tmp_path / "models", "onnxruntime", "gpu")
    assert not (tmp_path / "models").exists()
    write(pico_bf16, tmp_path / "models", "onnxruntime", "cpu")


@pytest.fixture
def pico_bf16(tmp_path):
    """A bundle whose encoder answers in bf16, as its graph says; nothing is run."""
    import onnx

    folder = Path(shutil.copytree(SHIPPED_BUNDLE, tmp_path / "half"))
    path = folder / "image_encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    path.write_bytes(model.SerializeToString())
    manifest = read_manifest(folder)
    (folder / "manifest.json").unlink()
    finish(folder, {key: value for key, value in manifest.items() if key != "files"})
    return folder


def test_an_older_repository_is_replaced_and_nothing_else(tmp_path):
    folder = tmp_path / "models"
    write(SHIPPED_BUNDLE, folder, "onnxruntime", "cpu")
    compiled = folder / NAME / "1" / "__pycache__" / "model.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"x")  # by the server's Python, beside the model
    write(SHIPPED_BUNDLE, folder)
    assert not compiled.exists() and not (folder / f"{NAME}_mask_decoder").exists()
    mine = folder / NAME / "1" / "mine.txt"
    mine.write_text("x")
    with pytest.raises(UsageError, match=r"it also holds 'digseg-tiny-fp16/1/mine\.txt'"):
        write(SHIPPED_BUNDLE, folder)
    assert mine.read_text() == "x"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model").touch()
    with pytest.raises(UsageError, match=r"its digseg-repository\.json is missing or not ours"):
        write(SHIPPED_BUNDLE, tmp_path / "other")


def test_a_damaged_bundle_and_a_full_disk_leave_nothing(tmp_path, monkeypatch):
    damaged = shutil.copytree(SHIPPED_BUNDLE, tmp_path / "b")
    (damaged / "presence.data").write_bytes(b"x")
    with pytest.raises(BundleError, match="damaged"):
        write(damaged, tmp_path / "models")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton_repository.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        write(SHIPPED_BUNDLE, tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (("torch",), "unknown --triton-backend 'torch'; expected one of python, onnxruntime, tensorrt"),
        (("python", "tpu"), "unknown --triton-device 'tpu'; expected one of cpu, gpu"),
        (("tensorrt", "cpu"), "runs on NVIDIA GPUs; add --triton-device gpu"),
        (("python", "cpu", 0), "--triton-instances is 0; expected 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(how, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        RepositoryBuilder(SHIPPED_BUNDLE, tmp_path / "models", *how)


def test_a_name_that_no_model_can_have(tmp_path):
    (tmp_path / "my model").mkdir()
    with pytest.raises(UsageError, match="would be called 'my model'"):
        RepositoryBuilder(tmp_path / "my model", tmp_path / "models")


def test_the_text_form():
    message = {
        "a": 'a "b" \\',
        "b": [1, 2],
        "c": {"d": True, "e": Word("KIND_CPU")},
        "f": [{"g": 1}, {"g": 2}],
        "h": [],
    }
    assert text(message) == (
        'a: "a \\"b\\" \\\\"\nb: 1\nb: 2\nc {\n  d: true\n  e: KIND_CPU\n}\nf {\n  g: 1\n}\nf {\n  g: 2\n}\n'
    )


def test_the_command_writes_shows_and_says(tmp_path, capsys):
    from digseg_export.cli import _main

    words = ["--bundle", str(SHIPPED_BUNDLE), "--triton-repository", str(tmp_path / "models")]
    assert _main([*words, "--dry-run", "--json"]) == 0
    preview = json.loads(capsys.readouterr().out)
    assert preview["triton models"] == [NAME, f"{NAME}_encode", f"{NAME}_decode"] and not (tmp_path / "models").exists()
    assert _main([*words, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert f"tritonserver --model-repository={tmp_path / 'models'}" in said
    assert _main([*words, "--triton-instances", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["triton_repository"]["models"] == preview["triton models"]
    assert "count: 3" in (tmp_path / "models" / NAME / "config.pbtxt").read_text()
    assert np.all([path.is_file() for path in (tmp_path / "models").glob("*/1/model.py")])
