"""A bundle by its name on a hub: fetched once, whole and right, or refused; used without a network from then on."""

from __future__ import annotations

import json
import logging
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_fixtures import *  # noqa: F403
from hub_fixtures import NAME, files_of, rewritten
from hub_server import TOKEN, hub_running
from programs import LIMIT, run_program

from digseg_engine.bundle import MANIFEST, open_bundle
from digseg_engine.errors import BundleError, MissingPackageError, OutputError
from digseg_engine.hub import client
from digseg_engine.hub.ids import HubId, hub_id
from digseg_engine.named import find_model

ROOT = Path(__file__).resolve().parents[2]
FIND = "import sys; from digseg_engine.named import find_model; print(find_model(sys.argv[1]))"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("acme/roads", HubId("acme", "roads")),
        ("acme/roads@v1.0", HubId("acme", "roads", "v1.0")),
        ("a-b/c.d_e@refs/pr/1", HubId("a-b", "c.d_e", "refs/pr/1")),
        (Path("acme/roads@main"), HubId("acme", "roads")),
        *((text, None) for text in ("roads", "./acme/roads", "/acme/roads", "~/acme", "a/b/c", "../roads", "acme/..",
                                    "acme/.roads", "acme/roads@",
                                    "acme/roads@../x", "ac..me/roads", "acme/roads@a..b", "acme--x/roads",
                                    "acme/roads.", "acme/ro ads", "acme\\roads", "acme/roads@v1\n", "")),
    ],
)  # fmt: skip
def test_what_may_be_a_name_on_a_hub(text, meant):
    assert hub_id(text) == meant


def test_a_path_that_is_there_wins_and_no_one_is_asked(pushed, hub, made):
    shutil.copytree(made, "acme/roads")
    assert find_model(NAME) == Path(NAME) and find_model(Path(NAME)) == Path(NAME)
    assert hub.asked == []


def test_it_is_fetched_once_as_plain_closed_files_and_is_whole(pushed, hub, made, cache, caplog):
    caplog.set_level(logging.INFO, "digseg_engine")
    folder = find_model(NAME)
    commit = pushed.branches["main"]
    assert folder.parts[-4:] == ("acme", "roads", commit, "roads") and folder.is_relative_to(cache / "hub")
    assert files_of(folder) == files_of(made)  # no card, no plan, nothing hidden
    assert not any(path.is_symlink() for path in cache.rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in [cache, *cache.rglob("*")] if path.is_dir()} == {0o700}
    assert open_bundle(folder).digest == open_bundle(made).digest
    assert f"{NAME}@main is commit {commit}" in caplog.text and "3 files, 0.4 MiB" in caplog.text
    asked = len(hub.asked)
    assert sorted(hub.files_asked()) == sorted([MANIFEST, "note.txt", "precision.json", "weights.data"])
    assert find_model(NAME) == folder and find_model(f"{NAME}@{commit}") == folder
    assert len(hub.asked) == asked + 1  # what main is; of a commit nothing


def test_a_revision_is_a_branch_or_a_commit_and_main_moves(pushed, hub):
    first = pushed.branches["main"]
    pushed.branches["v1"] = first
    second = rewritten(pushed, lambda body: body.update(created="later"))
    assert [find_model(f"{NAME}{at}").parent.name for at in ("@v1", f"@{first}", "", "@main")] == [
        first,
        first,
        second,
        second,
    ]


def test_offline_afterwards(pushed, hub, monkeypatch, caplog):
    folder = find_model(NAME)
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_model(NAME) == folder and len(hub.asked) == asked
    assert "$HF_HUB_OFFLINE is set; using commit" in caplog.text
    with pytest.raises(
        BundleError, match=r"acme/roads@v2 is no folder here and was never fetched, and \$HF_HUB_OFFLINE is set"
    ):
        find_model(f"{NAME}@v2")


@pytest.mark.parametrize("how", ["gone", 500, 503, 429])
def test_a_hub_that_does_not_answer_is_done_without_once_it_was_asked(how, pushed, hub, caplog):
    folder = find_model(NAME)
    if how == "gone":
        hub.stop()
    else:
        hub.status = how
    assert find_model(NAME) == folder
    assert "the hub cannot be asked; using commit" in caplog.text
    with pytest.raises(BundleError, match="the hub cannot be asked for acme/roads@v2, which is no folder here"):
        find_model(f"{NAME}@v2")


