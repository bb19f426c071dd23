"""Overlays: colours as in the legend on any picture, type that can be read, letters of every script."""

import colorsys

import numpy as np
import pytest
from PIL import Image
from test_results import planes, segmented

from digseg_engine.runtime import fonts
from digseg_engine.runtime.fonts import font_for, missing, readable
from digseg_engine.runtime.overlay import LONGEST, draw, outline, with_legend
from digseg_engine.runtime.saving import PALETTE


@pytest.mark.parametrize("ground", [(255, 0, 0), (0, 0, 255), (0, 255, 0), (120, 70, 20), (0, 0, 0), (255, 255, 255)])
def test_tints_have_the_hue_of_the_legend_on_any_ground(ground):
    rgb = np.full((60, 400, 3), ground, np.uint8)
    mask = np.zeros((60, 400), np.bool_)
    mask[20:40, 20:200] = True
    for k, colour in enumerate(PALETTE):
        sheet = np.asarray(draw(rgb, [(k, mask)], [("x", "")] * (k + 1)))
        inside, edge = sheet[30, 100], sheet[20, 100]
        assert tuple(edge) == colour and tuple(sheet[10, 10]) == ground
        hue, _, saturation = colorsys.rgb_to_hsv(*(inside / 255))
        wanted = colorsys.rgb_to_hsv(*(np.array(colour) / 255))
        assert abs(hue - wanted[0]) < 0.02 and saturation > 0.3 * wanted[1]


def test_small_masks_are_not_hidden_by_large_ones():
    overlay = np.asarray(segmented().overlay())
    times = overlay.shape[1] // 128
    nucleus = overlay[26 * times, 26 * times].astype(int)
    assert nucleus[0] > nucleus[2]  # red, although the stronger cell is blue


def test_outlines_lie_inside_the_mask():
    rng = np.random.default_rng(0)
    for width in (1, 2, 5):
        mask = rng.random((40, 50)) < 0.9
        edge = outline(mask, width)
        assert not (edge & ~mask).any()
    square = np.zeros((20, 20), np.bool_)
    square[4:16, 4:16] = True
    assert outline(square, 2).sum() == 12 * 12 - 8 * 8
    assert outline(np.ones((1, 5), np.bool_), 3).shape == (1, 5)


def legend_row(width):
    """Height of one legend row under a picture of this width."""
    picture = Image.new("RGB", (width, 50))
    one, two = (with_legend(picture, [("road", "")] * n).height for n in (1, 2))
    return two - one


def test_the_legend_grows_with_the_picture():
    assert legend_row(400) == legend_row(600) == 24
    assert legend_row(4000) > 4 * legend_row(600)


def test_a_saved_overlay_is_reduced_and_the_whole_one_is_not():
    result = segmented(shape=(20, LONGEST * 2))
    assert result.overlay().width == LONGEST * 2 and result.overlay(LONGEST).width == LONGEST
    assert segmented().overlay(4000).width == segmented().overlay().width


def test_every_prompt_is_one_line_of_readable_letters():
    plain = segmented(planes(), ["road fine", "b", "c"]).overlay()
    broken = segmented(planes(), ["road\nfine", "b", "c"]).overlay()
    assert np.array_equal(np.asarray(plain), np.asarray(broken))
    for prompt in ("дорога", "道路", "🙂", "\ud800", "a\0b", "été"):
        font = font_for(prompt, 20)
        shown = readable(prompt, font)
        assert not missing(frozenset(shown), font), prompt
        segmented(planes(), [prompt, "b", "c"]).overlay()


def test_letters_that_no_font_has_are_shown_as_code_points(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    fonts._best.cache_clear()
    font = font_for("道路 🙂 a", 20)
    assert readable("道路 🙂 a", font) == "\\u9053\\u8def \\U0001f642 a"
    fonts._best.cache_clear()


def test_a_font_with_the_letters_is_found(tmp_path, monkeypatch):
    found = [path for path in fonts._installed() if "dejavusans." in path.lower()]
    if not found:
        pytest.skip("no font with Cyrillic letters on this machine")
    text = "дорога"
    assert readable(text, font_for(text, 20)) == text
    monkeypatch.setenv("DIGSEG_FONT", str(tmp_path / "nothing.ttf"))
    fonts._installed.cache_clear(), fonts._best.cache_clear()
    assert fonts._installed()[0] == str(tmp_path / "nothing.ttf") and readable(text, font_for(text, 20)) == text
    fonts._installed.cache_clear(), fonts._best.cache_clear()
