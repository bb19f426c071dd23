"""A hub on loopback for a test, with the client told of it, an empty cache, and a small bundle in it."""

from __future__ import annotations

import json
import os

import pytest
from hub_server import TOKEN, Hub, Repository, hub_running, sha256
from programs import LIMIT

from digseg_engine.bundle import MANIFEST, finish, writing
from digseg_engine.contract import BUNDLE_FORMAT, contract_json

BODY = {
    "format": BUNDLE_FORMAT, "contract": contract_json(False), "precision": {"name": "fp32"},
    "model": {"image_size": 128, "stride": 16}, "shapes": dict.fromkeys("BKLHW", "dynamic"),
    "verification": {"limits": {"relative": 1e-3, "iou": 0.999}},
}  # fmt: skip
NAME = "acme/roads"


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def made(tmp_path):
    """A folder that the bundle's reader takes: one file small, one large enough for a hub's object store."""
    with writing(tmp_path / "made" / "roads") as room:
        (room / "weights.data").write_bytes(bytes(range(256)) * 1600)
        (room / "note.txt").write_text("hello")
        (room / "precision.json").write_text("{}")
        finish(room, BODY)
    return tmp_path / "made" / "roads"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and the client as a user has it who is not logged in."""
    monkeypatch.setenv("DIGSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DIGSEG_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="extra hub")
    with hub_running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        # Other tests may have imported the client before: as if it were imported now.
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("digseg_engine.hub.client.PATIENCE", LIMIT)  # a busy machine is no hub that does not answer
        yield running


@pytest.fixture
def pushed(hub, made):
    """`acme/roads` with the bundle on main, beside a card and what a hub adds; returns the repository."""
    found = hub.repositories[NAME] = Repository()
    found.commit({**files_of(made), "README.md": b"# a card\n", ".gitattributes": b"", "engine.plan": b"code"})
    return found


@pytest.fixture
def long(pushed, made):
    """`acme/roads` with weights of 24 MiB: the client takes 10 MiB at a time. Returns their bytes."""
    body = os.urandom(1 << 20) * 24
    files = files_of(made)
    listed = json.loads(files[MANIFEST])
    listed["files"]["weights.data"] = {"size": len(body), "sha256": sha256(body)}
    pushed.commit({**files, "weights.data": body, MANIFEST: json.dumps(listed).encode()})
    return body


@pytest.fixture
def logged_in(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def rewritten(repository, change, branch="main"):
    """A further commit whose manifest was changed by hand."""
    files = dict(repository.files(branch))
    body = json.loads(files[MANIFEST])
    change(body)
    return repository.commit({**files, MANIFEST: json.dumps(body).encode()}, branch)


__all__ = ["NAME", "Hub", "cache", "files_of", "hub", "logged_in", "long", "made", "pushed", "rewritten"]
