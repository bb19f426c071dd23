"""Bundles: all or nothing on disk, and refused when anything about them changed."""

import json
import os

import pytest

from digseg_engine.bundle import MANIFEST, finish, open_bundle, writing
from digseg_engine.contract import BUNDLE_FORMAT, contract_json, token_bucket
from digseg_engine.errors import BundleError, UsageError

BODY = {
    "format": BUNDLE_FORMAT, "contract": contract_json(False), "precision": {"name": "fp32"},
    "model": {"image_size": 128, "stride": 16}, "shapes": dict.fromkeys("BKLHW", "dynamic"),
    "verification": {"limits": {"relative": 1e-3, "iou": 0.999}},
}  # fmt: skip


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


def test_missing_and_short_files_are_found(made):
    (made / "note.txt").write_text("hell")
    with pytest.raises(BundleError, match=r"note\.txt is damaged: 5 bytes expected, got 4"):
        open_bundle(made)
    (made / "note.txt").unlink()
    with pytest.raises(BundleError, match=r"note\.txt is missing"):
        open_bundle(made)


def test_links_are_read_when_what_they_lead_to_has_the_hash(made, tmp_path):
    blobs = tmp_path / "blobs"  # as a hub's cache keeps its files
    blobs.mkdir()
    for path in list(made.iterdir()):
        path.rename(blobs / f"x{path.name}")
        path.symlink_to(blobs / f"x{path.name}")
    assert open_bundle(made).file("note.txt").read_text() == "hello"
    (blobs / "xnote.txt").write_text("hullo")
    with pytest.raises(BundleError, match=r"note\.txt is damaged: SHA-256"):
        open_bundle(made)
    (blobs / "xnote.txt").unlink()
    with pytest.raises(BundleError, match=r"note\.txt is missing"):
        open_bundle(made)


@pytest.mark.parametrize("name", ["engines", "mask_decoder.plan", "weights.data.bak"])
def test_what_the_manifest_does_not_list_is_refused(made, name):
    (made / ".DS_Store").write_text("a file manager was here")
    (made / ".cache").mkdir()
    open_bundle(made)
    (made / name).mkdir() if name == "engines" else (made / name).write_text("code")
    with pytest.raises(BundleError, match=f"holds '{name}', which its manifest does not list"):
        open_bundle(made)


@pytest.mark.parametrize("name", ["mask_decoder.plan", "x.engine", "x.trt"])
def test_code_for_one_machine_is_no_part_of_a_bundle_whoever_wrote_its_hash(made, name):
    body = json.loads((made / MANIFEST).read_text())
    (made / MANIFEST).unlink()
    (made / name).write_bytes(b"code")
    finish(made, body)
    with pytest.raises(BundleError, match=f"lists '{name}'; a plan is code for one machine"):
        open_bundle(made)


def edit(made, change):
    body = json.loads((made / MANIFEST).read_text())
    change(body)
    (made / MANIFEST).write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda b: b.update(format="digseg.bundle/3"),
            "format 'digseg.bundle/3', this release reads 'digseg.bundle/2'",
        ),
        (
            lambda b: b.update(format="digseg.bundle/1"),
            "make it from its checkpoint: digseg-export CHECKPOINT --precision fp32",
        ),
        (
            lambda b: b.update(format="digseg.bundle/1", precision={"name": "$(rm x)"}),
            "make it from its checkpoint: digseg-export CHECKPOINT",
        ),
        (lambda b: b.update(presence=[1]), "presence is [1]; expected nothing, or a threshold"),
        (lambda b: b.update(presence={"threshold": "-1"}), "presence is {'threshold': '-1'}; expected nothing"),
        (lambda b: b.update(presence={"threshold": float("1e999")}), "Infinity is no JSON number"),
        (lambda b: b["contract"].update(version=99), "contract version 99"),
        (lambda b: b.pop("files"), "files is None; expected an object"),
        (lambda b: b.update(files=[1]), "files is [1]; expected an object"),
        (lambda b: b.pop("format"), "format None"),
        (lambda b: b.pop("contract"), "contract.version is None"),
        (lambda b: b.update(contract=[]), "contract.version is None"),
        (lambda b: b.pop("model"), "model.image_size is None; expected a number of pixels"),
        (lambda b: b["model"].update(stride="16"), "model.stride is '16'; expected a number of pixels"),
        (lambda b: b["model"].update(stride=True), "model.stride is True; expected a number of pixels"),
        (lambda b: b["model"].update(stride=0), "model.stride is 0; expected a number of pixels"),
        (lambda b: b.update(precision="fp16"), "precision.name is None; expected a text"),
        (lambda b: b.pop("shapes"), "shapes is None; expected"),
        (lambda b: b["shapes"].update(B={"min": 1, "opt": 1, "max": 1}), "min <= opt <= max"),
        (lambda b: b.update(shapes={axis: {"min": 2, "opt": 1, "max": 3} for axis in "BKLHW"}), "min <= opt <= max"),
        (lambda b: b["verification"].pop("limits"), "verification.limits.relative is None; expected a number"),
        (lambda b: b["verification"]["limits"].update(iou="0.9"), "verification.limits.iou is '0.9'"),
        (lambda b: b["files"]["note.txt"].pop("size"), "None bytes expected"),
        (lambda b: b["files"].update({"../../etc/passwd": {"size": 1, "sha256": ""}}), "plain names only"),
        (lambda b: b["files"].update({"note.txt": None}), "plain names only"),
    ],
)
def test_foreign_manifests_are_refused(made, change, words):
    edit(made, change)
    with pytest.raises(BundleError) as caught:
        open_bundle(made)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "too many brackets within each other"),
        ('{"a":' * 50_000, "too many brackets within each other"),
        ("[1]", "no JSON object"),
        ('{"format": "x", "format": "y"}', "the key 'format' stands there twice"),
        ('{"format": NaN}', "NaN is no JSON number"),
        ("\xff", "cannot be read"),
        ("1" * 5000, "cannot be read"),
        (" " * (17 << 20), "larger than 16 MiB"),
        ("", "cannot be read"),
    ],
)
def test_hostile_manifests_are_our_error(made, text, words):
    (made / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError) as caught:
        open_bundle(made)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused_before_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="writable"), writing(tmp_path / "b"):
        pass


def test_token_buckets():
    assert [token_bucket(n) for n in (2, 8, 9, 16, 17, 33, 77, 90)] == [8, 8, 16, 16, 32, 77, 77, 77]
