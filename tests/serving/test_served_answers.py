"""Answers over HTTP are those of Python, in every form; what cannot be answered is told in one shape."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from serving_cases import EXAMPLES, client_of
from serving_fixtures import *  # noqa: F403

from digseg_engine import Engine
from digseg_engine.runtime.rle import decode
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.polygons import polygons

AERIAL = EXAMPLES / "aerial.png"
PROMPTS = ["road", "water", "some trees", "a zebra"]


def as_file(path=AERIAL):
    return {"image": (path.name, path.read_bytes(), "image/png")}


def filled(shape, found):
    """Polygons drawn by the definition: a pixel is inside where its centre is, a hole's pixels are not."""
    mask = np.zeros(shape, bool)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for rings in found:
        inside = np.zeros(shape, bool)
        for ring in rings:
            points = np.array(ring)
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0)):
                y, x = rows + 0.5, columns + 0.5
                crosses = (y0 > y) != (y1 > y)
                with np.errstate(divide="ignore", invalid="ignore"):
                    inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        mask |= inside
    return mask


def told(answer, status, code):
    body = answer.json()
    assert answer.status_code == body["error"]["status"] == status, body
    assert body["error"]["code"] == code and set(body) == {"error"} and len(body["error"]["message"]) > 10
    return body["error"]["message"]


@pytest.mark.parametrize("output", ["rle", "png", "polygons", "none"])
def test_masks_are_pythons(client, engine, output):
    expected = engine.segment(AERIAL, PROMPTS)
    form = {"prompts": PROMPTS, "output": output}
    answer = client.post("/v1/segment", files=as_file(), data=form).json()
    record = expected.as_dict()
    for name in ("format", "width", "height", "model", "working_size", "threshold", "label_rule", "against"):
        assert answer[name] == record[name]
    assert answer["picture"] == "aerial.png"
    for k, (got, wanted) in enumerate(zip(answer["masks"], record["masks"])):
        assert {name: got[name] for name in wanted} == wanted
        if output == "none" or not wanted["pixels"]:
            assert got.get(output) is None
            continue
        mask = {
            "rle": decode,
            "png": lambda text: np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) == 255,
            "polygons": lambda rings: filled((256, 256), rings),
        }[output](got[output])
        assert np.array_equal(mask, expected.masks[k])
    assert [mask["there"] for mask in answer["masks"]] == [True, True, True, False]


def test_a_picture_is_encoded_once_and_asked_again(client, engine):
    made = client.post("/v1/encode", files=as_file()).json()
    assert made["width"] == made["height"] == 256 and made["keeps"] == Limits().encoding_seconds
    for prompts in (["road"], ["water", "field"]):
        answer = client.post("/v1/segment", json={"encoding": made["id"], "prompts": prompts}).json()
        assert "encode" not in answer["seconds"] or answer["seconds"]["encode"] == 0
        for mask, wanted in zip(answer["masks"], engine.segment(AERIAL, prompts).masks):
            assert np.array_equal(decode(mask["rle"]), wanted)
    seen = client.get(f"/v1/encodings/{made['id']}/picture")
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(seen.content))), np.asarray(Image.open(AERIAL).convert("RGB"))
    )
    assert client.delete(f"/v1/encodings/{made['id']}").status_code == 204
    told(client.post("/v1/segment", json={"encoding": made["id"], "prompts": ["road"]}), 404, "unknown_encoding")


def test_json_and_forms_say_the_same(client):
    body = {"prompts": ["road"], "threshold": 0.7, "against": ["water"], "all_prompts": True, "size": 128}
    text = base64.b64encode(AERIAL.read_bytes()).decode()
    as_json = client.post("/v1/segment", json={**body, "image": text, "name": "aerial.png"}).json()
    as_form = client.post("/v1/segment", files=as_file(), data={**body, "all_prompts": "true"}).json()
    as_url = client.post(
        "/v1/segment", json={**body, "image": f"data:image/png;base64,{text}", "name": "a/aerial.png"}
    ).json()
    for each in (as_json, as_form, as_url):
        each.pop("seconds")
    assert as_json == as_form == as_url and as_json["working_size"] == 128 and as_json["threshold"] == 0.7


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"no picture at all, but long enough to be looked at", 422, "cannot_be_used"),
        (b"", 422, "cannot_be_used"),
        (AERIAL.read_bytes()[:5000], 422, "cannot_be_used"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "cannot_be_used"),
    ],
)
def test_what_is_no_picture(client, body, status, code):
    for path in ("/v1/encode", "/v1/segment"):
        message = told(
            client.post(path, files={"image": ("x.png", body)}, data={"prompts": "road"} if "seg" in path else {}),
            status,
            code,
        )
        assert "x.png" in message and "\n" not in message


def test_a_bomb_is_refused_by_its_head(client):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    before = client.service.metrics.registry.get_sample_value("digseg_pictures_total")
    assert "400.0 million" in told(
        client.post("/v1/encode", files={"image": ("b.png", bomb.getvalue())}), 413, "too_large"
    )
    assert client.service.metrics.registry.get_sample_value("digseg_pictures_total") == before


