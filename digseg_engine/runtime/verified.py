"""`digseg verify`: is a bundle whole, whose is it, and does everything that can run here answer as it should?

Nothing that was remembered is believed: every backend is made and answers the golden sample.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import SIGNATURE
from digseg_engine.errors import UsageError
from digseg_engine.files import write_json
from digseg_engine.runtime.backends import kinds
from digseg_engine.runtime.choice import Row, Task, assess, look
from digseg_engine.runtime.machine import device_key, library_versions
from digseg_engine.runtime.source import Source, open_source
from digseg_engine.signatures import Signer


@dataclass(frozen=True)
class Verified:
    """A bundle that passed its checks. rows: what each backend answered, or why it cannot run here."""

    source: Source
    signed: str
    rows: tuple[Row, ...]

    @property
    def right(self) -> bool:
        """Some backend answers, and every one that answers is right."""
        answered = [row for row in self.rows if row.usable or row.error is not None]
        return bool(answered) and all(row.right for row in answered)

    @property
    def lines(self) -> list[str]:
        """What was found of the files, in words."""
        bundle = self.source.need_bundle("verify")
        count = len(bundle.manifest["files"])
        return [f"{bundle.folder}: complete, {count} files, all hashes match, sha256 {bundle.digest[:16]}", self.signed]

    def to_json(self) -> dict[str, Any]:
        bundle = self.source.need_bundle("verify")
        return {"bundle": bundle.folder.name, "sha256": bundle.digest, "manifest_sha256": bundle.manifest_sha256,
                "signature": self.signed, "right": self.right, "machine": device_key(), "versions": library_versions(),
                "backends": [asdict(row) for row in self.rows]}  # fmt: skip

    def write(self, path: Path) -> None:
        """Everything as JSON. Raises OutputError."""
        write_json(path, self.to_json())


def verify_bundle(folder: Path, signer: Signer | None = None) -> Verified:
    """Check every hash, the signature where a signer is named, and the golden sample on every backend that can run here.

    Raises BundleError for a bundle that is damaged or not so signed, UsageError for a checkpoint.
    """
    source = open_source(folder, signer=signer)
    if source.bundle is None:
        raise UsageError(
            f"{folder} is a checkpoint; expected a bundle, as `digseg-export` writes it; score it with `digseg eval`"
        )
    task = Task(source.usual_side)
    asked = [kind for kind in kinds().values() if kind.needs == "bundle"]
    rows = tuple(assess(kind, look(kind, source), source, task, timed=False) for kind in asked)
    return Verified(source, _signed(source, signer), rows)


def _signed(source: Source, signer: Signer | None) -> str:
    if signer is not None:
        return f"signature: of {signer}, over exactly these files"
    if (source.need_bundle("verify").folder / SIGNATURE).is_file():
        return "signature: not checked; name whose it must be: --key PUBLIC-KEY"
    return "signature: none; the hashes find damage and do not tell who made it"
