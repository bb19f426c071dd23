"""`digseg push`: a bundle that was verified here a moment ago, with its model card, to a hub, as one commit."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import LARGEST_MANIFEST, MANIFEST, SIGNATURE, Bundle
from digseg_engine.console import note, telling
from digseg_engine.errors import BundleError, InputError, UsageError, VerificationError
from digseg_engine.hub.client import api, asking, fetch, look_up
from digseg_engine.hub.ids import MAIN, HubId, hub_id
from digseg_engine.named import find_model
from digseg_engine.runtime.verified import Verified, verify_bundle
from digseg_engine.sharing.card import CARD, EXAMPLE, MARK, card_of, check_card, read_speed
from digseg_engine.sharing.example import Example, example_of


@dataclass(frozen=True)
class Push:
    """What is asked for; see the options of the command."""

    bundle: Path
    repository: str
    revision: str | None = None
    private: bool = False
    message: str | None = None
    bench: Path | None = None
    dry_run: bool = False

    def target(self) -> HubId:
        """Raises UsageError for what is no name of a repository."""
        found = hub_id(self.repository if self.revision is None else f"{self.repository}@{self.revision}")
        if found is None or "@" in self.repository:
            raise UsageError(f"{self.repository!r:.100} at {self.revision or MAIN!r:.100} is no place on a hub; expected "
                             "owner/name, and --revision BRANCH for another branch than main")  # fmt: skip
        return found


def push(asked: Push) -> int:
    """Exit code: 0 when it is published; nothing is published unless every backend here that can run it is right.

    Raises UsageError for another name than owner/name, InputError for another report than one about this bundle, BundleError for
    a bundle that is damaged, VerificationError for one that answers wrongly, OutputError for what the hub refuses.
    """
    repo = asked.target()
    client = None if asked.dry_run else api("digseg push")
    with telling():
        found = verify_bundle(find_model(asked.bundle))
        for line in found.lines:
            note("digseg", line)
        bundle = _right(found)
        speed = None if asked.bench is None else read_speed(_json(asked.bench), found.source.digest)
        example = example_of(found.source)
    card = check_card(bundle, lambda: card_of(bundle, repo, example.prompts, speed, bool(example.png)))
    if asked.dry_run:
        print(card)
        return 0
    note("digseg", f"uploading {bundle.folder} to {repo}")
    commit = _upload(client, repo, bundle, card, example, asked)
    print(f"{repo.repository}@{commit}")
    note(
        "digseg",
        f"pushed; try it: digseg segment PHOTO {'' if bundle.vocabulary else '-p PROMPT '}-b {repo.repository}@{commit}",
    )
    return 0


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"--bench {path} cannot be read: {error}; expected what `digseg bench BUNDLE --json` writes"
        ) from error


def _right(found: Verified) -> Bundle:
    if not found.right:
        said = (
            "; ".join(f"{row.backend}: {row.why}" for row in found.rows if not row.right) or "no backend can run here"
        )
        raise VerificationError(f"not pushed, because it was not found right here: {said}; see `digseg verify`")
    return found.source.need_bundle("digseg push")


def _upload(client: Any, repo: HubId, bundle: Bundle, card: str, example: Example, asked: Push) -> str:
    """One commit: every listed file, the manifest, the signature, card and picture; what an earlier bundle listed and this one
    does not is taken away. Returns the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with asking(repo, write=True):
        client.create_repo(repo.repository, private=asked.private or None, exist_ok=True)
        if repo.revision != MAIN:
            client.create_branch(repo.repository, branch=repo.revision, exist_ok=True)
    before, kept, old = _before(repo)
    names = [MANIFEST, *bundle.manifest["files"], *([SIGNATURE] if (bundle.folder / SIGNATURE).is_file() else [])]
    bodies: dict[str, Any] = {name: bundle.folder / name for name in names}
    if kept:
        note("digseg", f"{repo} has a {CARD} that was not written by `digseg push`; it is kept")
    else:
        bodies[CARD] = card.encode()
    if example.png:
        bodies[EXAMPLE] = example.png
    gone = sorted(old & before - set(bodies))
    operations: list[Any] = [CommitOperationAdd(name, body) for name, body in bodies.items()]
    operations += [CommitOperationDelete(name) for name in gone]
    message = asked.message or f"Push {bundle.folder.name}, {bundle.digest[:16]}"
    with asking(repo, write=True):
        done = client.create_commit(repo.repository, operations, revision=repo.revision, commit_message=message)
        return str(done.oid)


def _before(repo: HubId) -> tuple[set[str], bool, set[str]]:
    """The files that are there; is there a card of somebody's own; the files of the bundle that is there."""
    found = look_up(repo)
    body = _read(repo, found.commit, MANIFEST, found.sizes.get(MANIFEST, 0))
    card = _read(repo, found.commit, CARD, found.sizes.get(CARD, 0))
    try:
        listed = set(json.loads(body or b"{}").get("files") or ())
    except (ValueError, AttributeError, TypeError, RecursionError):
        listed = set()
    old = {str(name) for name in listed} | {SIGNATURE, EXAMPLE} if listed else set()
    return set(found.sizes), bool(card.strip()) and MARK.encode() not in card, old


def _read(repo: HubId, commit: str, name: str, size: int) -> bytes:
    """A small file of a hub; b"" where there is none or it cannot be had."""
    if not 0 < size <= LARGEST_MANIFEST:
        return b""
    with tempfile.TemporaryDirectory() as room:
        part = Path(room) / "file"
        try:
            fetch(repo, commit, name, size, part)
        except BundleError:
            return b""
        return part.read_bytes()
