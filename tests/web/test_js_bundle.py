"""The JavaScript module opens what Python opens, and refuses what Python refuses."""

import json
import re
import shutil

import pytest
from web_cases import JS, ROOT, needs_node, run_node

from digseg_engine.bundle import MANIFEST, open_bundle
from digseg_engine.errors import BundleError

pytestmark = needs_node
SHIPPED = ROOT / "digseg_engine" / "assets" / "digseg-tiny-fp16"
OPEN = f"""
import {{ fromFolder }} from "{JS.as_uri()}/node.js";
import {{ openBundle }} from "{JS.as_uri()}/bundle.js";
try {{
  const {{ digest, files }} = await openBundle(fromFolder(process.argv[1]));
  console.log(JSON.stringify({{ digest, files: files.size }}));
}} catch (error) {{ console.log(JSON.stringify({{ error: error.name, message: error.message }})); }}
"""


def opened(folder):
    done = run_node("--input-type=module", "-e", OPEN, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "b")


def change(folder, edit):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_the_shipped_bundle_and_its_digest():
    ours = open_bundle(SHIPPED)
    assert opened(SHIPPED) == {"digest": ours.digest, "files": len(ours.manifest["files"])}


def flip(folder):
    path = folder / "image_encoder.data"
    body = bytearray(path.read_bytes())
    body[1000] ^= 1
    path.write_bytes(body)


def put(key, value):
    def edit(manifest):
        *parts, last = key.split(".")
        for part in parts:
            manifest = manifest[part]
        manifest[last] = value

    return lambda folder: change(folder, edit)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "image_encoder.data is damaged: SHA-256"),
        (
            lambda folder: (folder / "presence.data").write_bytes(b"x"),
            "presence.data is damaged: 74496 bytes expected, got 1",
        ),
        (lambda folder: (folder / "presence.data").unlink(), "presence.data is missing"),
        (lambda folder: (folder / "more.txt").write_text("x"), "which its manifest does not list"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "it is no JSON object"),
        (
            lambda folder: (folder / MANIFEST).write_text('{"a": {"b": 1}, "c\\"": 2, "b": 3, "\\u0061": 4}'),
            "stands there twice",
        ),
        (put("format", "digseg.bundle/1"), "cannot be encoded apart from prompts"),
        (put("format", "other/9"), "use the release that wrote it"),
        (put("contract.version", 3), "contract version 3"),
        (put("model.stride", 0), "model.stride is"),
        (put("model.stride", "16"), "model.stride is"),
        (put("presence", {"threshold": "0"}), "presence is"),
        (put("shapes.B", {"min": 1, "opt": 1, "max": 1}), "shapes is"),
        (put("verification.limits.iou", None), "verification.limits.iou is"),
        (put("vocabulary", {"names": []}), "vocabulary"),
        (put("files.engine", {"size": 1}), "engine is missing"),
        (
            lambda folder: change(folder, lambda m: m["files"].update({"../x": {"size": 1}})),
            "expected plain names only",
        ),
        (lambda folder: change(folder, lambda m: m["files"].update({"a.plan": {"size": 1}})), "a plan is code"),
    ],
)
def test_what_is_wrong_is_named_by_both(copy, damage, words):
    damage(copy)
    with pytest.raises(BundleError, match=r".") as ours:
        open_bundle(copy)
    theirs = opened(copy)
    assert theirs["error"] == "BundleError" and words in theirs["message"] and words in str(ours.value)


def test_hidden_files_and_a_signature_are_left_alone(copy):
    (copy / ".cache").write_text("x")
    (copy / "model.sig").write_text("x")
    assert "digest" in opened(copy)


def test_versions_are_pythons():
    from digseg_engine import __version__

    package = json.loads((JS / "package.json").read_text())
    assert package["version"] == __version__ and f'VERSION = "{__version__}"' in (JS / "result.js").read_text()


def exported(text):
    names = re.findall(r"^export (?:async )?(?:class|function|const|namespace) (\w+)", text, re.MULTILINE)
    for group in re.findall(r"^export \{ ([^}]+) \} from", text, re.MULTILINE) + re.findall(
        r"^export \{ ([^}]+) \};", text, re.MULTILINE
    ):
        names += group.split(", ")
    return {*names, *re.findall(r"^export \* as (\w+)", text, re.MULTILINE)}


def test_the_types_name_what_there_is():
    typed = exported((JS / "digseg.d.ts").read_text())
    assert typed == exported((JS / "digseg.js").read_text()) | exported((JS / "node.js").read_text())
    assert {"Engine", "Encoding", "Result", "pictureOf", "fromFolder"} <= typed


def test_every_file_that_is_imported_is_there():
    for path in JS.rglob("*.js"):
        for name in re.findall(r'from "(\./[^"]+)"', path.read_text()):
            assert (path.parent / name).is_file() or path.parent.name == "page", f"{path.name}: {name}"
