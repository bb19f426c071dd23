"""File names from prompts and pictures: unique for any input, on every file system, and the same every time."""

import random
import unicodedata
from pathlib import Path

from digseg_engine.names import SLUG_BYTES, STEM_BYTES, key, mask_names, stems

PIECES = ("class", "Class", "CLASS", "2", "3", "-", " ", "--", "class 2", "a", "b", "é", "e\u0301", "ß", "ss", "straße", "İ",
          "ı", "道路", "дорога", "🙂", "/", "..", "\n", "\0", '"', "CON", "हिन्दी", "x" * 70, "道" * 70,
          "ﬁ", "fi", "\ud800")  # fmt: skip


def random_prompts(rng):
    """Lists made to clash: few pieces, glued in many ways."""
    pieces = rng.sample(PIECES, rng.randint(1, 6))
    return tuple("".join(rng.choices(pieces, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 12)))


def on_disk(name):
    """The names by which a file system could know the file: cased or not, letters composed or not."""
    return {unicodedata.normalize(form, name).casefold() for form in ("NFC", "NFD", "NFKC")}


def test_prompts_never_share_a_file():
    assert mask_names(("class 2", "class")) == ["class-2", "class"]
    assert mask_names(("class", "class 2", "class")) == ["class", "class-2", "class-3"]
    assert mask_names(("a b-2", "a b", "A.B")) == ["a-b-2", "a-b", "a-b-3"]
    for seed in range(3000):
        prompts = random_prompts(random.Random(seed))
        names = mask_names(prompts)
        assert names == mask_names(prompts) and len(names) == len(prompts)
        known = [on_disk(name) for name in names]
        assert all(not a & b for i, a in enumerate(known) for b in known[:i]), prompts
        for name in names:
            assert name and len(name.encode()) <= SLUG_BYTES + 5 and not set(name) & set("/\\\0\n .:"), (prompts, name)


def test_letters_of_every_script_stay():
    assert mask_names(("дорога", "道路", "हिन्दी", "e\u0301te\u0301")) == ["дорога", "道路", "हिन्दी", "été"]


STEMS = ("x", "X", "x.png", "a-x", "é", "e\u0301", "n" * 245)


def random_paths(rng):
    """Different paths with few stems, suffixes and folders."""
    paths = {
        Path(*rng.choices(("a", "b", "A", "a-b"), k=rng.randint(0, 3)))
        / f"{rng.choice(STEMS)}.{rng.choice(('png', 'jpg', 'PNG'))}"
        for _ in range(rng.randint(1, 14))
    }
    return rng.sample(sorted(paths), len(paths))


def test_pictures_never_share_their_files_whatever_their_order():
    assert stems([Path("one.png"), Path("two.jpg")]) == ["one", "two"]
    assert stems([Path("a/x.png"), Path("b/x.png"), Path("a/x.jpg")]) == ["a-x.png", "b-x.png", "a-x.jpg"]
    for seed in range(2000):
        rng = random.Random(seed)
        paths = random_paths(rng)
        names = stems(paths)
        assert len({key(name) for name in names}) == len(paths), paths
        assert all(len(name.encode()) <= STEM_BYTES + 12 and "/" not in name for name in names)
        turned = stems(paths[::-1])[::-1]
        assert turned == names, paths


def test_the_same_path_twice_gets_a_number():
    assert stems([Path("x.png"), Path("x.png")]) == stems([Path("x.png"), Path("x.png")])
    assert len(set(stems([Path("x.png"), Path("x.png"), Path("y.png")]))) == 3
