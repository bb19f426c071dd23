"""`digseg-export --target web`: the folder it writes, and visits to its page with a real browser, a real runtime and no server
but one of static files.

Needs npm's onnxruntime-web ($DIGSEG_TEST_NODE_MODULES), and for visits playwright and Chromium; with $DIGSEG_TEST_AXE naming
axe-core's `axe.min.js`, its rules are asked too.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import run_command
from page_visits import *  # noqa: F403
from page_visits import READY, ask, download, drop, faults_of, playwright, whole_visit
from PIL import Image
from web_cases import EXAMPLES, JS, PACKAGES, needs

from digseg_engine import Engine
from digseg_engine.bundle import open_bundle
from digseg_engine.errors import BackendError, UsageError
from digseg_engine.runtime.rle import decode
from digseg_engine.serving.page_files import PAGE
from digseg_export import web
from digseg_export.web import RUNTIME, SiteBuilder

AERIAL = EXAMPLES / "aerial.png"
RUNTIME_FOLDER = Path(PACKAGES) / RUNTIME
pytestmark = needs("onnxruntime-web")
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
TRIED = "import('./api.js').then((api) => api.models()).then((found) => found.models[0])"


class Files(SimpleHTTPRequestHandler):
    headers_of_ours: ClassVar[dict[str, str]] = {}

    def log_message(self, *words):
        pass

    def end_headers(self):
        for name, value in self.headers_of_ours.items():
            self.send_header(name, value)
        super().end_headers()


@contextmanager
def served(folder, headers=None):
    """A folder behind Python's own server of static files: its address."""
    kind = type("Files", (Files,), {"headers_of_ours": headers or {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def made(bundle, folder):
    done = run_command("digseg-export", "--bundle", str(bundle), "--target", "web", "--site", str(folder), "--web-runtime",
                       str(RUNTIME_FOLDER), "--json", cwd=folder.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["page"]


@pytest.fixture(scope="module")
def site(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "site"
    made(bundle, folder)
    return folder


@pytest.fixture(scope="module")
def address(site):
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def engine(bundle):
    with Engine.load(bundle, "onnxruntime", threads=1) as opened:
        yield opened


def test_the_folder(site, bundle):
    listed = json.loads((site / "site.json").read_text())
    found = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert found == {*listed["files"], "site.json"} and listed["format"] == "digseg.web/1"
    assert open_bundle(site / "models" / bundle.name).digest == listed["models"][0]["sha256"]
    for name in ("main.js", "view.js", "style.css", "pictures.js", "save.js", "samples/cells.jpg"):
        assert (site / name).read_bytes() == (PAGE / name).read_bytes()  # one page
    assert (site / "api.js").read_bytes() == (JS / "page" / "api.js").read_bytes()  # another engine
    html = (site / "index.html").read_text()
    assert html.count("Content-Security-Policy") == 1 and "'unsafe-inline'" not in html and "'unsafe-eval'" not in html
    assert not [path for path in site.rglob("*") if path.is_symlink()]


def test_a_visit(address, engine, visit, tmp_path):
    whole_visit(visit(address), AERIAL, engine, tmp_path)


def test_what_runs_was_right_on_the_golden_sample(address, visit):
    page = visit(address)
    model = page.evaluate(TRIED)
    rows = {row["backend"]: row for row in model["tried"]}
    assert "wasm, 1 thread" in model["backend"] and rows["wasm"]["right"] and rows["wasm"]["iou"] >= 0.999
    assert not rows["webgpu"]["right"] and rows["webgpu"]["reason"]


def test_threads_where_the_page_is_isolated(site, visit):
    with served(site, ISOLATED) as address:
        page = visit(address)
        assert page.evaluate("crossOriginIsolated")
        threads = min(4, page.evaluate("navigator.hardwareConcurrency"))
        model = page.evaluate(TRIED)
        assert f"wasm, {threads} thread" in model["backend"] and model["tried"][-1]["right"]


def test_pictures_as_people_have_them(address, engine, visit, tmp_path):
    """Turned, transparent and large ones are read as Python reads them; what this browser cannot read is said."""
    aerial = Image.open(AERIAL).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    aerial.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    aerial.resize((900, 600)).save(tmp_path / "large.png")
    clear = aerial.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(aerial.size))
    clear.save(tmp_path / "clear.png")
    page = visit(address)
    for name in ("turned", "large", "clear"):
        path = tmp_path / f"{name}.png"
        drop(page, path)
        page.wait_for_selector(f'#view[aria-label^="{name}"]')
        page.wait_for_selector(READY)
        page.wait_for_selector("#working", state="hidden")
        wanted = engine.segment(path, ["water"])
        ask(page, "water")
        shown = float(page.inner_text('#legend li[data-prompt="water"] .figure').split()[0])
        assert abs(shown - 100 * wanted.areas[0]) <= 0.15, name
        assert f"{wanted.label_map.shape[1]} × {wanted.label_map.shape[0]}" in page.inner_text("#timing")
    aerial.save(tmp_path / "a.tif")
    drop(page, tmp_path / "a.tif")
    page.wait_for_selector("#toast:not([hidden])")
    assert "a.tif cannot be decoded by this browser" in page.inner_text("#toast")
    page.wait_for_selector('#view[aria-label^="clear"]')


def test_several_pictures_and_one_that_the_worker_let_go(site, visit, tmp_path):
    folder = shutil.copytree(site, tmp_path / "site")
    worker = folder / "worker.js"
    few = worker.read_text().replace("const KEPT = 64;", "const KEPT = 1;")
    assert few != worker.read_text()
    worker.write_text(few)
    with served(folder) as address:
        page = visit(address)
        for name in ("aerial", "cells"):
            drop(page, EXAMPLES / f"{name}.png")
            page.wait_for_selector(f'#view[aria-label^="{name}"]')
            page.wait_for_selector(READY)
            page.wait_for_selector("#working", state="hidden")
        ask(page, "nucleus")
        page.click('.thumb[aria-label="aerial.png"]')
        ask(page, "road")
        coco = json.loads(download(page, "coco", tmp_path).read_text())
        assert {(note["image_id"], note["prompt"]) for note in coco["annotations"]} == {(1, "road"), (2, "nucleus")}
        page.click('[aria-label="Close aerial.png"]', force=True)
        page.wait_for_selector('#legend li[data-prompt="nucleus"]')


def test_a_fixed_vocabulary_is_shown(folded, visit, tmp_path):
    made(folded.full, tmp_path / "site")
    with served(tmp_path / "site") as address:
        page = visit(address)
        drop(page, AERIAL)
        playwright.expect(page.locator("#legend li")).to_have_count(len(folded.names))
        listed = page.eval_on_selector_all("#legend li", "items => items.map(item => item.dataset.prompt)")
        assert listed == list(folded.names)


ANSWERED = """async ([text, prompts]) => {
  const api = await import("./api.js"), bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const { id } = await api.encode(new File([bytes], "p.png", { type: "image/png" }), "p.png");
  return (await api.segment(id, prompts)).masks;
}"""


@pytest.mark.slow
def test_webgpu_on_an_adapter_of_software(with_presence, browser, tmp_path):
    """The graphs through WebGPU, on the CPU: what a GPU's driver makes of them is not looked at here."""
    made(with_presence.bundle, tmp_path / "site")
    prompts, picture = list(with_presence.prompts), with_presence.pictures[0]
    Image.fromarray(picture).save(tmp_path / "p.png")
    flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    own = browser.browser_type.launch(executable_path=program, args=flags)
    try:
        with served(tmp_path / "site") as address:
            page = own.new_page()
            page.goto(address)
            if not page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)"):
                pytest.skip("this Chromium has no adapter of software for WebGPU")
            unasked = page.evaluate(TRIED)
            assert "wasm" in unasked["backend"] and "is software" in unasked["tried"][0]["reason"]
            page.goto(f"{address}?backend=webgpu")
            model = page.evaluate(TRIED)
            assert "webgpu" in model["backend"] and model["tried"][0]["right"] and model["tried"][0]["iou"] >= 0.999
            text = base64.b64encode((tmp_path / "p.png").read_bytes()).decode()
            masks = page.evaluate(ANSWERED, [text, prompts])
    finally:
        own.close()
    with Engine.load(with_presence.bundle, "onnxruntime", threads=1) as ours:
        wanted = ours.segment(picture, prompts)
    for k, mask in enumerate(masks):
        found = np.zeros(wanted.label_map.shape, bool) if mask["rle"] is None else decode(mask["rle"])
        same = (found == wanted.mask(k)).mean()
        assert same >= 0.999 and mask["there"] == wanted.there[k], (k, same)


@pytest.mark.parametrize("damage", ["tampered", "missing", "answers wrongly"])
def test_a_broken_folder_answers_nothing(site, visit, tmp_path, damage, bundle):
    folder = shutil.copytree(site, tmp_path / "site")
    model = folder / "models" / bundle.name
    allowed: list[str] = []
    if damage == "tampered":
        body = bytearray((model / "mask_decoder.data").read_bytes())
        body[100] ^= 1
        (model / "mask_decoder.data").write_bytes(body)
        said = "mask_decoder.data is damaged: SHA-256"
    elif damage == "missing":
        (model / "presence.data").unlink()
        said, allowed = "presence.data cannot be fetched: the server answered 404", ["404"]
    else:  # what was hashed is not what answered: a runtime that computes wrongly
        sessions = folder / "digseg" / "sessions.js"
        text = sessions.read_text()
        wrong = text.replace("const { logits } = await backend.run(", "const { logits } = await reversed(backend, ")
        sessions.write_text(wrong + "\nconst reversed = async (backend, ...given) => {\n"
                            "  const found = await backend.run(...given);\n"
                            "  found.logits.data.reverse();\n  return found;\n};\n")  # fmt: skip
        assert wrong != text
        said = "no backend can run here and is right"
    with served(folder) as address:
        page = visit(address, allowed=allowed)
        page.wait_for_selector("#toast:not([hidden])")
        assert said in page.inner_text("#toast")
        drop(page, AERIAL)
        page.wait_for_selector("#working", state="hidden")
        assert page.locator("#prompt").is_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_accessibility_rules(address, visit, scheme, width):
    axe = os.environ.get("DIGSEG_TEST_AXE")
    if not axe:
        pytest.skip("set DIGSEG_TEST_AXE to the axe.min.js of npm's axe-core")
    page = visit(address, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert faults_of(page, axe, [AERIAL, EXAMPLES / "cells.png"]) == []


# ---- the command


def test_a_runtime_that_is_another_one_is_refused(bundle, tmp_path):
    other = shutil.copytree(
        RUNTIME_FOLDER / "dist", tmp_path / "other" / "dist", ignore=shutil.ignore_patterns("*.map", "*.js")
    )
    script = other / "ort.wasm.min.mjs"
    script.write_text(script.read_text() + "\n")
    with pytest.raises(BackendError, match=r"ort\.wasm\.min\.mjs is not that of onnxruntime-web 1\.30\.0"):
        SiteBuilder(bundle, tmp_path / "site", tmp_path / "other").run(lambda step: None)
    script.unlink()
    with pytest.raises(BackendError, match=r"holds no ort\.wasm\.min\.mjs"):
        SiteBuilder(bundle, tmp_path / "site", tmp_path / "other").run(lambda step: None)
    assert not (tmp_path / "site").exists()
    with pytest.raises(UsageError, match="it has no folder dist"):
        SiteBuilder(bundle, tmp_path / "site", tmp_path)


def test_an_older_page_is_replaced_and_nothing_else(site, bundle, tmp_path):
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    made(bundle, folder)
    (folder / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"it also holds 'mine\.txt'"):
        SiteBuilder(bundle, folder, RUNTIME_FOLDER)


def test_what_npm_packs_is_what_is_taken(bundle, tmp_path, monkeypatch):
    """The archive's road, with npm packing the installed package in place of fetching it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")

    def packed(command, cwd, **options):
        return subprocess.run([npm, "pack", str(RUNTIME_FOLDER), "--ignore-scripts", "--silent"], cwd=cwd, **options)

    monkeypatch.setattr(web, "run", packed)
    done = SiteBuilder(bundle, tmp_path / "site", None).run(lambda step: None)
    assert done.bytes > done.loaded > 20_000_000 and (tmp_path / "site" / "ort" / "ort.wasm.min.mjs").is_file()
