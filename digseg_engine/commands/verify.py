"""`digseg verify`: whether a bundle is whole, whose it is, and whether it answers rightly here."""

from __future__ import annotations

from pathlib import Path

from digseg_engine.commands.declare import Command, Option
from digseg_engine.errors import UsageError


def run(
    bundle: Path, key: Path | None, identity: str | None, issuer: str | None, trust: Path | None, data: str | None,
    layout: str | None, split: str | None, count: int, report: Path | None,
) -> int:  # fmt: skip
    from rich.console import Console

    from digseg_engine.commands.doctor import answers_table
    from digseg_engine.console import telling
    from digseg_engine.folders import check_output_file
    from digseg_engine.named import find_model
    from digseg_engine.runtime.verified import verify_bundle
    from digseg_engine.signatures import Signer

    if (identity is None) != (issuer is None):
        raise UsageError(
            "--identity and --issuer belong together: who signed, and who vouched for them; add the other one"
        )
    if report is not None:
        check_output_file(report)
    if data is not None:
        _check_scoring(data)
    signer = Signer(key, identity, issuer, trust) if key is not None or identity is not None else None
    with telling():
        bundle = find_model(bundle)
        found = verify_bundle(bundle, signer)
    for line in found.lines:
        print(line)
    Console().print(answers_table(found.rows))
    if report is not None:
        found.write(report)
    if data is not None:
        _score(bundle, data, layout, split, count)
    return 0 if found.right else 1


def _check_scoring(data: str) -> None:
    """Raises what `digseg eval` raises before its work."""
    from digseg_engine.commands.train import check_data
    from digseg_engine.extras import require

    require("--data", "train")
    check_data(data)


def _score(bundle: Path, data: str, layout: str | None, split: str | None, count: int) -> None:
    """As `digseg eval` does."""
    from digseg_engine.evaluation.score import Request, score_model

    score_model(Request(bundle, data, count, layout=layout, split=split))


COMMAND = Command(
    name="verify",
    summary="Check a bundle: every hash, its signature, and the golden sample on every backend that can run here.",
    run=run,
    options=(
        Option("bundle", "bundle to check, or OWNER/NAME@REVISION on a hub", kind=Path, needed=True),
        Option("--key", "public key (PEM) whose signature it must carry", kind=Path, metavar="FILE", not_with=("--identity",)),
        Option("--identity", "identity that must have signed it, by Sigstore", metavar="NAME"),
        Option("--issuer", "who vouched for the identity, as https://accounts.google.com", metavar="URL",
               only_with=("--identity",)),
        Option("--trust-config", "Sigstore's roots of trust, where they are not the public ones", kind=Path, metavar="FILE",
               into="trust", only_with=("--identity",)),
        Option("--data", "also score it on scenes or labelled pictures, as `digseg eval` does", metavar="DATA"),
        Option("--layout", "layout of the folder", shown="recognised", metavar="NAME", only_with=("--data",)),
        Option("--split", "split of the folder", shown="its validation split", metavar="NAME", only_with=("--data",)),
        Option("--count", "at most so many pictures", kind=int, default=100, at_least=1, only_with=("--data",)),
        Option("--json", "also write what was found", kind=Path, metavar="FILE", into="report"),
    ),
    examples=("digseg verify mine-fp16", "digseg verify mine-fp16 --key maker.pub --data mydata"),
)  # fmt: skip
