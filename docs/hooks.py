"""Links from the documentation to files of the repository: plain paths on the site, an error when the file is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """`[digseg.h](../kernels/include/digseg/digseg.h)` -> the path in code type. Raises ValueError for a dead link."""

    def path_of(match: re.Match[str]) -> str:
        if not (ROOT / match[2]).exists():
            raise ValueError(f"{page.file.src_path}: {match[2]} is not in the repository; correct the link")
        return f"`{match[2]}`"

    return OUTSIDE.sub(path_of, markdown)
