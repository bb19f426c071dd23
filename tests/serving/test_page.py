"""The page in a real browser: a visit from the first picture to the downloads, by mouse and by keyboard.

Needs playwright (pip) and a Chromium that it finds or that is installed as `chromium`; skips without. With $DIGSEG_TEST_AXE
naming axe-core's `axe.min.js` (npm), its rules are asked too.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from serving_cases import EXAMPLES, serving
from serving_fixtures import *  # noqa: F403

from digseg_engine.runtime.rle import decode

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page's visit needs a browser: pip install playwright"
)
AERIAL = EXAMPLES / "aerial.png"
READY = "#prompt:not([disabled])"
DROP = """([name, kind, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: kind }));
  for (const event of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(event, { bubbles: true, cancelable: true, dataTransfer: carried }));
  }
}"""

BOX = """() => {
  const box = document.getElementById("view").getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        try:
            opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.name == "posix" else [])
        except playwright.Error as error:
            pytest.skip(f"no Chromium to visit the page with: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens an address; afterwards nothing was asked of another host, and nothing was complained about in the console."""
    contexts, hosts, complaints, wanted = [], set(), [], []

    def opened(address, allowed=(), **options):
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        wanted.append(urlsplit(address).netloc)
        page = context.new_page()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error"
                and not any(words in message.text for words in allowed) else None)  # fmt: skip
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert hosts - {""} <= set(wanted) and complaints == []


def drop(page, path, name=None):
    kind = {".png": "image/png", ".tif": "image/tiff"}[path.suffix]
    page.evaluate(DROP, [name or path.name, kind, base64.b64encode(path.read_bytes()).decode()])


def ask(page, prompt):
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    page.wait_for_selector(f'#legend li[data-prompt="{prompt}"]')


def taken(page, press, folder):
    with page.expect_download() as waiting:
        press()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def download(page, kind, folder):
    page.click("#save")
    return taken(page, lambda: page.click(f'[data-kind="{kind}"]'), folder)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_a_visit(server, engine, visit, tmp_path):
    page = visit(server)
    drop(page, AERIAL)
    page.wait_for_selector(READY)
    prompts = ["road", "water", "building", "a zebra"]
    for prompt in prompts:
        ask(page, prompt)
    expected = engine.segment(AERIAL, prompts)
    absent = page.inner_text('#legend li[data-prompt="a zebra"]')
    assert "not there" in absent and f"{100 * expected.presence[3]:.0f} %" in absent
    assert f"score {expected.scores[0]:.2f}" in page.inner_text('#legend li[data-prompt="road"]')

    page.click('#legend [aria-label="Show water"]')
    assert page.get_attribute('#legend [aria-label="Show water"]', "aria-pressed") == "false"
    drawn = np.asarray(Image.open(download(page, "png", tmp_path)).convert("RGB"))
    untouched = np.asarray(Image.open(AERIAL).convert("RGB"))
    changed = (drawn.astype(int) != untouched).any(2)
    assert iou(changed, expected.masks[0] | expected.masks[2]) >= 0.999  # the hidden one is not drawn

    for k, prompt in enumerate(prompts[:3]):
        page.hover(f'#legend li[data-prompt="{prompt}"]')
        path = taken(page, lambda prompt=prompt: page.click(f'[aria-label="Save the mask of {prompt}"]'), tmp_path)
        assert iou(np.asarray(Image.open(path).convert("L")) == 255, expected.masks[k]) >= 0.999
    answers = json.loads(download(page, "json", tmp_path).read_text())
    assert answers["format"] == "digseg.result/1" and answers["picture"] == "aerial.png"
    assert [mask["prompt"] for mask in answers["masks"]] == prompts and [
        mask["label"] for mask in answers["masks"]
    ] == [1, 2, 3, 4]
    for mask, wanted in zip(answers["masks"][:3], expected.masks):
        assert iou(decode(mask["rle"]), wanted) >= 0.999
    coco = json.loads(download(page, "coco", tmp_path).read_text())
    record = expected.as_coco()
    assert [note["prompt"] for note in coco["annotations"]] == prompts[:3] == [note["prompt"] for note in record]
    for note, wanted in zip(coco["annotations"], record):
        assert {name: note[name] for name in ("segmentation", "bbox", "area")} == {
            name: wanted[name] for name in ("segmentation", "bbox", "area")
        }
    from pycocotools import mask as tools

    assert iou(tools.decode(coco["annotations"][0]["segmentation"]).astype(bool), expected.masks[0]) >= 0.999


def test_hovering_reads_the_label(server, engine, visit):
    page = visit(server)
    drop(page, AERIAL)
    page.wait_for_selector(READY)
    ask(page, "water")
    rows, columns = np.nonzero(engine.segment(AERIAL, ["water"]).masks[0])
    middle = len(rows) // 2
    left, top, wide, high = page.evaluate(BOX)
    scale = float(page.inner_text("#fit").split()[0]) / 100
    x = left + (wide - 256 * scale) / 2 + (columns[middle] + 0.5) * scale
    y = top + max(18, (high - 50 - 256 * scale) / 2) + (rows[middle] + 0.5) * scale
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:not([hidden])")
    assert page.inner_text("#tip").startswith("water")
    page.mouse.move(left + 5, top + 5)
    page.wait_for_selector("#tip", state="hidden")


