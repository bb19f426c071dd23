"""The bill of materials: valid by its schema, the same for equal exports, and true to the checkpoint's record."""

import json
import shutil

import pytest

from digseg_engine.named import SHIPPED_BUNDLE, SHIPPED_CHECKPOINT
from digseg_export.sbom import SBOM, UNKNOWN, sbom_of

MANIFEST = json.loads((SHIPPED_BUNDLE / "manifest.json").read_text())
SECRET = "models--stabilityai--sd-turbo/snapshots/" + "b" * 40


def errors(body):
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    return validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(body))


@pytest.fixture
def recorded(tmp_path):
    """A checkpoint with a record that names a hub's weights, folders, an address with a secret, and scenes."""
    (tmp_path / "c" / "training" / "start").mkdir(parents=True)
    run = {
        "init": f"/home/jane/.cache/huggingface/hub/{SECRET}", "source": "runs/mine", "autoencoder": None,
        "data": ["/home/jane/photos=0.5", "scenes:crops", "https://me:secret@example.org/set/train.tar?X-Sig=1"],
        "seed": 3, "student": {"steps": 4200, "optimizer": "muon", "place": "/home/jane/x"},
    }  # fmt: skip
    (tmp_path / "c" / "training" / "train.json").write_text(json.dumps(run))
    (tmp_path / "c" / "training" / "start" / "train.json").write_text(
        json.dumps({"data": "scenes", "init": "runs/mine"})
    )
    quality = {"format": "digseg.quality/1", "student": 0.9, "reference": {"1": 0.2}, "measured": {"on": "test scenes"}}
    (tmp_path / "c" / "quality.json").write_text(json.dumps(quality))
    return tmp_path / "c"


def test_it_is_valid_and_names_what_the_record_names(recorded):
    body = sbom_of(SHIPPED_BUNDLE, MANIFEST, recorded)
    assert errors(body) is None
    parts = {part["name"]: part for part in body["components"]}
    assert parts["stabilityai/sd-turbo"]["version"] == "b" * 40
    assert parts["mine"]["properties"] == [{"name": "digseg:revision", "value": UNKNOWN}]
    assert parts["photos"]["properties"] == [{"name": "digseg:licence", "value": UNKNOWN}]
    assert parts["scenes:crops"]["licenses"] == parts["scenes"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert parts["https://example.org/set/train.tar"]["type"] == "data"
    listed = MANIFEST["files"]["mask_decoder.data"]["sha256"]
    assert parts["mask_decoder.data"]["hashes"] == [{"alg": "SHA-256", "content": listed}]
    model = body["metadata"]["component"]
    said = {entry["name"]: entry["value"] for entry in model["properties"]}
    assert said["digseg:training.student.steps"] == "4200" and said["digseg:training.student.optimizer"] == "muon"
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "mean IoU, student", "value": "0.9", "slice": "test scenes"} in metrics
    used = set(body["dependencies"][0]["dependsOn"])
    assert used == {part["bom-ref"] for part in body["components"] if "bom-ref" in part}
    tools = {tool["name"]: tool["version"] for tool in body["metadata"]["tools"]["components"]}
    assert tools == MANIFEST["tools"]


def test_no_folder_of_the_maker_and_no_secret_is_told(recorded):
    text = json.dumps(sbom_of(SHIPPED_BUNDLE, MANIFEST, recorded))
    for word in ("jane", "secret", "X-Sig", "/home"):
        assert word not in text


def test_equal_exports_give_equal_bytes_wherever_they_lie(recorded, tmp_path):
    copy = shutil.copytree(SHIPPED_BUNDLE, tmp_path / "copy")
    first, second = (
        sbom_of(SHIPPED_BUNDLE, MANIFEST, recorded),
        sbom_of(copy, {**MANIFEST, "created": "later"}, recorded),
    )
    assert json.dumps(first) == json.dumps(second) and "timestamp" not in json.dumps(first)
    (copy / "mask_decoder.data").write_bytes(b"other")
    assert sbom_of(copy, MANIFEST, recorded)["serialNumber"] != first["serialNumber"]


def test_a_checkpoint_without_a_record_gives_a_shorter_one():
    body = sbom_of(SHIPPED_BUNDLE, MANIFEST, None)
    assert errors(body) is None and all(part["type"] == "file" for part in body["components"])


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"data": 7, "init": ["x"]}', '{"data": {"a": 1}}', '{"data": ["a=b"]}']
)
def test_a_record_that_is_none_is_no_reason_to_fail(tmp_path, text):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "train.json").write_text(text)
    assert errors(sbom_of(SHIPPED_BUNDLE, MANIFEST, tmp_path)) is None


def test_of_the_bundled_checkpoint():
    body = sbom_of(SHIPPED_BUNDLE, MANIFEST, SHIPPED_CHECKPOINT)
    assert errors(body) is None
    named = {part["name"] for part in body["components"] if part["type"] == "data"}
    assert {name.partition("@")[0].partition(":")[0] for name in named} == {
        "scenes", "nuclei", "dubai", "wheat",
    }  # fmt: skip
    assert "digseg-tiny" in {part["name"] for part in body["components"]}


def test_every_export_has_one(nano_models):
    for folder in (nano_models.fp32, nano_models.fp16):
        body = json.loads((folder / SBOM).read_text())
        assert errors(body) is None
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        assert SBOM in listed
