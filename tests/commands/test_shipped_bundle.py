"""The bundle that ships with the package is the bundled checkpoint's, and serves when none is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from safetensors.numpy import load_file

from digseg_engine.bundle import open_bundle
from digseg_engine.errors import UsageError
from digseg_engine.model.config import DigsegConfig
from digseg_engine.model.pretrained import BUNDLED
from digseg_engine.named import SHIPPED_BUNDLE, default_bundle
from digseg_engine.runtime.backends.torch_backend import TorchBackend
from digseg_engine.runtime.source import open_source

ROOT = Path(__file__).resolve().parent.parent.parent


def test_it_fits_the_bundled_checkpoint():
    """Its golden answers are what the checkpoint's PyTorch model gives today; its tokenizer is the checkpoint's."""
    manifest = open_bundle(SHIPPED_BUNDLE).manifest
    assert manifest["precision"]["name"] == "fp16" and manifest["model"]["name"] == DigsegConfig.load(BUNDLED).name
    assert (SHIPPED_BUNDLE / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer" / "tokenizer.json").read_bytes()
    golden = load_file(SHIPPED_BUNDLE / "golden.safetensors")
    backend = TorchBackend(open_source(BUNDLED), name="torch")
    keys, values = backend.encode_text(golden["token_ids"], golden["token_mask"])
    logits = backend.decode(backend.encode_image(golden["image"]), keys, values, golden["token_mask"])
    assert np.abs(logits - golden["logits"]).max() < 1e-3 * np.abs(golden["logits"]).max()


def test_it_is_the_last_choice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGSEG_BUNDLE", raising=False)
    assert default_bundle()[0] == SHIPPED_BUNDLE
    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "digseg-tiny-fp16")
    assert default_bundle()[0] == Path("digseg-tiny-fp16")
    monkeypatch.setenv("DIGSEG_BUNDLE", "mine")
    assert default_bundle() == (Path("mine"), "named by $DIGSEG_BUNDLE")


def test_segmenting_needs_no_export_first(tmp_path):
    picture = ROOT / "examples" / "aerial.png"
    done = run_command(
        "digseg", "segment", str(picture), "-p", "road", "--verbose", cwd=tmp_path, env={"DIGSEG_BUNDLE": ""}
    )
    assert done.returncode == 0 and "shipped with digseg-engine" in done.stderr, done.stderr
    assert "road 4.1 %" in done.stdout


def test_python_finds_the_shipped_bundle_by_its_name_or_without_one(tmp_path, monkeypatch):
    from digseg_engine import Engine
    from digseg_engine.named import SHIPPED_BUNDLE, find_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGSEG_BUNDLE", raising=False)
    assert find_model(None) == find_model("digseg-tiny-fp16") == SHIPPED_BUNDLE
    with Engine.load(backend="onnxruntime") as engine:
        assert engine.bundle.folder == SHIPPED_BUNDLE
        for several in (engine.segment_batch, engine.stream):
            with pytest.raises(UsageError, match="put it in a list"):
                list(several("photo.jpg", ["road"]))
    (tmp_path / "digseg-tiny-fp16").mkdir()
    assert find_model("digseg-tiny-fp16") == Path("digseg-tiny-fp16")


def test_the_shipped_checkpoint_has_a_name_everywhere(tmp_path, monkeypatch):
    from conftest import run_command

    from digseg_engine.named import find_model

    monkeypatch.chdir(tmp_path)
    assert find_model("digseg-tiny") == BUNDLED
    (tmp_path / "digseg-tiny").mkdir()
    assert find_model("digseg-tiny") == Path("digseg-tiny")  # a folder of that name is meant
    (tmp_path / "digseg-tiny").rmdir()
    done = run_command("digseg-export", "digseg-tiny", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "digseg-tiny-fp16" in done.stdout, done.stderr


def test_the_folder_of_a_run_is_told_from_its_checkpoint(tmp_path):
    import pytest

    from digseg_engine.bundle import open_bundle
    from digseg_engine.errors import BundleError, CheckpointError
    from digseg_engine.model.folder import read_config

    (tmp_path / "mine" / "checkpoint").mkdir(parents=True)
    (tmp_path / "mine" / "checkpoint" / "digseg.json").write_text("{}")
    for read, error in ((open_bundle, BundleError), (read_config, CheckpointError)):
        with pytest.raises(error, match=r"did you mean .*mine/checkpoint\?"):
            read(tmp_path / "mine")
        with pytest.raises(error) as caught:
            read(tmp_path)
        assert "did you mean" not in str(caught.value)