def test_by_keyboard_alone(server, visit):
    page = visit(server)
    page.wait_for_selector(".sample")
    page.focus(".sample")
    page.keyboard.press("Enter")
    page.wait_for_selector(READY)
    page.wait_for_selector("#prompt:focus")
    for prompt in ("road", "water"):
        page.keyboard.type(prompt)
        page.keyboard.press("Enter")
        page.wait_for_selector(f'#legend li[data-prompt="{prompt}"]')
    playwright.expect(page.locator("#said")).to_contain_text("water: ")
    page.keyboard.press("Control+z")
    assert page.locator("#legend li").count() == 1
    page.focus('[aria-label="Show road"]')
    page.keyboard.press("Space")
    assert page.get_attribute('[aria-label="Show road"]', "aria-pressed") == "false"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Show road"
    page.keyboard.press("Control+z")
    assert page.get_attribute('[aria-label="Show road"]', "aria-pressed") == "true"
    page.focus("#view")
    before = page.inner_text("#fit")
    page.keyboard.press("+")
    assert page.inner_text("#fit") != before
    page.keyboard.press("0")
    assert page.inner_text("#fit") == before
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_several_pictures_and_one_that_the_server_let_go(bundle, visit, tmp_path):
    with serving(bundle, "--keep", "1") as (address, _):
        page = visit(address, allowed=["404"])
        for name in ("aerial", "cells"):
            drop(page, EXAMPLES / f"{name}.png")
            page.wait_for_selector(f'#view[aria-label^="{name}"]')
            page.wait_for_selector(READY)
            page.wait_for_selector("#working", state="hidden")
        ask(page, "nucleus")
        page.click('.thumb[aria-label="aerial.png"]')
        assert page.locator("#legend li").count() == 0
        ask(page, "road")
        coco = json.loads(download(page, "coco", tmp_path).read_text())
        assert [image["file_name"] for image in coco["images"]] == ["aerial.png", "cells.png"]
        assert {(note["image_id"], note["prompt"]) for note in coco["annotations"]} == {(1, "road"), (2, "nucleus")}
        page.click('[aria-label="Close aerial.png"]', force=True)
        page.wait_for_selector('#legend li[data-prompt="nucleus"]')


def test_what_the_browser_cannot_read_and_what_nobody_can(server, visit, tmp_path):
    page = visit(server, allowed=["422"])
    Image.open(AERIAL).convert("RGB").save(tmp_path / "a.tif")
    drop(page, tmp_path / "a.tif")
    page.wait_for_selector(READY)
    page.wait_for_selector("#view:not([hidden])")
    broken = tmp_path / "b.png"
    broken.write_bytes(AERIAL.read_bytes()[:3000])
    drop(page, broken)
    page.wait_for_selector("#toast:not([hidden])")
    assert "b.png" in page.inner_text("#toast")
    page.wait_for_selector('#view[aria-label^="a.tif"]')


def test_the_token_is_asked_for_or_comes_with_the_address(bundle, visit):
    with serving(bundle, "--token", "let me in+") as (address, _):
        assert address.endswith("#token=let%20me%20in%2B")
        page = visit(address.partition("#")[0], allowed=["401"])
        page.wait_for_selector("#token-dialog[open]")
        page.fill("#token", "let me in+")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#one-model")).not_to_have_text("")
        page = visit(address)
        playwright.expect(page.locator("#one-model")).not_to_have_text("")
        assert "token" not in page.url


def test_a_fixed_vocabulary_is_shown(folded, visit):
    with serving(folded.full) as (address, _):
        page = visit(address)
        drop(page, AERIAL)
        playwright.expect(page.locator("#legend li")).to_have_count(len(folded.names))
        listed = page.eval_on_selector_all("#legend li", "items => items.map(item => item.dataset.prompt)")
        assert listed == list(folded.names) and f"{len(folded.names)} names" in page.get_attribute(
            "#prompt", "placeholder"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_accessibility_rules(server, visit, scheme, width):
    axe = os.environ.get("DIGSEG_TEST_AXE")
    if not axe:
        pytest.skip("set DIGSEG_TEST_AXE to the axe.min.js of npm's axe-core")
    page = visit(server, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    for stage in ("welcome", "asked"):
        if stage == "asked":
            drop(page, AERIAL)
            page.wait_for_selector(READY)
            for prompt in ("road", "a zebra"):
                ask(page, prompt)
            drop(page, EXAMPLES / "cells.png")
            page.wait_for_selector("#strip:not([hidden])")
            page.wait_for_selector(READY)
            page.click(".thumb >> nth=0")
            page.click("#save")
            page.wait_for_timeout(400)  # until what arrives has arrived: half-transparent text has no contrast
        page.evaluate(Path(axe).read_text())
        found = page.evaluate("() => axe.run()")["violations"]
        assert [(rule["id"], rule["impact"], [node["html"][:120] for node in rule["nodes"]]) for rule in found] == [], (
            stage
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