def test_without_the_extra_one_line_says_so_and_what_is_here_is_used(pushed, hub, monkeypatch, caplog):
    folder = find_model(NAME)
    monkeypatch.setattr("digseg_engine.extras.lacking", lambda extra: ["huggingface_hub"] if extra == "hub" else [])
    assert find_model(NAME) == folder and "the extra [hub] is not installed; using commit" in caplog.text
    with pytest.raises(
        MissingPackageError, match=r"acme/other@main, which is no folder here .* huggingface_hub.*\[hub\]"
    ):
        find_model("acme/other")


def test_what_another_server_said_is_not_this_ones(pushed, hub, monkeypatch):
    find_model(NAME)
    with hub_running() as other:
        monkeypatch.setenv("HF_ENDPOINT", other.address)
        with pytest.raises(BundleError, match="no repository on the hub"):
            find_model(NAME)
        other.stop()
        for name in (NAME, f"{NAME}@{pushed.branches['main']}"):
            with pytest.raises(BundleError, match="cannot be asked"):
                find_model(name)


# ---- refused


def test_a_tampered_file_is_refused_and_fetched_again_when_it_is_right(pushed, hub, made, cache):
    right = (made / "weights.data").read_bytes()
    hub.changed["weights.data"] = right[:-1] + b"?"
    with pytest.raises(BundleError, match=r"acme/roads@main: weights.data is not what its manifest says"):
        find_model(NAME)
    assert hub.files_asked().count("weights.data") == 1
    assert not list(cache.rglob("*/roads/manifest.json")) and not list(cache.rglob("*weights.data*"))
    hub.changed.clear()
    assert files_of(find_model(NAME)) == files_of(made)
    assert hub.files_asked().count("note.txt") == 1


def test_a_file_changed_in_the_cache_is_refused_by_the_reader(pushed, hub):
    folder = find_model(NAME)
    (folder / "note.txt").write_text("hullo")
    with pytest.raises(BundleError, match=r"note.txt is damaged: SHA-256"):
        open_bundle(find_model(NAME))


