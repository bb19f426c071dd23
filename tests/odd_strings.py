"""Strings that tokenizers disagree on: words, odd pieces, random characters of all planes, with random spacing."""

import random
import unicodedata

TEXT = """a the red blue circle road building water trees nucleus don't we'll it's I'm THE Straße naïve coöperate 12 3.14"""
WORDS = TEXT.split()
ODD_TEXT = """😀 👩‍👩‍👧‍👦 🇩🇪 🏳️‍🌈 𝒳 é ﬁ Å İ ǅ ß Σς 한국어 日本 العربية हिन्दी ไทย
½ ² ٣ 'S ''s -- … «» </w> ꜩ Ω K <|startoftext|> <|endoftext|>
<|endoftext e\u0301 A\u030a \u1112\u1161\u11ab \u0323\u0307 s\u0323\u0307 \u0e33 \u0344 \u200b \ufeff \x07"""
ODD = ODD_TEXT.replace("\n", " ").split(" ")
ODD += ["\u00a0", "\u2003", "\n"]


def strings(count: int, seed: int) -> list[str]:
    """Words, odd pieces and random code points from all planes, with random spacing."""
    source = random.Random(seed)
    # characters that this Python's Unicode knows: releases of the tokenizers library differ on later ones
    points = [c for c in range(1, 0x30000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Cn"]
    out = []
    for i in range(count):
        pieces = []
        for _ in range(source.randint(1, 8)):
            kind = source.random()
            if kind < 0.45:
                pieces.append(source.choice(WORDS))
            elif kind < 0.7:
                pieces.append(source.choice(ODD))
            elif kind < 0.85:
                pieces.append("".join(chr(source.randint(33, 126)) for _ in range(source.randint(1, 9))))
            else:
                pieces.append("".join(chr(source.choice(points)) for _ in range(source.randint(1, 4))))
        out.append(source.choice((" ", "", "  ", "\t", "\u3000")).join(pieces) * (1 if i % 50 else 12))
    return out
