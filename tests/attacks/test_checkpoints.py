"""Checkpoints of a stranger: weights that are no weights, pickles, configurations without end. One CheckpointError each."""

import json
import pickle
import shutil

import hostile
import pytest

from digseg_engine.errors import CheckpointError, DigsegError
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.named import SHIPPED_CHECKPOINT


@pytest.fixture
def stolen(tmp_path):
    return shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "checkpoint")


def refused(folder, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("part", ["student/model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("body", hostile.HEADERS.values(), ids=hostile.HEADERS)
def test_weights_with_a_hostile_header_are_refused(stolen, part, body):
    (stolen / part).write_bytes(body)
    assert part.split("/")[0] in refused(stolen)


class Bomb:
    """Unpickled, it writes a file: the proof that code was run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("part", "name", "right"),
    [("vae", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
     ("unet", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
     ("text_encoder", "pytorch_model.bin", "model.safetensors"), ("student", "model.bin", "model.safetensors")],
)  # fmt: skip
def test_pickles_are_never_opened(stolen, tmp_path, part, name, right):
    (stolen / part / right).unlink()
    (stolen / part / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(stolen)
    (stolen / part / right).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(stolen)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["digseg.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"])
@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b"", b"[]", b"\xff\xfe\0", b"7"])
def test_configurations_that_are_none_are_refused(stolen, name, body):
    (stolen / name).write_bytes(body)
    refused(stolen)


@pytest.mark.parametrize("value", [1 << 40, -1, 0, 1e300, "64", None, [1 << 30] * 3])
def test_sizes_that_no_machine_holds_are_refused(stolen, value):
    body = json.loads((stolen / "digseg.json").read_text())
    body["student"]["width"] = value
    (stolen / "digseg.json").write_text(json.dumps(body))
    refused(stolen, DigsegError)


def test_code_beside_the_weights_is_not_imported(stolen, tmp_path):
    for part in ("unet", "vae", "text_encoder"):
        (stolen / part / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        body = json.loads((stolen / part / "config.json").read_text())
        body["auto_map"] = {"AutoModel": "modeling.Model"}
        (stolen / part / "config.json").write_text(json.dumps(body))
    load_checkpoint(stolen)
    assert not (tmp_path / "ran").exists()
