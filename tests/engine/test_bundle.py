"""Bundles: all or nothing on disk, and refused when anything about them changed."""

import json
import os

import pytest

from digseg_engine.bundle import MANIFEST, finish, open_bundle, writing
from digseg_engine.contract import BUNDLE_FORMAT, contract_json, token_bucket
from digseg_engine.errors import BundleError, UsageError

BODY = {"format": BUNDLE_FORMAT, "contract": contract_json()}


@pytest.fixture
def made(tmp_path):
    with writing(tmp_path / "b") as room:
        (room / "weights.data").write_bytes(bytes(range(256)) * 40)
        (room / "note.txt").write_text("hello")
        finish(room, BODY)
    return tmp_path / "b"


def test_what_is_written_is_read(made):
    bundle = open_bundle(made)
    assert sorted(bundle.manifest["files"]) == ["note.txt", "weights.data"]
    assert bundle.file("note.txt").read_text() == "hello" and len(bundle.digest) == 64
    assert [p.name for p in made.parent.iterdir()] == ["b"]
    with pytest.raises(BundleError, match="no file engine"):
        bundle.file("engine")


@pytest.mark.parametrize("where", [0, 5000, 10239])
def test_one_flipped_byte_is_found(made, where):
    data = bytearray((made / "weights.data").read_bytes())
    data[where] ^= 1
    (made / "weights.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.data is damaged: SHA-256 .* expected, got"):
        open_bundle(made)


def test_missing_short_linked_and_foreign_files_are_found(made):
    (made / "note.txt").write_text("hell")
    with pytest.raises(BundleError, match=r"note\.txt is damaged: 5 bytes expected, got 4"):
        open_bundle(made)
    (made / "note.txt").unlink()
    with pytest.raises(BundleError, match="missing or a link"):
        open_bundle(made)
    (made.parent / "elsewhere").write_text("hello")
    (made / "note.txt").symlink_to(made.parent / "elsewhere")
    with pytest.raises(BundleError, match="missing or a link"):
        open_bundle(made)


def edit(made, change):
    body = json.loads((made / MANIFEST).read_text())
    change(body)
    (made / MANIFEST).write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda b: b.update(format="digseg.bundle/2"),
            "format 'digseg.bundle/2', this release reads 'digseg.bundle/1'",
        ),
        (lambda b: b["contract"].update(version=99), "contract version 99"),
        (lambda b: b.pop("files"), "cannot be read"),
        (lambda b: b.update(files=[1]), "cannot be read"),
        (lambda b: b["files"].update({"../../etc/passwd": {"size": 1, "sha256": ""}}), "plain names only"),
        (lambda b: b["files"].update({"note.txt": None}), "plain names only"),
    ],
)
def test_foreign_manifests_are_refused(made, change, words):
    edit(made, change)
    with pytest.raises(BundleError) as caught:
        open_bundle(made)
    assert words in str(caught.value)


def test_half_a_bundle_is_no_bundle(made, tmp_path):
    (made / MANIFEST).write_text('{"format": ')
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(made)
    (made / MANIFEST).unlink()
    with pytest.raises(BundleError, match="not a complete bundle"):
        open_bundle(made)
    with pytest.raises(BundleError, match="not found"):
        open_bundle(tmp_path / "nowhere")


def test_an_error_while_writing_leaves_nothing_and_keeps_the_old_bundle(made):
    before = (made / MANIFEST).read_bytes()

    def fill(room):
        (room / "weights.data").write_bytes(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"), writing(made) as room:
        fill(room)
    assert (made / MANIFEST).read_bytes() == before and open_bundle(made)
    assert [p.name for p in made.parent.iterdir()] == ["b"]
    with pytest.raises(BundleError, match="not finished"), writing(made.parent / "c"):
        pass
    assert [p.name for p in made.parent.iterdir()] == ["b"]


def test_a_new_bundle_replaces_an_old_one_but_nothing_else(made, tmp_path):
    with writing(made) as room:
        (room / "only.txt").write_text("new")
        finish(room, BODY)
    assert sorted(p.name for p in made.iterdir()) == [MANIFEST, "only.txt"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    with pytest.raises(UsageError, match="not a bundle"), writing(tmp_path / "photos"):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a bundle"), writing(tmp_path / "file"):
        pass
    with pytest.raises(UsageError, match="not a writable directory"), writing(tmp_path / "file" / "b"):
        pass
    assert (tmp_path / "photos" / "a.jpg").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused_before_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="writable"), writing(tmp_path / "b"):
        pass


def test_token_buckets():
    assert [token_bucket(n) for n in (2, 8, 9, 16, 17, 33, 77, 90)] == [8, 8, 16, 16, 32, 77, 77, 77]
