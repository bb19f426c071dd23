"""What is asked of a hub, through `huggingface_hub` (extra `[hub]`), with its failures in our words.

The server's address ($HF_ENDPOINT), the token and offline mode ($HF_HUB_OFFLINE) are that library's own business. What a hub
answers is not believed: a commit must be one, sizes are bounds, and the caller compares hashes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from urllib.parse import quote

from digseg_engine.errors import BundleError, DigsegError, OutputError
from digseg_engine.extras import require
from digseg_engine.hub.ids import COMMIT, HubId

PATIENCE = 10.0  # seconds for an answer about a revision
LOG_IN = "`hf auth login`, or $HF_TOKEN"
_log = logging.getLogger("digseg_engine")


class UnreachableError(BundleError):
    """A hub does not answer, or says that it cannot just now: what was fetched before may be used."""


class TooLongError(BundleError):
    """A hub sends more than a file has; what came was thrown away."""


@dataclass(frozen=True)
class Revision:
    """What a revision is today: its commit, and the size in bytes of every file of it, 0 where that is not said."""

    commit: str
    sizes: dict[str, int]


def library(what: str) -> Any:
    """The client. Raises MissingPackageError. It reports which other libraries are installed to the hub unless told otherwise;
    it is told so here, where the user has not set the variable."""
    require(what, "hub")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
    import huggingface_hub

    return huggingface_hub


def is_offline() -> bool:
    """Did the user say that no hub may be asked? As the library reads it, which need not be installed."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def server() -> str | None:
    """The address of the hub where it is not the library's own, as it is set now: what is kept is kept apart by it."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None


def api(what: str) -> Any:
    """The client of that server. Raises MissingPackageError."""
    hub = library(what)
    return hub.HfApi(endpoint=server())


def look_up(repo: HubId) -> Revision:
    """Ask what a revision is. Raises BundleError where there is none for this user, UnreachableError where nobody answers."""
    client = api(f"{repo}, which is no folder here and would be taken from a hub,")
    with asking(repo):
        about = client.model_info(repo.repository, revision=repo.revision, files_metadata=True, timeout=PATIENCE)
        commit, files = str(about.sha), about.siblings or []
        sizes = {str(file.rfilename): size if type(size := file.size) is int and size > 0 else 0 for file in files}
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(repo.revision) and commit != repo.revision):
        raise BundleError(f"the hub says that {repo} is commit {commit!r:.60}, which cannot be; check $HF_ENDPOINT")
    return Revision(commit, sizes)


def fetch(repo: HubId, commit: str, name: str, size: int, part: Path) -> None:
    """Bring a file of `size` bytes to `part`, going on behind what is there already. What was fetched stays when it fails.

    Raises UnreachableError when the connection breaks for good, TooLongError for more than `size` bytes, BundleError when the hub
    refuses.
    """
    hub = library("fetching from a hub")
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with asking(repo), part.open("ab") as file, _bars():
        have = file.tell()
        url = f"{server()}/{repo.repository}/resolve/{commit}/{quote(name)}"
        if server() is None:
            url = hub.hf_hub_url(repo.repository, name, revision=commit)
        http_get(url, cast(BinaryIO, _Bounded(file, size, f"{repo}: {name}")), resume_size=have, headers=build_hf_headers(),
                 expected_size=size, displayed_filename=name)  # fmt: skip


class _Bounded:
    """A file opened for appending that takes no more than so many bytes in all, whatever is sent."""

    def __init__(self, file: IO[bytes], size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name

    def write(self, chunk: bytes) -> int:
        if self._file.tell() + len(chunk) > self._size:
            self._file.truncate(0)
            raise TooLongError(f"{self._name} is longer than the {self._size} bytes that its manifest says; it was not kept; ask "
                               "whoever made it")  # fmt: skip
        return self._file.write(chunk)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def truncate(self) -> int:
        return self._file.truncate()


@contextmanager
def _bars() -> Iterator[None]:
    """The library's progress bars on a terminal, where what we are at is to be said too."""
    from huggingface_hub import constants, utils

    named = "huggingface_hub.http_get"
    if _log.isEnabledFor(logging.INFO) or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    utils.disable_progress_bars(named)
    try:
        yield
    finally:
        utils.enable_progress_bars(named)


@contextmanager
def asking(repo: HubId, write: bool = False) -> Iterator[None]:
    """Whatever a hub or the way to it does wrong, in one line. Raises BundleError, for `write` OutputError, and
    UnreachableError."""
    from huggingface_hub.errors import HfHubHTTPError

    of_http = HfHubHTTPError.__bases__[0]  # every failure of the HTTP client that this release of the library stands on
    failed: tuple[Any, ...] = (of_http, OSError, ValueError, KeyError, TypeError)
    try:
        yield
    except DigsegError:
        raise
    except failed as error:
        if isinstance(error, OSError) and error.filename is not None:  # of this machine's disk
            raise OutputError(f"cannot write {error.filename}: {error.strerror}; free the place, or let $DIGSEG_CACHE name "
                              "another") from error  # fmt: skip
        raise _in_our_words(repo, error, write) from error


def _in_our_words(repo: HubId, error: Exception, write: bool) -> DigsegError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalTokenNotFoundError,
        RevisionNotFoundError,
    )

    kind: type[DigsegError] = OutputError if write else BundleError
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return kind(f"{repo.repository} is gated, and its owner has not let you in; ask for access on its page, and log in: "
                    f"{LOG_IN}")  # fmt: skip
    if isinstance(error, RevisionNotFoundError):
        return kind(f"{repo.repository} has no revision {repo.revision!r}; expected a branch, tag or commit of it")
    if isinstance(error, EntryNotFoundError):
        return kind(f"{repo} lacks a file that it lists; ask whoever made it to push it again")
    if isinstance(error, LocalTokenNotFoundError) or (write and status in (401, 403)):
        return kind(f"the hub does not let you write to {repo.repository}; log in with a token that may ({LOG_IN}), and "
                    "check the owner's name")  # fmt: skip
    if status in (401, 404):
        return kind(f"{repo.repository} is no folder here, and no repository on the hub that you may see; check the name, or for "
                    f"a private one log in: {LOG_IN}")  # fmt: skip
    if status == 403:
        return kind(f"the hub does not let you see {repo.repository}; log in as somebody who may: {LOG_IN}")
    why = f"it answers with status {status}" if status is not None else _first_line(error)
    if write:
        return OutputError(f"{repo.repository} could not be pushed: {why}; nothing was published, try again")
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return BundleError(f"the hub refuses {repo}: {why}; check the name")
    return UnreachableError(
        f"the hub cannot be asked for {repo}, which is no folder here: {why}; check the name and the network"
    )


def _first_line(error: Exception) -> str:
    with suppress(IndexError):
        return str(error).strip().splitlines()[0].strip().rstrip(".")[:200]
    return type(error).__name__
