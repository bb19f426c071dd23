"""`digseg-export --target web` up to the page itself (tests/web visits that): what it takes, writes, replaces and refuses."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from digseg_engine.bundle import open_bundle
from digseg_engine.errors import BackendError, BundleError, MissingPackageError, OutputError, UsageError
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.serving.page_files import MODULE, PAGE
from digseg_export import web
from digseg_export.web import SiteBuilder, default_site, page_files


def quiet(step):
    """No progress."""


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A folder as npm installs it, of a release whose files are a few bytes."""
    folder = tmp_path / "runtime"
    (folder / "dist").mkdir(parents=True)
    bodies = {name: name.encode() for name in web.RUNTIME_FILES}
    for name, body in bodies.items():
        (folder / "dist" / name).write_bytes(body)
    monkeypatch.setattr(web, "RUNTIME_FILES", {name: hashlib.sha256(body).hexdigest() for name, body in bodies.items()})
    return folder


def test_every_file_is_listed_with_its_hash_and_the_bundle_opens(runtime, tmp_path):
    done = SiteBuilder(SHIPPED_BUNDLE, tmp_path / "site", runtime).run(quiet)
    listed = json.loads((done.folder / "site.json").read_text())
    found = {path.relative_to(done.folder).as_posix(): path for path in done.folder.rglob("*") if path.is_file()}
    assert set(found) == {*listed["files"], "site.json"}
    for name, entry in listed["files"].items():
        body = found[name].read_bytes()
        assert entry == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    model = listed["models"][0]
    opened = open_bundle(done.folder / "models" / model["name"])
    assert opened.digest == model["sha256"] == open_bundle(SHIPPED_BUNDLE).digest
    assert model["bytes"] == sum(path.stat().st_size for path in opened.folder.iterdir())
    assert done.bytes == sum(entry["size"] for entry in listed["files"].values())
    left = sum(len(name) for name in web.RUNTIME_FILES if "webgpu" in name or "asyncify" in name)
    assert done.bytes - done.loaded == left > 0


def test_a_runtime_that_is_another_one_is_refused(runtime, tmp_path):
    file = runtime / "dist" / "ort.wasm.min.mjs"
    file.write_bytes(b"another")
    with pytest.raises(BackendError, match=r"ort\.wasm\.min\.mjs is not that of onnxruntime-web"):
        SiteBuilder(SHIPPED_BUNDLE, tmp_path / "site", runtime).run(quiet)
    file.unlink()
    with pytest.raises(BackendError, match=r"holds no ort\.wasm\.min\.mjs"):
        SiteBuilder(SHIPPED_BUNDLE, tmp_path / "site", runtime).run(quiet)
    with pytest.raises(UsageError, match="it has no folder dist"):
        SiteBuilder(SHIPPED_BUNDLE, tmp_path / "site", tmp_path)
    assert not (tmp_path / "site").exists()


def test_an_older_page_is_replaced_and_nothing_else(runtime, tmp_path):
    folder = tmp_path / "site"
    for _ in range(2):
        SiteBuilder(SHIPPED_BUNDLE, folder, runtime).run(quiet)
    (folder / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"it also holds 'mine\.txt'"):
        SiteBuilder(SHIPPED_BUNDLE, folder, runtime)
    (folder / "site.json").write_text("{}")
    with pytest.raises(UsageError, match=r"its site\.json is missing or not ours"):
        SiteBuilder(SHIPPED_BUNDLE, folder, runtime)


def test_a_bundle_that_is_none_and_one_that_is_damaged(runtime, tmp_path):
    import shutil

    with pytest.raises(BundleError, match="not found"):
        SiteBuilder(tmp_path / "none", tmp_path / "site", runtime).run(quiet)
    damaged = shutil.copytree(SHIPPED_BUNDLE, tmp_path / "b")
    (damaged / "presence.data").write_bytes(b"x")
    with pytest.raises(BundleError, match="damaged"):
        SiteBuilder(damaged, tmp_path / "site", runtime).run(quiet)
    assert not (tmp_path / "site").exists()


def test_where_a_page_goes_when_nothing_is_said(tmp_path):
    assert default_site(tmp_path / "mine-fp16") == tmp_path / "mine-fp16-web"
    assert str(default_site(SHIPPED_BUNDLE)) == f"{SHIPPED_BUNDLE.name}-web"  # never inside the package


def test_without_npm_or_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    with pytest.raises(
        MissingPackageError, match=r"npm, which is not installed; install Node.js 20 or newer.*--web-runtime"
    ):
        SiteBuilder(SHIPPED_BUNDLE, tmp_path / "site", None)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(web.shutil, "which", lambda name: str(npm))
    with pytest.raises(BackendError, match=r"npm could not fetch onnxruntime-web 1\.30\.0: npm error code ENOTFOUND"):
        SiteBuilder(SHIPPED_BUNDLE, tmp_path / "site", None).run(lambda step: None)
    assert not (tmp_path / "site").exists()


def test_both_engines_of_the_page_have_the_same_names():
    names = [set(re.findall(r"^export (?:async )?(?:function|const) (\w+)", (place / "api.js").read_text(), re.MULTILINE))
             for place in (PAGE, MODULE / "page")]  # fmt: skip
    assert names[0] == names[1] and {"encode", "segment", "models", "forget"} <= names[0]


def test_the_page_has_one_policy_and_nothing_in_line(monkeypatch):
    assert b"wasm-unsafe-eval" in page_files()["index.html"]
    assert page_files()["api.js"] == (MODULE / "page" / "api.js").read_bytes() != (PAGE / "api.js").read_bytes()
    html = page_files()["index.html"].decode()
    assert html.count("Content-Security-Policy") == 1 and html.index("Content-Security-Policy") < html.index("<script")
    assert not re.search(r"<script(?![^>]*src=)|<style| style=| on\w+=", html)
    monkeypatch.setattr(web, "HEAD", "<meta nothing>")
    with pytest.raises(OutputError, match="to put its policy behind"):
        page_files()
