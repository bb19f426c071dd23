"""Token numbers of the JavaScript module equal those of `tokenizers`."""

import json
import re
import unicodedata

import pytest
from odd_strings import strings
from tokenizers import Tokenizer
from web_cases import JS, ROOT, needs_node, run_node

from digseg_engine.errors import InputError
from digseg_engine.text import PromptTokenizer

pytestmark = needs_node
QUOTED = re.compile(r"""(['"]).*?\1(\.\.\.)?""")
FILE = ROOT / "digseg_engine" / "assets" / "digseg-tiny-fp16" / "tokenizer.json"
ENCODE = f"""
import {{ readFileSync }} from "node:fs";
import {{ Tokenizer, checkPrompts }} from "{JS.as_uri()}/tokenizer.js";
const {{ file, texts, what }} = JSON.parse(readFileSync(0, "utf8"));
const tokenizer = new Tokenizer(JSON.parse(readFileSync(file, "utf8")));
const tried = (task) => {{ try {{ return task(); }} catch (error) {{ return `${{error.name}}: ${{error.message}}`; }} }};
const does = {{ ids: (text) => tokenizer.ids(checkPrompts([text])[0]), encode: (text) => tokenizer.encode(text) }};
console.log(JSON.stringify(texts.map((text) => tried(() => does[what](text)))));
"""


def told(texts, what="encode", file=FILE):
    done = run_node("--input-type=module", "-e", ENCODE,
                    stdin=json.dumps({"file": str(file), "texts": texts, "what": what}))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compare(texts):
    tokenizer = Tokenizer.from_file(str(FILE))
    wanted = [row.ids for row in tokenizer.encode_batch(texts)]
    different = [text for text, got, want in zip(texts, told(texts), wanted) if got != want]
    assert not different, f"{len(different)} of {len(texts)} differ, for example {different[:3]!r}"
    return wanted


@pytest.mark.slow
def test_ten_thousand_strings():
    rows = compare(strings(10_000, 3))
    assert sum(len(row) > 77 for row in rows) > 50  # over-long ones were met


@pytest.mark.slow
def test_every_character_alone_and_after_a_letter():
    points = [c for c in range(1, 0x3400) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Cn"]
    compare([f"x{chr(c)}y {chr(c)}" for c in points])


def test_letters_are_lowered_one_by_one():
    compare(["ΟΔΟΣ", "Σ", "ΑΣ b", "İSTANBUL", "ǅ", "STRASSE ẞ", "İ", "\u2160 Ⅷ"])  # no final sigma, as in Rust


def test_long_words_are_cheap():
    compare(["ab" * 20_000, "é" * 20_000, "😀" * 5_000])


def test_what_cannot_be_asked_is_refused_in_the_same_words():
    ours = PromptTokenizer.load(FILE)
    for text in ["", "  \t\u3000", "a\x07b", "a" * 4097, "red " * 80, "a\x85b", "a\x1cb", "\ufeff"]:
        try:
            wanted = ours.encode([text])[0][0].tolist()
        except InputError as error:
            wanted = str(error)
        (got,) = told([text], "ids")
        if isinstance(wanted, str):
            kind, _, words = got.partition(": ")
            assert kind == "InputError" and QUOTED.sub("", words) == QUOTED.sub("", wanted)
        else:
            assert got == wanted[: len(got)]


def test_another_tokenizer_is_refused(tmp_path):
    body = json.loads(FILE.read_text())
    body["normalizer"] = {"type": "NFKC"}
    (tmp_path / "t.json").write_text(json.dumps(body))
    done = run_node("--input-type=module", "-e", ENCODE,
                    stdin=json.dumps({"file": str(tmp_path / "t.json"), "texts": ["a"]}))  # fmt: skip
    assert done.returncode == 1 and 'uses the normalizer "NFKC"' in done.stderr
