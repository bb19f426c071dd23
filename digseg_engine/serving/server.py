"""What `digseg serve` does: open the models, listen, and end in order when told to."""

from __future__ import annotations

import logging
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn

from digseg_engine.console import note, telling
from digseg_engine.errors import OutputError, UsageError
from digseg_engine.named import default_bundle, find_model
from digseg_engine.runtime.engine import Engine
from digseg_engine.serving.app import create_app
from digseg_engine.serving.guard import LOCAL, Guard
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.patience import patient


@dataclass(frozen=True)
class Listening:
    """What is asked for; see the options of the command."""

    bundles: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    no_token: bool = False
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    backend: str = "auto"
    device: str | None = None
    threads: int | None = None
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Raises UsageError for what would let anybody in without that being said."""
        if self.host not in LOCAL and not self.token and not self.no_token:
            raise UsageError(f"--host {self.host} lets others reach this server; give --token TOKEN (or $DIGSEG_TOKEN), or say "
                             "--no-token if anybody may use it")  # fmt: skip
        for origin in self.origins:
            if origin == "*" or not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise UsageError(f"--cors takes one origin such as https://example.org, got {origin!r}")

    @property
    def known_hosts(self) -> frozenset[str] | None:
        """Names that requests may address: of a server that others reach, any, unless some are named."""
        if self.hosts:
            return LOCAL | frozenset(self.hosts)
        return LOCAL if self.host in LOCAL else None


class Server(uvicorn.Server):
    """uvicorn's server, which says to the application that it is ending."""

    def __init__(self, config: uvicorn.Config, guard: Guard) -> None:
        super().__init__(config)
        self.guard = guard

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.guard.ending = True
        super().handle_exit(sig, frame)


def open_models(listening: Listening) -> dict[str, Engine]:
    """Engines by the names of their folders. Raises UsageError for two of one name, and what `Engine.load` raises."""
    engines: dict[str, Engine] = {}
    with telling():
        for bundle in listening.bundles or (default_bundle()[0],):
            folder = find_model(bundle)
            name = folder.resolve().name
            if name in engines:
                raise UsageError(f"two bundles are called {name!r}; rename one of the folders")
            engines[name] = Engine.load(folder, listening.backend, threads=listening.threads, device=listening.device)
    return engines


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address. Raises OutputError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise OutputError(f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --port, or 0 for "
                          "any free one") from error  # fmt: skip
    found.set_inheritable(True)
    return found


def serve(listening: Listening) -> int:
    """Until SIGTERM or Ctrl-C: then requests in progress are answered, new ones refused, and the exit code is 0."""
    listening.check()
    taken = bound(listening.host, listening.port)  # before models are opened, which takes seconds
    try:
        engines = open_models(listening)
        guard = create_app(engines, listening.limits, listening.token or None, listening.known_hosts, listening.origins)
        guard.app.state.service.warm()  # type: ignore[attr-defined]
        limits = listening.limits
        config = uvicorn.Config(
            guard, http=patient(limits.header_seconds), ws="none", lifespan="on", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=30, limit_concurrency=limits.connections,
            timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
        )  # fmt: skip
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        server = Server(config, guard)
        taken.listen(config.backlog)  # whoever reads the address may connect
        _say(listening, taken.getsockname()[1], engines)
        before = {name: signal.signal(name, lambda *_: None) for name in (signal.SIGTERM, signal.SIGINT)}
        try:  # uvicorn raises the signal again once it is done, which would end the process as if it had failed
            server.run(sockets=[taken])
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
        for engine in engines.values():
            engine.close()
    finally:
        taken.close()
    note("digseg", "ended")
    return 0


def _say(listening: Listening, port: int, engines: dict[str, Engine]) -> None:
    """Where it listens, on stdout; what answers, on stderr."""
    name = f"[{listening.host}]" if ":" in listening.host else listening.host
    token = f"#token={quote(listening.token)}" if listening.token else ""  # behind # it is not sent, and so in no log
    for model, engine in engines.items():
        note("digseg", f"{model}: {engine.backend.detail}")
    print(f"http://{name}:{port}/{token}", flush=True)
