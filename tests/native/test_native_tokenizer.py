"""Token numbers of the C library equal those of `tokenizers`, for the bundled vocabulary and for CLIP's own."""

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from native_fixtures import *  # noqa: F403
from odd_strings import strings
from programs import run_program
from tokenizers import Tokenizer

from digseg_engine.bundle import sha256

MERGES = "bpe_simple_vocab_16e6.txt.gz"


def compare(engine, tokenizer, texts):
    tokenizer.no_padding()
    for limit in (4096, 77):
        tokenizer.enable_truncation(limit)
        wanted = tokenizer.encode_batch(texts)
        different = [text for text, row in zip(texts, wanted) if engine.tokenize(text, limit) != row.ids]
        assert not different, f"{len(different)} of {len(texts)} differ, for example {different[:3]!r}"


def test_bundled_vocabulary(native, native_bundle):
    tokenizer = Tokenizer.from_file(str(native_bundle / "tokenizer.json"))
    texts = strings(10_000, 1)
    compare(native, tokenizer, texts)
    assert sum(len(row) == 77 for row in (native.tokenize(text) for text in texts)) > 50  # truncation was met


def test_every_character_alone_and_after_a_letter(native, native_bundle):
    tokenizer = Tokenizer.from_file(str(native_bundle / "tokenizer.json"))
    points = [c for c in range(1, 0x3400) if not 0xD800 <= c < 0xE000]
    compare(native, tokenizer, [f"x{chr(c)}y {chr(c)}" for c in points])


def clip_vocabulary(room: Path) -> Path:
    """CLIP's merges: DIGSEG_CLIP_VOCABULARY, or out of the open_clip_torch package, whose file alone is fetched (1.5 MB)."""
    if given := os.environ.get("DIGSEG_CLIP_VOCABULARY"):
        return Path(given)
    spec = importlib.util.find_spec("open_clip")
    if spec and spec.origin and (here := Path(spec.origin).parent / MERGES).is_file():
        return here
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(room),
        "open_clip_torch==3.3.0",
    ]
    try:
        done = run_program(fetch, limit=120)
    except subprocess.TimeoutExpired:
        pytest.skip("CLIP's vocabulary could not be fetched in two minutes; set DIGSEG_CLIP_VOCABULARY")
    wheels = list(room.glob("open_clip_torch-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        pytest.skip(f"CLIP's vocabulary could not be fetched ({reason}); set DIGSEG_CLIP_VOCABULARY")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"open_clip/{MERGES}", room))


def clip_tokenizer(merges_file: Path, like: dict) -> dict:
    """tokenizer.json of CLIP from its list of merges, in the steps of the bundled one."""
    lines = gzip.decompress(merges_file.read_bytes()).decode().split("\n")
    merges = [line.split() for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ids = {"<|startoftext|>": start, "<|endoftext|>": end}
    return {
        **like,
        "added_tokens": [{**token, "id": ids[token["content"]]} for token in like["added_tokens"]],
        "model": {**like["model"], "vocab": vocabulary, "merges": merges},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", end], "cls": ["<|startoftext|>", start],
                           "trim_offsets": False, "add_prefix_space": False},
    }  # fmt: skip


def test_clips_own_vocabulary(library, native_bundle, tmp_path):
    from native_library import NativeEngine

    merges = clip_vocabulary(tmp_path)
    shutil.copytree(native_bundle, tmp_path / "clip")
    path = tmp_path / "clip" / "tokenizer.json"
    body = clip_tokenizer(merges, json.loads(path.read_text()))
    assert len(body["model"]["vocab"]) == 49408
    path.write_text(json.dumps(body))
    manifest = json.loads((tmp_path / "clip" / "manifest.json").read_text())
    manifest["files"]["tokenizer.json"] = {"size": path.stat().st_size, "sha256": sha256(path)}
    (tmp_path / "clip" / "manifest.json").write_text(json.dumps(manifest))
    with NativeEngine(library, tmp_path / "clip") as engine:
        assert engine.tokenize("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
        compare(engine, Tokenizer.from_file(str(path)), strings(10_000, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"normalizer": {"type": "NFKC"}}, "normalizer 'NFKC'"), ({"model": {"type": "WordPiece"}}, "model 'WordPiece'")],
)
def test_other_tokenizers_are_refused_by_name(library, native_bundle, tmp_path, change, words):
    from native_library import NativeEngine, NativeError

    shutil.copytree(native_bundle, tmp_path / "b")
    path = tmp_path / "b" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["files"]["tokenizer.json"] = {"size": path.stat().st_size, "sha256": sha256(path)}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with NativeEngine(library, tmp_path / "b") as engine, pytest.raises(NativeError, match=f"incompatible: .*{words}"):
        engine.tokenize("red")
