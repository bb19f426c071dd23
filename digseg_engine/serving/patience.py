"""The HTTP protocol of uvicorn, with a limit on how long a client may take to send a request's head.

uvicorn limits the time between requests and leaves a connection open for ever that sends nothing, or half a head.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Closes the connection when no whole head came within `seconds` of its opening, or of a head's first byte."""

    def __init__(self, *arguments: Any, seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.seconds = seconds
        self.waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self.waiting is None and self._between():
            self._wait()
        super().data_received(data)
        if not self._between():
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self.waiting = self.loop.call_later(self.seconds, self._end)

    def _stop(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None

    def _end(self) -> None:
        self.waiting = None
        if self._between() and not self.transport.is_closing():
            self.transport.close()


def patient(seconds: float) -> Any:
    """What uvicorn makes a connection's protocol with."""
    return partial(PatientProtocol, seconds=seconds)
