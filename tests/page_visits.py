"""A real browser and what visits of the page share: dropping, asking, downloading, accessibility, and no complaint meanwhile."""

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

from digseg_engine.runtime.rle import decode

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page's visit needs a browser: pip install playwright"
)
__all__ = ["browser", "visit"]
READY = "#prompt:not([disabled])"
DROP = """([name, kind, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: kind }));
  for (const event of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(event, { bubbles: true, cancelable: true, dataTransfer: carried }));
  }
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
    assert complaints == [], complaints
    assert hosts - {""} <= set(wanted)


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


def whole_visit(page, picture, engine, folder):
    """Drop a picture, ask four things, hide one, take every download away; all of it as Python says it."""
    drop(page, picture)
    page.wait_for_selector(READY)
    prompts = ["road", "water", "building", "a zebra"]
    for prompt in prompts:
        ask(page, prompt)
    expected = engine.segment(picture, prompts)
    absent = page.inner_text('#legend li[data-prompt="a zebra"]')
    assert "not there" in absent and f"{100 * expected.presence[3]:.0f} %" in absent
    assert f"score {expected.scores[0]:.2f}" in page.inner_text('#legend li[data-prompt="road"]')

    page.click('#legend [aria-label="Show water"]')
    assert page.get_attribute('#legend [aria-label="Show water"]', "aria-pressed") == "false"
    drawn = np.asarray(Image.open(download(page, "png", folder)).convert("RGB"))
    untouched = np.asarray(Image.open(picture).convert("RGB"))
    changed = (drawn.astype(int) != untouched).any(2)
    assert iou(changed, expected.masks[0] | expected.masks[2]) >= 0.999  # the hidden one is not drawn

    for k, prompt in enumerate(prompts[:3]):
        page.hover(f'#legend li[data-prompt="{prompt}"]')
        path = taken(page, lambda prompt=prompt: page.click(f'[aria-label="Save the mask of {prompt}"]'), folder)
        assert iou(np.asarray(Image.open(path).convert("L")) == 255, expected.masks[k]) >= 0.999
    answers = json.loads(download(page, "json", folder).read_text())
    assert answers["format"] == "digseg.result/1" and answers["picture"] == picture.name
    assert [mask["prompt"] for mask in answers["masks"]] == prompts and [
        mask["label"] for mask in answers["masks"]
    ] == [1, 2, 3, 4]
    for mask, wanted in zip(answers["masks"][:3], expected.masks):
        assert iou(decode(mask["rle"]), wanted) >= 0.999
    coco = json.loads(download(page, "coco", folder).read_text())
    record = expected.as_coco()
    assert [note["prompt"] for note in coco["annotations"]] == prompts[:3] == [note["prompt"] for note in record]
    for note, wanted in zip(coco["annotations"], record):
        assert {name: note[name] for name in ("segmentation", "bbox", "area")} == {
            name: wanted[name] for name in ("segmentation", "bbox", "area")
        }
    from pycocotools import mask as tools

    assert iou(tools.decode(coco["annotations"][0]["segmentation"]).astype(bool), expected.masks[0]) >= 0.999


def faults_of(page, axe, pictures):
    """What axe-core's rules find at the welcome, and with answers, two pictures and a menu: stage, rule, impact, elements."""
    found = []
    for stage in ("welcome", "asked"):
        if stage == "asked":
            drop(page, pictures[0])
            page.wait_for_selector(READY)
            for prompt in ("road", "a zebra"):
                ask(page, prompt)
            drop(page, pictures[1])
            page.wait_for_selector("#strip:not([hidden])")
            page.wait_for_selector(READY)
            page.click(".thumb >> nth=0")
            page.click("#save")
            page.wait_for_timeout(400)  # until what arrives has arrived: half-transparent text has no contrast
        page.evaluate(Path(axe).read_text())
        for rule in page.evaluate("() => axe.run()")["violations"]:
            found.append((stage, rule["id"], rule["impact"], [node["html"][:120] for node in rule["nodes"]]))
        if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
            found.append((stage, "wider than the window", "", []))
    return found
