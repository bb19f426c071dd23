"""The page in a real browser: a visit from the first picture to the downloads, by mouse and by keyboard.

Needs playwright (pip) and a Chromium that it finds or that is installed as `chromium`; skips without. With $DIGSEG_TEST_AXE
naming axe-core's `axe.min.js` (npm), its rules are asked too.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from page_visits import *  # noqa: F403
from page_visits import READY, ask, download, drop, faults_of, playwright, whole_visit
from PIL import Image
from serving_cases import EXAMPLES, serving
from serving_fixtures import *  # noqa: F403

AERIAL = EXAMPLES / "aerial.png"
BOX = """() => {
  const box = document.getElementById("view").getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
}"""


def test_a_visit(server, engine, visit, tmp_path):
    whole_visit(visit(server), AERIAL, engine, tmp_path)


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
        page.wait_for_load_state("networkidle")  # the examples' pictures too, before the server goes


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
    assert faults_of(page, axe, [AERIAL, EXAMPLES / "cells.png"]) == []
