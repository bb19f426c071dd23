"""A bundle pushed to a hub and loaded from it: verified first, one commit, a card that says what the bundle records."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_fixtures import *  # noqa: F403
from hub_fixtures import NAME, Hub, files_of, rewritten
from hub_server import TOKEN, Repository
from PIL import Image
from programs import run_program

from digseg_engine import Engine
from digseg_engine.bundle import MANIFEST, SIGNATURE, open_bundle
from digseg_engine.commands.main import dispatch
from digseg_engine.errors import BundleError, InputError, OutputError, UsageError, VerificationError
from digseg_engine.hub.client import api
from digseg_engine.hub.ids import HubId
from digseg_engine.named import SHIPPED_BUNDLE, find_model
from digseg_engine.runtime.source import open_source
from digseg_engine.sharing.card import CARD, EXAMPLE, MARK, card_of, plain
from digseg_engine.sharing.example import Example, golden_prompts
from digseg_engine.sharing.push import Push, _upload

ROOT = Path(__file__).resolve().parents[2]
AERIAL = ROOT / "examples" / "aerial.png"
DIGSEG = "from digseg_engine.cli import main; main()"


def digseg(*words, **environment):
    return run_program(
        [sys.executable, "-c", DIGSEG, *words], env={**os.environ, "PYTHONPATH": str(ROOT), **environment}
    )


ROADS = HubId("acme", "roads")


def uploaded(folder, repo=ROADS, example=b"", **more):
    card = card_of(open_bundle(folder), repo)
    return _upload(
        api("the test"), repo, open_bundle(folder), card, Example((), example), Push(folder, repo.repository, **more)
    )


# ---- the whole road


def test_pushed_loaded_by_revision_on_a_clean_cache_and_offline_afterwards(
    hub, logged_in, cache, monkeypatch, tmp_path
):
    done = digseg("push", str(SHIPPED_BUNDLE), NAME, "--message", "first")
    assert done.returncode == 0, done.stderr
    commit = hub.repositories[NAME].branches["main"]
    assert done.stdout.strip() == f"{NAME}@{commit}" and "all hashes match" in done.stderr
    assert hub.repositories[NAME].messages[-1] == "first" and TOKEN not in done.stdout + done.stderr
    assert not list((cache / "hub").rglob("*.onnx")) if (cache / "hub").exists() else True
    expected = Engine.load(SHIPPED_BUNDLE, "onnxruntime").segment(AERIAL, ["road", "water"])
    with Engine.load(f"{NAME}@{commit}", "onnxruntime") as engine:
        assert np.array_equal(engine.segment(AERIAL, ["road", "water"]).masks, expected.masks)
    hub.stop()
    with Engine.load(f"{NAME}@{commit}", "onnxruntime") as engine:  # nobody is asked about a commit
        assert engine.bundle.digest == open_bundle(SHIPPED_BUNDLE).digest
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert dispatch(["segment", str(AERIAL), "-p", "road", "-o", str(tmp_path / "out"), "-b", f"{NAME}@{commit}"]) == 0


def test_every_command_takes_the_name_and_says_which_commit(hub, pushed_whole, tmp_path, capsys, monkeypatch):
    """One that asks the hub once, whatever it does with the bundle."""
    monkeypatch.setattr("sys.stdin", io.StringIO("road\n"))
    commit = hub.repositories[NAME].branches["main"]
    said = f"digseg: {NAME}@main is commit {commit}"
    words = {
        "segment": [str(AERIAL), "-p", "road", "-o", str(tmp_path / "s"), "-b", NAME],
        "ask": [str(AERIAL), "--batch", "-o", str(tmp_path / "a"), "-b", NAME],
        "bench": [NAME, "--backends", "onnxruntime", "--sizes", "64", "--prompts", "1", "--batch", "1", "--runs", "1"],
        "doctor": ["--bundle", NAME], "verify": [NAME], "push": [NAME, "acme/again", "--dry-run"],
    }  # fmt: skip
    for name, given in words.items():
        hub.asked.clear()
        assert dispatch([name, *given]) == 0, name
        assert said in capsys.readouterr().err, name
        assert [path for _, path, _ in hub.asked if path.startswith("api/")] == [f"api/models/{NAME}/revision/main"], (
            name
        )
    assert dispatch(["segment", str(AERIAL), "-p", "road", "-o", str(tmp_path / "q"), "-b", NAME, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("DIGSEG_BUNDLE", NAME)
    assert dispatch(["segment", str(AERIAL), "-p", "road", "-o", str(tmp_path / "e")]) == 0
    assert said in capsys.readouterr().err


def test_the_server_serves_it_under_its_name(hub, pushed_whole):
    from digseg_engine.serving.server import Listening, open_models

    engines = open_models(Listening((Path(NAME),), backend="onnxruntime"))
    assert list(engines) == ["roads"]
    engines["roads"].close()


def test_a_score_is_that_of_the_bundle(hub, pushed_whole, capsys):
    assert not dispatch(["eval", "--model", NAME, "--count", "1", "--data", "scenes:objects"])
    assert f"{NAME}@main is commit" in capsys.readouterr().err


@pytest.fixture
def pushed_whole(hub):
    """`acme/roads` with the shipped bundle."""
    found = hub.repositories[NAME] = Repository()
    found.commit({**files_of(SHIPPED_BUNDLE), CARD: b"# a card\n"})
    return found


def test_a_command_that_cannot_have_it_says_one_line(hub):
    segment = ["segment", str(AERIAL), "-p", "road", "-b"]
    for words in (segment, ["verify"], ["doctor", "--bundle"], ["bench"], ["eval", "--model"], ["push"]):
        with pytest.raises(
            BundleError, match="runs/mine is no folder here, and no repository on the hub that you may see"
        ):
            dispatch([*words, "runs/mine", *([NAME] if words == ["push"] else [])])


def test_a_checkpoint_is_never_asked_for_on_a_hub(hub):
    done = run_program([sys.executable, "-c", "from digseg_export.cli import main; main()", "runs/mine"],
                       env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}"})  # fmt: skip
    assert "checkpoint runs/mine not found" in done.stderr and hub.asked == []


def new_key():
    form = pytest.importorskip("cryptography.hazmat.primitives.serialization", reason="extra sign")
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def test_a_hubs_copy_is_not_signed_where_it_lies(hub, pushed, tmp_path):
    (tmp_path / "key.pem").write_bytes(new_key())
    words = ["--bundle", NAME, "--sign", str(tmp_path / "key.pem")]
    done = run_program([sys.executable, "-c", "from digseg_export.cli import main; main()", *words],
                       env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}"})  # fmt: skip
    assert done.returncode == 2 and "a signature in it would reach nobody" in done.stderr, done.stderr


# ---- what is refused


@pytest.mark.parametrize(
    ("repository", "revision"),
    [("roads", None), ("acme/roads@main", None), ("a/b/c", None), ("acme/..", None), (NAME, "a b"), (NAME, "../x")],
)
def test_a_place_that_is_none_is_refused_before_any_work(repository, revision, hub):
    with pytest.raises(UsageError, match="is no place on a hub"):
        dispatch(["push", "nowhere", repository, *([] if revision is None else ["--revision", revision])])
    assert hub.asked == []


def test_what_is_damaged_or_wrong_here_is_not_pushed(hub, logged_in, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(SHIPPED_BUNDLE, copy)
    (copy / "precision.json").write_text("{}")
    with pytest.raises(BundleError, match=r"precision\.json is damaged"):
        dispatch(["push", str(copy), NAME])
    from dataclasses import replace

    from digseg_engine.runtime import verified

    usual = verified.assess
    monkeypatch.setattr(
        verified, "assess", lambda *given, **named: replace(usual(*given, **named), right=False, reason="off")
    )
    with pytest.raises(VerificationError, match=r"not pushed, because it was not found right here: .*off"):
        dispatch(["push", str(SHIPPED_BUNDLE), NAME])
    assert NAME not in hub.repositories and not any(method == "POST" for method, _, _ in hub.asked)


def test_without_a_token_or_the_right_to_write_one_line_says_so(hub, made, monkeypatch):
    with pytest.raises(
        OutputError, match=r"does not let you write to acme/roads; log in with a token that may \(`hf auth login`"
    ):
        uploaded(made)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(OutputError, match="does not let you write to others/roads"):
        uploaded(made, HubId("others", "roads"))
    hub.status = 500
    with pytest.raises(OutputError, match="acme/roads could not be pushed: it answers with status 500"):
        uploaded(made)


def test_the_extra_is_named_where_it_lacks(made):
    hide = f"import sys; sys.modules['huggingface_hub'] = None; {DIGSEG}"
    done = run_program(
        [sys.executable, "-c", hide, "push", str(made), NAME], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "huggingface_hub" in line and "[hub]" in line


# ---- what is uploaded


def test_a_push_is_one_commit_with_the_bundle_and_its_card_alone(hub, logged_in, made):
    commit = uploaded(made, example=b"png")
    found = hub.repositories[NAME]
    assert found.branches == {"main": commit} and not found.private and len(found.commits) == 2
    assert set(found.files()) == {*files_of(made), CARD, EXAMPLE, ".gitattributes"}
    assert {name: found.files()[name] for name in files_of(made)} == files_of(made)
    assert found.messages[-1].startswith("Push roads, ") and open_bundle(made).digest[:16] in found.messages[-1]
    assert files_of(find_model(NAME)) == files_of(made)


def test_a_private_one_on_a_branch(hub, logged_in, made):
    uploaded(made, HubId("acme", "roads", "v2"), private=True)
    found = hub.repositories[NAME]
    assert found.private and MANIFEST in found.files("v2") and MANIFEST not in found.files("main")
    assert f'Engine.load("{NAME}@v2")'.encode() in found.files("v2")[CARD]
    uploaded(made, HubId("acme", "roads", "v2"))
    assert files_of(find_model(f"{NAME}@v2")) == files_of(made)


def test_what_an_earlier_bundle_had_is_taken_away_and_other_files_are_left(hub, logged_in, made):
    uploaded(made, example=b"png")
    found = hub.repositories[NAME]
    found.commit({**found.files(), "old.data": b"old", SIGNATURE: b"{}", "notes.txt": b"mine"})
    rewritten(found, lambda body: body["files"].update({"old.data": {"size": 3, "sha256": "0" * 64}}))
    uploaded(made)
    assert set(found.files()) == {*files_of(made), CARD, ".gitattributes", "notes.txt"}


def test_a_card_of_somebodys_own_is_kept(hub, logged_in, made, capsys):
    uploaded(made)
    found = hub.repositories[NAME]
    assert MARK.encode() in found.files()[CARD]
    found.commit({**found.files(), CARD: b"---\nlicense: mit\n---\n# Mine\n"})
    uploaded(made)
    assert found.files()[CARD].endswith(b"# Mine\n") and "it is kept" in capsys.readouterr().err


def test_the_libraries_own_download_reads_what_was_pushed(hub, logged_in, made, tmp_path):
    """The server of these tests is one to a client that knows nothing of ours."""
    uploaded(made)
    code = (
        "import sys; from huggingface_hub import snapshot_download as get; "
        "get(sys.argv[1], local_dir=sys.argv[2], ignore_patterns=['*.md'])"
    )
    done = run_program([sys.executable, "-c", code, NAME, tmp_path / "copy"])
    assert done.returncode == 0, done.stderr
    assert open_bundle(tmp_path / "copy").digest == open_bundle(made).digest


# ---- the card


@pytest.fixture(scope="module")
def source():
    return open_source(SHIPPED_BUNDLE)


@pytest.fixture(scope="module")
def card(source):
    return card_of(source.bundle, HubId("acme", "roads"), golden_prompts(source), example=True)


def test_its_front_matter_is_what_a_hub_reads(card):
    yaml = pytest.importorskip("yaml")
    body = yaml.safe_load(card.split("---\n")[1])
    assert body == {"license": "apache-2.0", "library_name": "digseg-engine", "pipeline_tag": "image-segmentation",
                    "tags": ["digseg", "onnx", "text-prompted-segmentation"]}  # fmt: skip


def test_it_says_what_the_bundle_records(card, source):
    manifest = source.bundle.manifest
    sbom = json.loads(source.bundle.read("sbom.cdx.json"))
    figures = sbom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    student = next(row["value"] for row in figures if row["type"] == "mean IoU, student")
    assert f"| mean IoU, student | generated test scenes of every domain | {student} |" in card
    for one in manifest["presence"]["sets"]:
        assert f"| {one['mcc']:.4g} | {one['recall']:.4g} | {one['turned_away']:.4g} |" in card
    end = manifest["verification"]["checks"][-1]
    assert f"| {end['relative']:.4g} | {end['iou']:.4g} | {end['worst_iou']:.4g} |" in card
    for words in ("trained for pictures of 256 pixels", "nuclei (licence: not recorded)", "scenes (licence: Apache-2.0)",
                  manifest["licence"]["weights"], source.bundle.digest, "Not recorded. `digseg bench`",
                  "nucleus, zebra, lighthouse", f"({EXAMPLE})", "onnxruntime 1."):  # fmt: skip
        assert words in card, words


def test_its_table_of_speeds_is_that_of_a_report_about_this_bundle(source, hub, tmp_path, capsys):
    row = {"size": 256, "batch": 1, "prompts": 20, "first": {"median_ms": 12.3456}, "later": {"median_ms": 1.5}}
    body = {"format": "digseg.bench/1", "model": {"sha256": source.digest}, "machine": {"processor": "AMD EPYC", "gpus": ""},
            "threads": 2, "date": "2026-11-30", "note": "a | busy\nmachine",
            "backends": [{"backend": "onnxruntime", "rows": [row, {**row, "reason": "x"} | {"first": {"median_ms": None}}]},
                         {"backend": "none", "rows": []}]}  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(body))
    assert dispatch(["push", str(SHIPPED_BUNDLE), NAME, "--dry-run", "--bench", str(tmp_path / "bench.json")]) == 0
    out = capsys.readouterr().out
    assert (
        "| onnxruntime | 256 | 1 | 20 | 12.35 | 1.5 |" in out
        and "AMD EPYC (threads: 2," in out
        and r"a \| busy machine" in out
    )
    assert hub.asked == []  # a dry run asks nobody
    body["model"]["sha256"] = "0" * 64
    (tmp_path / "bench.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match="about another bundle"):
        dispatch(["push", str(SHIPPED_BUNDLE), NAME, "--dry-run", "--bench", str(tmp_path / "bench.json")])
    (tmp_path / "bench.json").write_text("[")
    with pytest.raises(InputError, match="cannot be read"):
        dispatch(["push", str(SHIPPED_BUNDLE), NAME, "--dry-run", "--bench", str(tmp_path / "bench.json")])


def test_its_snippets_run(card, hub, pushed_whole, cache, tmp_path):
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", card, re.M | re.S)[:2])
    shutil.copy(AERIAL, tmp_path / "photo.jpg")
    exec(compile(blocks["python"], "card", "exec"), {})
    assert Image.open(tmp_path / "overlay.png").size[0] >= 256
    done = run_program(["bash", "-c", blocks["bash"].splitlines()[0].replace("digseg", f'{sys.executable} -c "{DIGSEG}"', 1)],
                       env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0 and list((tmp_path / "out").glob("*.overlay.png")), done.stderr


def test_its_command_for_a_copy_gives_a_bundle(card, hub, pushed_whole, tmp_path):
    (line,) = [line for line in card.splitlines() if line.startswith("hf download")]
    program = Path(sys.executable).with_name("hf")
    if not program.exists():
        pytest.skip("the client's own command is not installed")
    done = run_program(["bash", "-c", line.replace("hf", str(program), 1)])
    assert done.returncode == 0, done.stderr
    assert open_bundle(tmp_path / "roads").digest == open_bundle(SHIPPED_BUNDLE).digest


def test_its_c_is_c(card, tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (body,) = re.findall(r"^```c\n(.*?)^```", card, re.M | re.S)
    (tmp_path / "card.c").write_text(body)
    flags = ["-std=c99", "-Wall", "-Werror", "-fsyntax-only", "-I", str(ROOT / "kernels" / "include")]
    done = subprocess.run([compiler, *flags, str(tmp_path / "card.c")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_its_picture_is_the_golden_samples_with_the_bundles_own_answer(source):
    from digseg_engine.sharing.example import example_of

    found = example_of(source)
    assert found.prompts == ("nucleus", "zebra", "lighthouse")
    with Image.open(io.BytesIO(found.png)) as picture:
        assert picture.format == "PNG" and picture.size[0] >= 256


HOSTILE = "x\n# | **b** `c` <script>alert(1)</script> [a](http://evil) ![](x) \x1b[31m" + chr(0x202E)


def test_words_of_a_bundle_cannot_become_markup(made):
    """A licence, a figure's name or data somebody else wrote: text on one line."""
    bundle = open_bundle(made)
    body = dict(bundle.manifest, licence={"weights": HOSTILE}, tools={HOSTILE: HOSTILE},
                presence={"threshold": 0.0, "sets": [{"data": HOSTILE, "mcc": HOSTILE}]})  # fmt: skip
    object.__setattr__(bundle, "manifest", body)
    card = card_of(bundle, HubId("acme", "roads"), [HOSTILE])
    front, text = card.split("---\n")[1:3]
    assert "license: other" in front and len(front.splitlines()) == 8
    assert "<script>" not in text and "\x1b" not in card and chr(0x202E) not in card
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]\(", text) and r"\<script\>" in text
    rows = [line for line in text.splitlines() if line.startswith("| x")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert plain("a_b*c") == r"a\_b\*c"


def test_a_bundle_that_records_little_says_so(made):
    card = card_of(open_bundle(made), HubId("acme", "roads"))
    for words in ("Quality on pictures: not recorded", "Not recorded. `digseg bench`", "weights it began with: not recorded",
                  "data: not recorded", "licence of the weights: not recorded"):  # fmt: skip
        assert words in card, words
    assert "license:" not in card and "base_model" not in card


def test_weights_that_came_from_a_hub_are_named_with_their_revision(made):
    from digseg_engine.bundle import finish

    part = {
        "type": "machine-learning-model",
        "name": "owner/base",
        "version": "a" * 40,
        "purl": f"pkg:huggingface/owner/base@{'a' * 40}",
    }
    (made / "sbom.cdx.json").write_text(json.dumps({"components": [part, {**part, "name": "{'steps': 1}"}]}))
    body = json.loads((made / MANIFEST).read_text())
    finish(made, {key: value for key, value in body.items() if key != "files"})
    card = card_of(open_bundle(made), HubId("acme", "roads"))
    assert 'base_model:\n- "owner/base"\n---' in card and f"owner/base ({'a' * 40})" in card and "steps" not in card


__all__ = ["Hub"]
