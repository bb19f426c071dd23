"""Pixels, masks and run lengths of the JavaScript module are those of Python, bit for bit.

One thing is not: Pillow 13 resamples tall pictures down before across; older ones, the C library and this module go across first,
and the rounding between the two steps differs by one of 255 levels here and there.
"""

import json

import numpy as np
import pytest
from web_cases import JS, needs_node, run_node

from digseg_engine.images import fit, unfit_plane
from digseg_engine.runtime.labels import Rules, label
from digseg_engine.runtime.rle import encode

pytestmark = needs_node
SIZES = [(64, 64, 64), (90, 120, 64), (120, 91, 64), (31, 200, 48), (8, 8, 80), (400, 61, 33), (77, 53, 256), (250, 501, 32),
         (127, 129, 65), (9, 18, 9), (11, 22, 11)]  # fmt: skip
WORK = f"""
import {{ readFileSync }} from "node:fs";
import {{ fit, unfit, unfitLabels, checkPicture }} from "{JS.as_uri()}/pictures.js";
import {{ label, borderOf }} from "{JS.as_uri()}/labels.js";
import {{ encode, decode }} from "{JS.as_uri()}/rle.js";
const given = JSON.parse(readFileSync(0, "utf8"));
const floats = (text) => new Float32Array(new Uint8Array(Buffer.from(text, "base64")).buffer);
const sent = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const does = {{
  fit: ({{ pixels, width, height, longer, stride, least }}) => {{
    const picture = checkPicture({{ data: new Uint8Array(Buffer.from(pixels, "base64")), width, height }});
    const found = fit(picture, longer, stride, least);
    return {{ pixels: sent(found.pixels), frame: found.frame }};
  }},
  unfit: ({{ plane, cells, frame }}) => sent(unfit(floats(plane), cells, frame)),
  label: ({{ planes, rivals, cells, frame, threshold, labels }}) => {{
    const masks = {{}}, [height, width] = frame.original;
    const found = label(planes.map(floats), (plane) => unfit(plane, cells, frame), frame.original,
      {{ border: borderOf(threshold), labels }}, rivals.map(floats), (k, mask) => {{ masks[k] = encode(mask, width, height); }});
    const same = Object.values(masks).every((each) => encode(decode(each), width, height).counts === each.counts);
    return {{ map: sent(found.labelMap), answers: found.answers, masks, same }};
  }},
}};
console.log(JSON.stringify(given.map(([what, work]) => does[what](work))));
"""


def done(work):
    ran = run_node("--input-type=module", "-e", WORK, stdin=json.dumps(work))
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def text_of(array):
    import base64

    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def array_of(text, kind):
    import base64

    return np.frombuffer(base64.b64decode(text), kind)


def as_json(frame):
    return {"working": frame.working, "content": frame.content, "original": frame.original}


def test_the_models_pixels():
    rng = np.random.default_rng(1)
    cases = [(rng.integers(0, 256, (h, w, 3), np.uint8), longer, stride, least) for h, w, longer in SIZES
             for stride, least in ((16, (0, 0)), (8, (96, 160)))]  # fmt: skip
    work = [("fit", {"pixels": text_of(rgb), "width": rgb.shape[1], "height": rgb.shape[0], "longer": longer, "stride": stride,
                     "least": least}) for rgb, longer, stride, least in cases]  # fmt: skip
    for (rgb, longer, stride, least), found in zip(cases, done(work)):
        wanted = fit(rgb, longer, stride, least)
        assert tuple(found["frame"]["working"]) == wanted.frame.working
        assert tuple(found["frame"]["content"]) == wanted.frame.content
        apart = np.abs(array_of(found["pixels"], np.float32) - wanted.pixels.ravel()) * 127.5
        assert apart.max() <= (0 if rgb.shape[0] <= rgb.shape[1] else 1.001), rgb.shape


def test_transparency_lies_over_white():
    from PIL import Image

    from digseg_engine.reading import to_rgb

    rgba = np.random.default_rng(2).integers(0, 256, (40, 56, 4), np.uint8)
    rgba[:8, :, 3], rgba[8:16, :, 3] = 0, 255
    (found,) = done([("fit", {"pixels": text_of(rgba), "width": 56, "height": 40, "longer": 56, "stride": 8,
                              "least": (0, 0)})])  # fmt: skip
    wanted = fit(to_rgb(Image.fromarray(rgba)), 56, 8)
    assert np.array_equal(array_of(found["pixels"], np.float32), wanted.pixels.ravel())


def frames(rng):
    for h, w, longer in SIZES:
        canvas = fit(rng.integers(0, 256, (h, w, 3), np.uint8), longer, 16)
        yield canvas.frame, (canvas.frame.working[0] // 2, canvas.frame.working[1] // 2)


def test_planes_at_the_pictures_own_size():
    rng = np.random.default_rng(3)
    cases = [(rng.normal(0, 4, cells).astype(np.float32), frame) for frame, cells in frames(rng)]
    work = [("unfit", {"plane": text_of(p), "cells": p.shape, "frame": as_json(frame)}) for p, frame in cases]
    for (plane, frame), found in zip(cases, done(work)):
        assert np.array_equal(array_of(found, np.float32).reshape(frame.original), unfit_plane(frame, plane))


def blobs(rng, cells, count):
    """Smooth planes, some empty, some within others."""
    rows, columns = np.mgrid[: cells[0], : cells[1]]
    planes = []
    for k in range(count):
        y, x, r = rng.uniform(0, cells[0]), rng.uniform(0, cells[1]), rng.uniform(2, max(cells) / (1 + k % 3))
        planes.append((r - np.hypot(rows - y, columns - x) + rng.normal(0, 0.3, cells)).astype(np.float32))
    planes.append(np.full(cells, -20, np.float32))
    planes.append(planes[0].copy())
    return planes


@pytest.mark.parametrize("rule", ["parts", "strongest", "smallest"])
@pytest.mark.parametrize(("threshold", "rivals"), [(0.5, 0), (0.3, 0), (0.5, 2)])
def test_masks_and_label_maps(rule, threshold, rivals):
    rng = np.random.default_rng(4)
    cases = [(frame, cells, blobs(rng, cells, 6), blobs(rng, cells, rivals)[:rivals]) for frame, cells in frames(rng)]
    work = [("label", {"planes": [text_of(p) for p in planes], "rivals": [text_of(p) for p in others], "cells": cells,
                       "frame": as_json(frame), "threshold": threshold, "labels": rule})
            for frame, cells, planes, others in cases]  # fmt: skip
    shown = 0
    for (frame, _, planes, others), found in zip(cases, done(work)):
        wanted = label(planes, lambda plane, frame=frame: unfit_plane(frame, plane), frame.original, Rules(threshold, rule),
                       others)  # fmt: skip
        assert np.array_equal(array_of(found["map"], np.int32).reshape(frame.original), wanted.label_map)
        assert [each["pixels"] for each in found["answers"]] == wanted.pixels.tolist()
        assert [each["box"] for each in found["answers"]] == list(wanted.boxes)
        assert np.allclose([each["score"] for each in found["answers"]], wanted.scores, atol=1e-6)
        assert found["same"] and all(encode(wanted.masks[int(k)]) == rle for k, rle in found["masks"].items())
        assert sorted(map(int, found["masks"])) == np.flatnonzero(wanted.pixels).tolist()
        shown += len(np.unique(wanted.label_map))
    assert shown > 20
