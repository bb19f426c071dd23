"""Bundles made to be read as something else: devices, pipes, planted code, files exchanged while they are opened."""

import json
import os
import socket
import threading

import hostile
import numpy as np
import pytest
from hostile import copy_of_shipped, with_true_hashes

from digseg_engine import Engine, bundle
from digseg_engine.bundle import MANIFEST, open_bundle
from digseg_engine.errors import BundleError, DigsegError
from digseg_engine.runtime.backends import ort_backend
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.source import open_source

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


def in_time(call, seconds=60.0):
    """Run what must not wait for anybody; its error."""
    said = []

    def run():
        try:
            call()
        except DigsegError as error:
            said.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits"
    assert said, "it was taken"
    assert "\n" not in str(said[0])
    return str(said[0])


@posix
@pytest.mark.parametrize("name", [MANIFEST, "golden.safetensors", "tokenizer.json", "mask_decoder.data"])
@pytest.mark.parametrize("kind", ["pipe", "zeros", "socket", "folder", "itself"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path, monkeypatch, name, kind):
    made = copy_of_shipped(tmp_path)
    path = made / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        monkeypatch.chdir(made)  # such an address must be short
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name)
    in_time(lambda: open_bundle(made))


@posix
def test_a_pipe_put_there_between_looking_and_opening_is_not_waited_for(tmp_path, monkeypatch):
    made = copy_of_shipped(tmp_path)
    plain = bundle._hashed

    def exchanged(path):
        if path.name == "tokenizer.json":
            path.unlink()
            os.mkfifo(path)
        return plain(path)

    monkeypatch.setattr(bundle, "_hashed", exchanged)
    assert "no plain file" in in_time(lambda: open_bundle(made))


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "golden.safetensors", "mask_decoder.fp32.onnx", "mask_decoder.data"]
)
def test_a_file_exchanged_after_it_was_hashed_is_refused(tmp_path, name):
    source = open_source(copy_of_shipped(tmp_path))
    path = tmp_path / "bundle" / name
    other = bytearray(path.read_bytes())
    other[len(other) // 2] ^= 1
    path.unlink()
    path.write_bytes(other)
    with pytest.raises(BundleError, match=f"{name} has changed since the bundle was opened"):
        _ = {"tokenizer.json": source.tokenizer, "golden.safetensors": lambda: source.golden}.get(
            name, lambda: OrtBackend(source)
        )()


def exchanging(monkeypatch, folder):
    """From now on every file of the folder becomes another one just before a session is made."""
    plain = ort_backend.create_session

    def create(*given, **named):
        for path in folder.glob("*.*"):
            if path.suffix in (".data", ".onnx"):
                body = path.read_bytes()
                path.unlink()
                path.write_bytes(bytes(len(body)))
        return plain(*given, **named)

    monkeypatch.setattr(ort_backend, "create_session", create)


@pytest.mark.skipif(
    not hasattr(__import__("onnxruntime").SessionOptions, ort_backend.FROM_MEMORY), reason="ONNX Runtime before 1.24"
)
def test_what_is_parsed_is_what_was_hashed_whatever_lies_there_by_then(tmp_path, monkeypatch):
    """The bytes in hand are used: the exchanged files are never opened."""
    source = open_source(copy_of_shipped(tmp_path))
    wanted = OrtBackend(open_source(hostile.SHIPPED_BUNDLE))
    bodies = {name: source.bundle.read(name) for name in source.bundle.manifest["files"]}
    monkeypatch.setattr(bundle.Bundle, "read", lambda self, name: bodies[name])
    exchanging(monkeypatch, tmp_path / "bundle")
    backend = OrtBackend(source)
    ids, mask = source.golden.token_ids, source.golden.token_mask
    for got, want in zip(backend.encode_text(ids, mask), wanted.encode_text(ids, mask)):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("way", ["large", "old runtime"])
def test_weights_opened_by_their_path_are_refused_when_they_were_touched(tmp_path, monkeypatch, way):
    """Weights too large to hold twice, and ONNX Runtime before 1.24."""
    monkeypatch.setattr(ort_backend, *(("LARGEST_READ", 0) if way == "large" else ("FROM_MEMORY", "not there")))
    OrtBackend(open_source(hostile.SHIPPED_BUNDLE))
    source = open_source(copy_of_shipped(tmp_path))
    plain = ort_backend.create_session

    def create(*given, **named):
        session = plain(*given, **named)
        path = tmp_path / "bundle" / "mask_decoder.data"
        body, about = path.read_bytes(), path.stat()
        path.write_bytes(bytes(len(body)))
        path.write_bytes(body)  # put back, with its times
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        return session

    monkeypatch.setattr(ort_backend, "create_session", create)
    with pytest.raises(BundleError, match=r"mask_decoder\.data has changed since the bundle was opened"):
        OrtBackend(source)


def test_a_file_written_to_while_it_is_hashed_is_refused(tmp_path, monkeypatch):
    made = copy_of_shipped(tmp_path)
    plain, count = bundle.seal_of, iter(range(10**6))
    monkeypatch.setattr(bundle, "seal_of", lambda about: (*plain(about), next(count)))
    with pytest.raises(BundleError, match="is being written to"):
        open_bundle(made)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret",
        "a/b",
        "a\\b",
        "",
        ".",
        "..",
        ".hidden",
        "-rf",
        "a b",
        "a\n",
        "a\0b",
        "\u202egnp.a",
        "x" * 5000,
    ],
)
def test_names_that_are_paths_or_tricks_are_refused(tmp_path, name):
    made = copy_of_shipped(tmp_path)
    body = json.loads((made / MANIFEST).read_text())
    body["files"][name] = {"size": 1, "sha256": "0" * 64}
    (made / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(BundleError) as caught:
        open_bundle(made)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("size", [True, 1.0, "1", None, -1, 1 << 70, [], {}])
def test_sizes_that_are_no_sizes_are_refused(tmp_path, size):
    made = copy_of_shipped(tmp_path)
    body = json.loads((made / MANIFEST).read_text())
    body["files"]["tokenizer.json"]["size"] = size
    (made / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(BundleError, match="bytes expected"):
        open_bundle(made)


@pytest.mark.parametrize("digest", ["", "0" * 64, None, 7, [], "sha256:" + "0" * 57, "\x1b[2J\n"])
def test_wrong_hashes_are_refused(tmp_path, digest):
    made = copy_of_shipped(tmp_path)
    body = json.loads((made / MANIFEST).read_text())
    body["files"]["tokenizer.json"]["sha256"] = digest
    (made / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(BundleError, match="is damaged: SHA-256") as caught:
        open_bundle(made)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["engines", "mask_decoder.plan", "lib.so", "model.pkl", "conftest.py", "model.sig.bak"]
)
def test_planted_files_are_refused(tmp_path, name):
    made = copy_of_shipped(tmp_path)
    (made / name).mkdir() if name == "engines" else (made / name).write_bytes(b"code")
    with pytest.raises(BundleError, match="which its manifest does not list"):
        Engine.load(made, "onnxruntime")


OTHER_TOKENIZERS = {
    "nothing": b"", "a list": b"[]", "deep": b'{"a":' * 5000, "not text": b"\xff\xfe",
    "another kind": b'{"version":"1.0","model":{"type":"Pickle"}}',
    "no vocabulary": b'{"version":"1.0","model":{"type":"BPE"}}',
    "a page": b"<html></html>", "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
}  # fmt: skip


@pytest.mark.parametrize("body", OTHER_TOKENIZERS.values(), ids=OTHER_TOKENIZERS)
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, body):
    made = copy_of_shipped(tmp_path)
    (made / "tokenizer.json").write_bytes(body)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a readable") as caught:
        Engine.load(with_true_hashes(made), "onnxruntime")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", hostile.HEADERS.values(), ids=hostile.HEADERS)
def test_a_golden_sample_with_a_hostile_header_is_refused(tmp_path, body):
    made = copy_of_shipped(tmp_path)
    (made / "golden.safetensors").write_bytes(body)
    with pytest.raises(BundleError, match="no golden sample that can be read") as caught:
        Engine.load(with_true_hashes(made), "onnxruntime")
    assert len(str(caught.value)) < 1000  # the library quotes the header
