"""Data sets of a stranger: lists and shards that lead out of their folder."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from digseg_engine.data.datasets import open_dataset
from digseg_engine.data.shard_index import scan
from digseg_engine.data.shards import open_shard
from digseg_engine.data.storage import find_blob
from digseg_engine.errors import DigsegError, InputError


@pytest.fixture
def labelled(tmp_path):
    """A data set with one picture, and a private picture beside it."""
    for folder in ("set/images", "set/masks", "images", "masks"):
        (tmp_path / folder).mkdir(parents=True)
    for where in ("set", "."):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / where / "images" / "a.png")
        Image.fromarray(np.ones((16, 16), np.uint8)).save(tmp_path / where / "masks" / "a.png")
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "private.png")
    (tmp_path / "set" / "classes.json").write_text(json.dumps({"classes": [{"name": "a", "id": 1}]}))
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["../../images/private", "/etc/passwd", "a/../../../images/private", "..\\..\\images\\private",
                                  "C:\\private", "a\0b"])  # fmt: skip
def test_a_list_that_leads_out_of_the_set_is_refused(labelled, name):
    (labelled / "train.txt").write_text(f"a\n{name}\n")
    with pytest.raises(InputError, match="leads out of the data set"):
        open_dataset(labelled, split="train")
    (labelled / "train.txt").write_text("a\n")
    assert len(open_dataset(labelled, split="train")) == 1


TABLES = (
    b"[" * 100_000, b'{"classes":' * 50_000, b"", b"[]", b'{"classes": [{"name": "a", "id": 1e400}]}',
    b'{"classes": [{"name": "a", "id": 99999999999}]}', b"\xff\xfe\0",
)  # fmt: skip


@pytest.mark.parametrize("body", TABLES)
def test_a_class_table_that_is_none_is_refused(labelled, body):
    (labelled / "classes.json").write_bytes(body)
    with pytest.raises(DigsegError) as caught:
        open_dataset(labelled, split="all")
    assert "classes.json" in str(caught.value) and "\n" not in str(caught.value)


def shard_of(path, *members):
    """A tar file of (name, type, link) members."""
    with tarfile.open(path, "w") as tar:
        for name, kind, link in members:
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, link
            body = b"x" * 10 if kind == tarfile.REGTYPE else b""
            about.size = len(body)
            tar.addfile(about, io.BytesIO(body))
    return find_blob(str(path))


KINDS = {
    "link": (tarfile.SYMTYPE, "/etc/passwd"), "hard link": (tarfile.LNKTYPE, "../../secret"), "device": (tarfile.CHRTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_with_links_or_devices_is_refused(tmp_path, kind):
    blob = shard_of(tmp_path / "a.tar", ("a.png", tarfile.REGTYPE, ""), ("b.png", *KINDS[kind]))
    with pytest.raises(InputError, match="is a link or no plain file"):
        scan(blob)


def test_names_in_a_shard_are_names_and_nothing_is_unpacked(tmp_path):
    blob = shard_of(tmp_path / "a.tar", ("../../evil.png", tarfile.REGTYPE, ""), ("/etc/evil.png", tarfile.REGTYPE, ""))
    shard = open_shard(blob)
    assert len(shard.keys) == 2 and [path.name for path in tmp_path.iterdir()] == ["a.tar"]


INDEXES = {
    "deep": "[" * 100_000, "another format": '{"format": "x", "bytes": 1, "members": []}', "not JSON": "\0",
    "places outside": '{{"format": "{format}", "bytes": {size}, "members": [["a.png", 512, 99999999]]}}',
    "negative places": '{{"format": "{format}", "bytes": {size}, "members": [["a.png", -512, 10]]}}',
}  # fmt: skip


@pytest.mark.parametrize("text", INDEXES.values(), ids=INDEXES)
def test_a_planted_index_is_not_believed(tmp_path, text):
    from digseg_engine.data.shard_index import FORMAT

    blob = shard_of(tmp_path / "a.tar", ("a.png", tarfile.REGTYPE, ""))
    said = text.format(format=FORMAT, size=blob.size) if "{{" in text else text
    (tmp_path / "a.tar.index").write_text(said)
    assert [blob.read(m.offset, m.offset + m.size) for m in open_shard(blob).members] == [b"x" * 10]
