"""Put the demo's overlays side by side: python scripts/picture.py out/a.overlay.png out/b.overlay.png -o docs/overlay.png"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    pictures = [Image.open(path).convert("RGB") for path in arguments.pictures]
    gap, height = 12, max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + gap * (len(pictures) - 1), height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    sheet.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
