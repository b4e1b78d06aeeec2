"""Raises an exception on SIGINT, SIGTERM and SIGHUP, so that child processes are ended too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """A context in which those signals raise: KeyboardInterrupt for SIGINT, SystemExit for the others.

    Python drops an exception that a handler raises inside a destructor: loops that wait call ``check``, which raises
    it again.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._waiting = False
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def undivided(self) -> Generator[None]:
        """Defer signals until the block ends, so that a child started in it is always recorded."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
        self.check()

    def check(self) -> None:
        """Raise the exception of a signal that has come."""
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is not None:
            raise SystemExit(128 + self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = number
        if not self._waiting:
            self.check()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Undisturbed:
    """A context that ignores those signals during a clean-up of a few seconds."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        # Another thread than the main one gets no signals.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