def test_a_thousand_prompts(client):
    prompts = [f"thing {k}" for k in range(1000)]
    for request in (
        {"json": {"encoding": "x", "prompts": prompts}},
        {"files": as_file(), "data": {"prompts": prompts}},
    ):
        assert "1000 prompts" in told(client.post("/v1/segment", **request), 422, "too_many_prompts")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"json": {"prompts": ["road"]}}, 422, "malformed"),
        ({"json": {"image": "!!!", "prompts": ["road"]}}, 422, "malformed"),
        ({"json": {"encoding": "x", "prompts": "road"}}, 422, "malformed"),
        ({"json": {"encoding": "x", "prompts": [], "colour": 1}}, 422, "malformed"),
        ({"json": {"encoding": "x", "prompts": [""]}}, 422, "malformed"),
        ({"json": {"encoding": "x", "prompts": ["road"], "threshold": 2}}, 422, "malformed"),
        ({"json": {"encoding": "x", "prompts": ["road"], "output": "svg"}}, 422, "malformed"),
        ({"json": {"encoding": "nowhere", "prompts": ["road"]}}, 404, "unknown_encoding"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "malformed"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422, "malformed"),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 422, "malformed"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unknown_type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "malformed"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "malformed"),
        ({"data": {"image": "text", "prompts": "road"}, "files": {"other": b"x"}}, 422, "malformed"),
        ({"files": {"image": b"x"}, "data": {"size": ["1", "2"]}}, 422, "malformed"),
        ({"files": as_file(), "data": {"prompts": "road", "model": "another"}}, 404, "unknown_model"),
        ({"files": as_file(), "data": {"prompts": "road", "size": "4096"}}, 413, "too_large"),
        ({"files": as_file(), "data": {"prompts": "ro\x00ad"}}, 422, "cannot_be_used"),
        ({"files": as_file(), "data": {"prompts": "   "}}, 422, "cannot_be_used"),
        ({"files": as_file()}, 422, "cannot_be_used"),
    ],
)  # fmt: skip
def test_questions_that_cannot_be_answered(client, request_, status, code):
    told(client.post("/v1/segment", **request_), status, code)


def test_paths_and_methods_have_the_same_shape(client):
    told(client.get("/v1/nothing"), 404, "not_found")
    told(client.get("/v1/segment"), 405, "method_not_allowed")
    told(client.get("/v1/encodings/nothing/picture"), 404, "unknown_encoding")


def test_a_folded_bundle_answers_its_list(folded):
    with (
        Engine.load(folded.full, "onnxruntime") as full,
        Engine.load(folded.labels_only, "onnxruntime") as labels,
        client_of({"full": full, "labels": labels}) as client,
    ):
        listed = {model["name"]: model["vocabulary"] for model in client.get("/v1/models").json()["models"]}
        assert listed == {"full": list(folded.names), "labels": list(folded.names)}
        for name, opened in (("full", full), ("labels", labels)):
            expected = opened.segment(AERIAL)
            made = client.post("/v1/encode", files=as_file(), data={"model": name}).json()
            answer = client.post("/v1/segment", json={"encoding": made["id"]}).json()
            assert [mask["prompt"] for mask in answer["masks"]] == list(folded.names)
            assert any(mask["rle"] for mask in answer["masks"])
            for k, mask in enumerate(answer["masks"]):
                if mask["rle"]:
                    assert np.array_equal(decode(mask["rle"]), expected.mask(k))
            unknown = client.post("/v1/segment", json={"encoding": made["id"], "prompts": ["unheard of"]})
            told(unknown, 422, "cannot_be_used")
        other = client.post("/v1/segment", json={"encoding": made["id"], "model": "full"})
        assert "labels" in told(other, 422, "malformed")


def test_polygons_are_the_mask():
    """Holes, pixels that touch at a corner, the picture's edges."""
    picture = Image.new("1", (40, 30))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 20, 20), fill=1)
    pen.rectangle((5, 5, 12, 12), fill=0)
    pen.point((8, 8), fill=1)
    pen.point((21, 21), fill=1)
    pen.ellipse((25, 15, 39, 29), fill=1)
    mask = np.asarray(picture)
    found = polygons(mask)
    assert np.array_equal(filled(mask.shape, found), mask)
    assert sum(len(rings) - 1 for rings in found) == 1
    assert polygons(np.zeros((5, 5), bool)) == []
    noise = np.random.default_rng(0).random((33, 21)) > 0.5
    assert np.array_equal(filled(noise.shape, polygons(noise)), noise)


def test_the_described_api_is_the_api(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/v1/encode", "/v1/segment", "/v1/models", "/v1/encodings/{identifier}/picture",
                                       "/v1/encodings/{identifier}", "/healthz", "/readyz", "/metrics"}  # fmt: skip
    for path in ("/v1/encode", "/v1/segment"):
        asked = described["paths"][path]["post"]
        assert set(asked["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        assert {"413", "422", "429", "503"} <= set(asked["responses"])
    assert client.get("/docs").status_code == 404  # it would load its scripts from elsewhere
    json.dumps(described)
