"""Backends of other packages, found by their entry points in the group `digseg_engine.backends`.

An entry names a `BackendKind`. What is found is one more row of the table: listed, verified on the golden sample and timed
like our own. A package that cannot be imported is a row too, with the reason, and nobody else's backend suffers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points

from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import Backend, BackendKind, Usable, in_one_line
from digseg_engine.runtime.source import Source

GROUP = "digseg_engine.backends"

_log = logging.getLogger(__name__)


@cache
def installed() -> tuple[BackendKind, ...]:
    """The backends of every installed package, looked for once per process."""
    return tuple(
        _kind(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    )


def unused(plugins: Iterable[BackendKind], taken: Iterable[str]) -> dict[str, BackendKind]:
    """Plug-ins by name; one whose name is taken is left out, which the log says."""
    names, found = set(taken), dict[str, BackendKind]()
    for kind in plugins:
        if kind.name in names or kind.name in found:
            _log.warning("the backend %r of %s is left out: the name is taken", kind.name, kind.version)
        else:
            found[kind.name] = kind
    return found


def _kind(entry: EntryPoint) -> BackendKind:
    """The backend an entry names; its version is that of the package and of the file it is defined in."""
    package = "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    try:
        kind = entry.load()
        if not isinstance(kind, BackendKind):
            raise TypeError(f"{entry.value} is a {type(kind).__name__}, expected a BackendKind")
    except Exception as error:  # whatever another package does when it is imported
        reason = f"{package} cannot be used: {in_one_line(error)}"
        return BackendKind(entry.name, partial(_broken, entry.name, reason), partial(_refuse, reason), version=package)
    return replace(kind, version=f"{package} {kind.identity}")


def _broken(name: str, reason: str) -> Usable:
    return Usable(name, False, "", reason, "update that package, or uninstall it")


def _refuse(reason: str, source: Source) -> Backend:
    raise BackendError(f"{reason}; update that package, or uninstall it")
