"""The tests of the tests: with one guard taken away, its attack succeeds. So it is that guard which refuses it."""

import json
import shutil
import zlib

import hostile
import numpy as np
import pytest
from PIL import Image
from test_hostile_datasets import labelled  # noqa: F401

from digseg_engine import bundle, reading
from digseg_engine.bundle import MANIFEST, open_bundle
from digseg_engine.contract import MASK_DECODER
from digseg_engine.data import layouts
from digseg_engine.data.datasets import open_dataset
from digseg_engine.errors import BundleError, InputError
from digseg_engine.images import read_image
from digseg_engine.runtime import private_cache
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.engine_store import EngineKey, engine_path, load_plan, store
from digseg_engine.runtime.source import open_source
from digseg_engine.text import PromptTokenizer


def nothing(*_given, **_named):
    """A guard that guards nothing."""


def test_without_the_look_into_graphs_one_file_is_many_tensors(tmp_path, monkeypatch):
    def change(model):
        for number in range(3):
            model.graph.initializer.add().CopyFrom(hostile.kept_outside(model)[0])
            model.graph.initializer[-1].name = f"again{number}"

    made = hostile.with_graph(tmp_path, change)
    with pytest.raises(BundleError):
        OrtBackend(open_source(made))
    monkeypatch.setattr(bundle, "check_weights", nothing)
    OrtBackend(open_source(made))


def test_without_the_look_around_a_planted_file_stays(tmp_path, monkeypatch):
    made = hostile.copy_of_shipped(tmp_path)
    (made / "lib.so").write_bytes(b"code")
    monkeypatch.setattr(bundle, "_check_others", nothing)
    assert open_bundle(made)


def test_without_the_hash_of_what_is_parsed_an_exchanged_file_is_parsed(tmp_path, monkeypatch):
    source = open_source(hostile.copy_of_shipped(tmp_path))
    path = tmp_path / "bundle" / "tokenizer.json"
    body = json.loads(path.read_text())
    body["added_tokens"] = []
    path.write_text(json.dumps(body))
    with pytest.raises(BundleError, match="has changed"):
        source.tokenizer()
    monkeypatch.setattr(bundle.Bundle, "read", lambda self, name: self.file(name).read_bytes())
    assert isinstance(source.tokenizer(), PromptTokenizer)


def test_without_the_hashes_a_damaged_file_is_opened(tmp_path, monkeypatch):
    made = hostile.copy_of_shipped(tmp_path)
    body = bytearray((made / "mask_decoder.data").read_bytes())
    body[0] ^= 1
    (made / "mask_decoder.data").write_bytes(body)
    monkeypatch.setattr(bundle, "_check_file", nothing)
    assert open_bundle(made)


def test_without_the_strict_reader_a_key_stands_twice(tmp_path, monkeypatch):
    made = hostile.copy_of_shipped(tmp_path)
    text = (made / MANIFEST).read_text().rstrip().removesuffix("}")
    (made / MANIFEST).write_text(f'{text}, "created": "twice"}}')
    with pytest.raises(BundleError, match="twice"):
        open_bundle(made)
    monkeypatch.setattr(bundle, "_once", dict)
    assert open_bundle(made).manifest["created"] == "twice"


def test_without_the_look_at_owners_a_planted_plan_is_run(tmp_path, monkeypatch):
    key = EngineKey("g", "10.3", "12.6", "GPU", "8.7", "p", "fp16")
    path = store(MASK_DECODER, b"plan", key, {})
    planted = shutil.copytree(path.parent, tmp_path / "planted")
    shutil.rmtree(path.parent)
    path.parent.symlink_to(planted)
    monkeypatch.setattr(private_cache, "_mine", nothing)
    assert load_plan(engine_path(key, MASK_DECODER), key) == b"plan"


def test_without_the_limit_a_picture_takes_what_it_likes(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(hostile.png(4096, 4096, zlib.compress(bytes(4096 * 4097), 9)))
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", "1e6")
    with pytest.raises(InputError, match="million pixels"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(reading, "check_size", nothing)
    assert read_image(tmp_path / "a.png").nbytes == 3 << 24


def test_without_the_look_at_lists_a_private_picture_is_read(labelled, monkeypatch):  # noqa: F811
    private = labelled.parent / "images" / "private.png"
    Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(private)
    Image.fromarray(np.ones((16, 16), np.uint8)).save(labelled.parent / "masks" / "private.png")
    (labelled / "train.txt").write_text("../../images/private\n")
    monkeypatch.setattr(layouts, "_leads_out", nothing)
    (record,) = open_dataset(labelled, split="all").records
    assert record.name == "a"
    found = layouts.list_records(layouts.Part("images/{}", "masks/{}", "train.txt"), labelled)
    assert (read_image(found[0].image) == 9).all()
