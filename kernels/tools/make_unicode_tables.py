"""Write src/unicode_tables.inc: what the `tokenizers` library does to every code point, found by asking it.

The C++ tokenizer must agree with `tokenizers`, whose Unicode version differs from Python's own; so letters, numbers, spaces,
lower case and canonical composition are measured on the library rather than taken from a Unicode database.
Usage: python kernels/tools/make_unicode_tables.py
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from tokenizers import Regex
from tokenizers.normalizers import NFC, NFD, Lowercase
from tokenizers.pre_tokenizers import Split

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)
TARGET = Path(__file__).resolve().parent.parent / "src" / "unicode_tables.inc"


def matching(pattern: str) -> list[int]:
    """Code points that a regular expression class matches."""
    split = Split(Regex(pattern), "removed")
    return [c for c in POINTS if not split.pre_tokenize_str(chr(c))]


def ranges(points: list[int]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for c in points:
        if out and out[-1][1] == c - 1:
            out[-1] = (out[-1][0], c)
        else:
            out.append((c, c))
    return out


def classes(nfd: NFD) -> dict[int, int]:
    """Combining classes up to order: a mark's rank among marks, found from which pairs the library swaps."""
    low, high = "\u0334", "\u0345"  # classes 1 and 240, the smallest and the largest in use
    marks = []
    for c in POINTS:
        plain = nfd.normalize_str(chr(c))
        if plain != chr(c) or c == 0x334:
            continue
        if (
            nfd.normalize_str("a" + plain + low) != "a" + plain + low
            or nfd.normalize_str("a" + high + plain) != "a" + high + plain
        ):
            marks.append(c)
    marks += [c for c in (0x334, 0x345) if c not in marks]
    ones = [c for c in marks if nfd.normalize_str("a" + chr(c) + low) == "a" + chr(c) + low]
    levels: list[int] = []  # one representative per class, rising
    rank: dict[int, int] = {}

    def before(a: int, b: int) -> bool:
        return nfd.normalize_str("a" + chr(b) + chr(a)) != "a" + chr(b) + chr(a)

    groups: list[list[int]] = []
    for c in marks:
        lower, upper = 0, len(levels)
        while lower < upper:
            middle = (lower + upper) // 2
            if before(levels[middle], c):
                lower = middle + 1
            else:
                upper = middle
        if lower < len(levels) and not before(c, levels[lower]):
            groups[lower].append(c)
        else:
            levels.insert(lower, c)
            groups.insert(lower, [c])
    for level, group in enumerate(groups, 1):
        rank.update(dict.fromkeys(group, level))
    if not ones:
        raise SystemExit("no mark of class 1 was found: the probe is wrong")
    return rank


def rows(name: str, kind: str, values: list[str]) -> str:
    lines, line = [], ""
    for value in values:
        if len(line) + len(value) > 116:
            lines.append(line.rstrip())
            line = ""
        line += value + ", "
    return f"const {kind} {name}[] = {{\n" + "\n".join([*lines, line.rstrip()]) + "\n};\n\n"


def main() -> None:
    nfc, nfd, lower = NFC(), NFD(), Lowercase()
    spelled = {c: nfd.normalize_str(chr(c)) for c in POINTS if c not in HANGUL}
    decomposed = {c: text for c, text in spelled.items() if text != chr(c)}
    pairs = {}
    for c, text in decomposed.items():
        if nfc.normalize_str(chr(c)) == chr(c) and len(text) > 1:
            first = nfc.normalize_str(text[:-1])
            if len(first) != 1:
                raise SystemExit(f"U+{c:04X} is not composed of a pair")
            pairs[(ord(first), ord(text[-1]))] = c
    lowered = {c: lower.normalize_str(chr(c)) for c in POINTS}
    marks = classes(nfd)
    body = f"// Made by tools/make_unicode_tables.py from tokenizers {version('tokenizers')}; do not edit.\n\n"
    for name, pattern in (("kLetters", r"\p{L}"), ("kNumbers", r"\p{N}"), ("kSpaces", r"\s")):
        body += rows(name, "Range", [f"{{{a}, {b}}}" for a, b in ranges(matching(pattern))])
    body += rows(
        "kLower",
        "Mapping",
        [f"{{{c}, {{{', '.join(str(ord(x)) for x in t)}}}}}" for c, t in lowered.items() if t != chr(c)],
    )
    body += rows(
        "kDecomposed", "Mapping", [f"{{{c}, {{{', '.join(str(ord(x)) for x in t)}}}}}" for c, t in decomposed.items()]
    )
    body += rows("kComposed", "Pair", [f"{{{a}, {b}, {c}}}" for (a, b), c in sorted(pairs.items())])
    body += rows("kMarks", "Mark", [f"{{{c}, {level}}}" for c, level in sorted(marks.items())])
    TARGET.write_text(body.rstrip() + "\n")
    print(
        f"{TARGET}: {len(decomposed)} decompositions, {len(pairs)} compositions, {len(marks)} marks, {len(body)} bytes"
    )


if __name__ == "__main__":
    main()
