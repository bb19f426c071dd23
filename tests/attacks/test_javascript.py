"""Hostile bundles before the JavaScript module: what Python refuses it refuses, in one line and before a runtime sees it."""

import base64
import json
import shutil
from pathlib import Path

import hostile
import onnx
import pytest
import test_graphs
from hostile import DATA, GRAPH, SHIPPED_BUNDLE, kept_outside, pointing
from programs import run_program

JS = Path(__file__).resolve().parent.parent.parent / "digseg_engine" / "js"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed: apt install nodejs, 20 or newer")
SIZE = (SHIPPED_BUNDLE / DATA).stat().st_size
CHECK = f"""
import {{ readFileSync }} from "node:fs";
import {{ checkWeights }} from "{JS.as_uri()}/graph_files.js";
import {{ safetensors }} from "{JS.as_uri()}/bundle.js";
const {{ what, bodies, data, size }} = JSON.parse(readFileSync(0, "utf8"));
const graph = (body) => checkWeights(body, "g.onnx", data, size), golden = (body) => safetensors(body, "golden", ["image"]);
const does = {{ graph, golden }};
console.log(JSON.stringify(bodies.map((text) => {{
  try {{
    does[what](new Uint8Array(Buffer.from(text, "base64")));
    return null;
  }} catch (error) {{
    return `${{error.name}}: ${{error.message}}`;
  }}
}})));
"""


def told(what, bodies, data=DATA, size=SIZE):
    """What is said about each body; None for one that is taken."""
    texts = [base64.b64encode(body).decode() for body in bodies]
    request = json.dumps({"what": what, "bodies": texts, "data": data, "size": size})
    done = run_program([NODE, "--input-type=module", "-e", CHECK], stdin=request)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def changed(change):
    model = onnx.load(SHIPPED_BUNDLE / GRAPH, load_external_data=False)
    change(model)
    return model.SerializeToString()


def all_refused(said, words=""):
    assert said and all(each is not None and each.startswith("BundleError: ") for each in said), said
    assert all("\n" not in each and len(each) < 500 and words in each for each in said), said


def test_the_shipped_graphs_are_taken():
    for graph in ("text_encoder", "image_encoder", "presence", "mask_decoder"):
        size = (SHIPPED_BUNDLE / f"{graph}.data").stat().st_size
        bodies = [(SHIPPED_BUNDLE / f"{graph}{end}").read_bytes() for end in (".onnx", ".fp32.onnx")]
        assert told("graph", bodies, f"{graph}.data", size) == [None, None]


def test_weights_in_any_other_place():
    all_refused(told("graph", [changed(pointing(location=place)) for place in test_graphs.PLACES.values()]), "lies in")


def test_bytes_that_are_not_there():
    all_refused(told("graph", [changed(pointing(**values)) for values in test_graphs.NUMBERS.values()]), "the tensor")


def test_wherever_it_is_hidden():
    all_refused(told("graph", [changed(change) for change in test_graphs.HIDDEN]), "the tensor")


def test_tensors_on_the_same_bytes_and_words_said_twice():
    def again(model):
        model.graph.initializer.add().CopyFrom(kept_outside(model)[0])
        model.graph.initializer[-1].name = "again"

    def twice(model):
        kept_outside(model)[0].external_data.add(key="location", value=DATA)

    said = told("graph", [changed(again), changed(twice)])
    all_refused(said)
    assert "share bytes" in said[0] and "twice" in said[1]


def test_what_is_no_graph_or_has_no_end():
    all_refused(told("graph", [*test_graphs.NO_GRAPHS, test_graphs.nested(2000)]), "is refused")
    body = (SHIPPED_BUNDLE / GRAPH).read_bytes()
    cuts = told("graph", [body[:end] for end in range(1, len(body), 97)])
    assert (
        all(each is None or each.startswith("BundleError: ") for each in cuts)
        and sum(each is not None for each in cuts) > 100
    )
    all_refused(told("graph", [body], size=None), "expected no other file")


def test_golden_samples_with_hostile_headers():
    all_refused(told("golden", hostile.HEADERS.values()), "holds no golden sample that can be read")
