"""Ctrl-C and SIGTERM during training end the step that is under way, not the run's work: the stage then saves and says so."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from digseg_engine.errors import TrainingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterruptedError(TrainingError):
    """The run was left off with its state saved; `--resume` goes on."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        # As programs ended by a signal; told to stop: no failure.
        self.exit_code = 0 if number is None else 128 + number


class Interruption:
    """While entered, the first signal is only noted (`number`); a second one ends the program as always."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.before: dict[signal.Signals, Any] = {}

    @property
    def came(self) -> bool:
        return self.number is not None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
