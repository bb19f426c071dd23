"""Copies of shards from afar on this machine, at most so many bytes of them: the least recently used make way.

Reading never waits for a copy: until one is whole, members are read by ranges. Of several processes one copies at a time.
Torch-free.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from digseg_engine.data.storage import Blob
from digseg_engine.errors import DigsegError, OutputError
from digseg_engine.files import replacing

LIMIT = 20.0  # GB


class ShardCache:
    """Copies in `folder`, of at most `limit` bytes together, the one that is being made included."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._begin()

    def _begin(self) -> None:
        self._copying = threading.Lock()  # held by the one thread that copies
        self._failed: set[str] = set()

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin()

    def nearest(self, blob: Blob) -> Blob:
        """The copy of a shard when there is one, else the shard itself."""
        path = self._path(blob)
        if not blob.remote or path is None:
            return blob
        try:
            os.utime(path)  # used now
        except OSError:
            return blob
        return Blob(str(path), blob.size, blob.stamp)

    def expect(self, blobs: Iterable[Blob]) -> None:
        """Have shards copied, the first ones first, by a thread that nobody waits for."""
        wanted = list(blobs)
        if any(self._lacks(blob) for blob in wanted) and self._copying.acquire(blocking=False):
            threading.Thread(target=self._copy_all, args=(wanted,), name="shards", daemon=True).start()

    def wait(self) -> None:
        """Until no copy is being made."""
        with self._copying:
            return

    def _copy_all(self, wanted: list[Blob]) -> None:
        try:
            self.copy(wanted)
        finally:
            self._copying.release()

    def copy(self, wanted: list[Blob]) -> None:
        """Copy what lacks of these shards, unless another process is copying; what fails is read by ranges from then on."""
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock", timeout=0):
                for path in self.folder.glob(".digseg-*.tmp"):  # left by a process that was killed
                    path.unlink(missing_ok=True)
                for blob in wanted:
                    if self._lacks(blob):
                        self._copy(blob, wanted)
        except (Timeout, OSError):  # asked again at the next batch
            return

    def _copy(self, blob: Blob, wanted: list[Blob]) -> None:
        path = self._path(blob)
        if blob.size > self.limit:
            self._failed.add(blob.address)
        if path is None or not self._make_room(blob.size, wanted):
            return
        try:
            with replacing(path) as draft, blob.open() as source, draft.open("wb") as file:
                shutil.copyfileobj(source, file, 8 << 20)
                if file.tell() != blob.size:
                    raise OutputError(f"{blob.address} is being changed")
        except DigsegError:
            self._failed.add(blob.address)

    def _make_room(self, size: int, wanted: list[Blob]) -> bool:
        """Remove copies, the least recently used first and wanted ones never, until `size` bytes fit."""
        keep = {self._path(blob) for blob in wanted}
        copies = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.tar"))
        used = sum(size for _, size, _ in copies)
        for _, old, path in copies:
            if used + size <= self.limit:
                break
            if path not in keep:
                with suppress(OSError):  # in use, where the system does not let go of such files
                    path.unlink()
                    used -= old
        return used + size <= self.limit

    def _lacks(self, blob: Blob) -> bool:
        path = self._path(blob)
        return blob.remote and path is not None and blob.address not in self._failed and not path.is_file()

    def _path(self, blob: Blob) -> Path | None:
        """Where the copy of a shard of these contents lies; None where changes of the shard could not be told."""
        if not blob.stamp:
            return None
        return (
            self.folder / f"{hashlib.sha256(f'{blob.address}/{blob.size}/{blob.stamp}'.encode()).hexdigest()[:24]}.tar"
        )