def test_more_bytes_than_the_manifest_says_are_not_taken(pushed, hub, cache):
    hub.changed["weights.data"] = b"x" * 5_000_000
    with pytest.raises(BundleError, match=r"weights.data is longer than the 409600 bytes that its manifest says"):
        find_model(NAME)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 10_000


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "a/b", "..", ".hidden", "a\\b", "C:evil", "x" * 300, "", "w.plan", "w.engine"]
)
def test_a_listed_name_that_leads_elsewhere_or_is_code_is_refused_before_anything_is_fetched(name, pushed, hub, cache):
    def change(body):
        body["files"][name] = {"size": 4, "sha256": "0" * 64}

    rewritten(pushed, change)
    pushed.files()[name] = b"evil"
    with pytest.raises(BundleError, match=r"plain names only|never part of a bundle"):
        find_model(NAME)
    assert hub.files_asked() == [MANIFEST]
    assert not [path for path in cache.parent.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(format="digseg.bundle/9"), "has format 'digseg.bundle/9'"),
        (lambda body: body["files"].pop("weights.data"), None),
        (
            lambda body: body["files"]["weights.data"].update(size=5),
            "says that weights.data has 5 bytes, the hub has 409600",
        ),
        (lambda body: body["files"]["weights.data"].update(size=-1), "not whole"),
        (lambda body: body["files"]["weights.data"].update(size=None), "not whole"),
        (lambda body: body["files"].update({"more.data": {"size": 5, "sha256": ""}}), "the hub has no such file"),
        (lambda body: body["files"].update({"note.txt": 5}), "plain names only"),
        (lambda body: body["files"]["note.txt"].pop("sha256"), "note.txt is not what its manifest says"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_before_weights_are_fetched(change, message, pushed, hub):
    rewritten(pushed, change)
    if message is None:  # a file less is a bundle less one file
        assert "weights.data" not in files_of(find_model(NAME))
        return
    with pytest.raises(BundleError, match=message) as caught:
        find_model(NAME)
    assert (
        "weights.data" not in hub.files_asked()
        and "acme/roads" in str(caught.value)
        and "/.cache" not in str(caught.value)
    )


def test_a_manifest_too_large_to_read_is_not_fetched(pushed, hub, monkeypatch):
    monkeypatch.setattr("digseg_engine.hub.download.LARGEST_MANIFEST", 100)
    with pytest.raises(BundleError, match=r"manifest.json has .* bytes, expected 1 to 100"):
        find_model(NAME)
    assert hub.files_asked() == []


@pytest.mark.parametrize("told", [{"sha": "main"}, {"sha": "../../x"}, {"sha": None}])
def test_a_commit_that_is_none_is_refused(told, pushed, hub):
    hub.told = told
    with pytest.raises(BundleError, match="which cannot be"):
        find_model(NAME)


def test_another_commit_than_the_one_asked_for_is_refused(pushed, hub):
    hub.told = {"sha": "a" * 40}
    with pytest.raises(BundleError, match="which cannot be"):
        find_model(f"{NAME}@{pushed.branches['main']}")


def test_what_is_not_there_or_not_for_us_is_one_clear_line(pushed, hub, monkeypatch):
    with pytest.raises(
        BundleError, match="acme/nothing is no folder here, and no repository on the hub that you may see"
    ):
        find_model("acme/nothing")
    with pytest.raises(BundleError, match="acme/roads has no revision 'v9'; expected a branch, tag or commit"):
        find_model(f"{NAME}@v9")
    pushed.gated = True
    with pytest.raises(BundleError, match=r"acme/roads is gated, and its owner has not let you in.*hf auth login"):
        find_model(NAME)
    pushed.gated, pushed.private = False, True
    with pytest.raises(BundleError, match="no repository on the hub that you may see"):
        find_model(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert find_model(NAME).name == "roads"
    pushed.commit({"README.md": b"#"})
    with pytest.raises(BundleError, match=r"holds no bundle: it has no manifest.json"):
        find_model(NAME)
    hub.status = 403
    with pytest.raises(BundleError, match="the hub does not let you see"):
        find_model(NAME)


def test_a_server_that_is_no_hub_is_one_clear_line(hub):
    hub.no_hub = True
    with pytest.raises(BundleError, match="the hub cannot be asked"):
        find_model(NAME)


def test_the_token_goes_to_the_hub_alone_and_is_never_said(pushed, hub, logged_in, caplog):
    pushed.private = True
    caplog.set_level(logging.DEBUG)
    find_model(NAME)
    assert {borne for host, borne in hub.borne if host.startswith("localhost")} == {
        ""
    }  # the object store, another host
    assert {borne for host, borne in hub.borne if host.startswith("127.")} == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("digseg"))


def test_nothing_is_reported_about_this_machine(hub, made, cache):
    code = f"import os; os.environ.pop('HF_HUB_DISABLE_TELEMETRY', None); {FIND}; from huggingface_hub import constants; " \
           "print(constants.HF_HUB_DISABLE_TELEMETRY)"  # fmt: skip
    from hub_server import Repository

    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit(files_of(made))
    assert run_program([sys.executable, "-c", code, NAME], cwd=cache.parent).stdout.split()[-1] == "True"


# ---- broken off


MIB = 1 << 20


def ranges_asked(hub):
    return [given for _, path, given in hub.asked if path.startswith("cdn/")]


def test_a_connection_that_is_cut_is_taken_up_where_it_was(long, hub):
    hub.cut, hub.times = {"weights.data": 21 * MIB}, 1
    assert (find_model(NAME) / "weights.data").read_bytes() == long
    assert ranges_asked(hub) == ["", f"bytes={20 * MIB}-"]


def test_a_download_that_was_killed_halfway_resumes(long, hub, cache):
    """A process is killed in the middle of the weights; the next one asks for the rest, and for no finished file again."""
    hub.cut, hub.hold = {"weights.data": 21 * MIB}, threading.Event()
    process = subprocess.Popen([sys.executable, "-c", FIND, NAME], cwd=ROOT)
    try:
        eventually(lambda: any(path.stat().st_size == 20 * MIB for path in cache.rglob(".weights.data.part")))
    finally:
        process.kill()
        process.wait()
    assert not list(cache.rglob("roads/manifest.json"))
    hub.hold.set()
    hub.cut, hub.hold, before = {}, None, len(hub.asked)
    assert (find_model(NAME) / "weights.data").read_bytes() == long
    assert ranges_asked(hub) == ["", f"bytes={20 * MIB}-"] and before < len(hub.asked)
    assert hub.files_asked().count("note.txt") == 1
    assert not [path for path in cache.rglob("*") if path.name.startswith(".")]


def eventually(holds):
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < LIMIT / 50
        time.sleep(0.02)


def test_a_part_that_was_wrong_from_the_start_is_fetched_anew(pushed, hub, made, cache):
    commit = pushed.branches["main"]
    folder = find_model(NAME)
    draft = folder.parent.parent / f".{commit}"
    draft.mkdir(mode=0o700)
    (draft / ".weights.data.part").write_bytes(b"?" * 1000)
    (draft / ".note.txt.part").write_bytes(b"?" * 1000)  # longer than the whole
    (draft / "precision.json").write_text("[]")
    shutil.rmtree(folder)
    assert files_of(find_model(NAME)) == files_of(made)


def test_a_server_that_knows_no_ranges_sends_all_again(long, hub):
    hub.cut, hub.times, hub.ranges = {"weights.data": 21 * MIB}, 1, False
    assert (find_model(NAME) / "weights.data").read_bytes() == long


def test_a_server_that_dies_for_good_leaves_what_came(long, hub, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.cut = {"weights.data": 21 * MIB}
    with pytest.raises(BundleError, match="the hub cannot be asked for acme/roads"):
        find_model(NAME)
    assert not list(cache.rglob("roads/manifest.json"))
    assert [path.stat().st_size for path in cache.rglob(".weights.data.part")] == [20 * MIB]
    hub.cut = {}
    assert (find_model(NAME) / "weights.data").read_bytes() == long


def test_many_processes_at_once_fetch_it_once(pushed, hub, made):
    started = [
        subprocess.Popen([sys.executable, "-c", FIND, NAME], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    folders = {process.communicate(timeout=LIMIT)[0].strip() for process in started}
    assert len(folders) == 1 and {process.returncode for process in started} == {0}
    assert files_of(Path(folders.pop())) == files_of(made)
    assert sorted(hub.files_asked()) == sorted([MANIFEST, "note.txt", "precision.json", "weights.data"])


# ---- where it is kept


def test_a_cache_that_others_may_write_is_not_used(pushed, hub, cache):
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(OutputError, match="no cache folder of this user's own to keep acme/roads@main"):
        find_model(NAME)


def test_a_full_disk_is_one_line(pushed, hub, cache):
    find_model(NAME)
    (home,) = cache.rglob("hub/*/acme/roads")
    shutil.rmtree(next(home.glob("[0-9a-f]*")))
    shutil.rmtree(home)
    home.write_text("in the way")
    with pytest.raises(OutputError, match="cannot be made"):
        find_model(NAME)


def test_revisions_that_cannot_be_read_are_asked_again(pushed, hub, cache):
    folder = find_model(NAME)
    (record,) = cache.rglob("revisions.json")
    assert json.loads(record.read_text()) == {"main": folder.parent.name}
    for body in ("[", "[]", '{"main": 5}', '{"main": "../../.."}'):
        record.write_text(body)
        assert find_model(NAME) == folder
    record.write_text('{"main": "../../.."}')
    hub.status = 500
    with pytest.raises(BundleError, match="cannot be asked"):
        find_model(NAME)


def test_the_signature_comes_along_and_is_required_as_always(pushed, hub, made):
    pytest.importorskip("model_signing", reason="extra sign")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    from digseg_engine.signatures import Signer, sign, verify

    for name in ("maker", "other"):
        key, pem = ec.generate_private_key(ec.SECP256R1()), form.Encoding.PEM
        private = key.private_bytes(pem, form.PrivateFormat.PKCS8, form.NoEncryption())
        (made.parent / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo)
        (made.parent / f"{name}.pub").write_bytes(public)
    maker, other = (made.parent / f"{name}.pub" for name in ("maker", "other"))
    sign(open_bundle(made), made.parent / "maker.pem", "roads")
    pushed.commit(files_of(made))
    verify(open_bundle(find_model(NAME)), Signer(maker))
    with pytest.raises(BundleError, match="is not a signature of the key"):
        verify(open_bundle(find_model(NAME)), Signer(other))


def test_offline_is_read_as_the_library_reads_it(monkeypatch):
    for value, off in (("1", True), ("true", True), ("ON", True), ("0", False), ("", False), ("no", False)):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        assert client.is_offline() is off
