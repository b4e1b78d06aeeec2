"""Waiting by looking: until something is so, with a deadline, never for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

#: Seconds that a test waits for what has to come. A machine with other work to do may be slow; below pytest's timeout.
PATIENCE = 60.0


def eventually(look: Callable[[], _T], awaited: str, *, within: float = PATIENCE, every: float = 0.02) -> _T:
    """The first true answer of ``look``; AssertionError that names ``awaited`` if none comes ``within`` seconds."""
    until = time.monotonic() + within
    while True:
        if result := look():
            return result
        assert time.monotonic() < until, f"waited {within:g} s in vain for: {awaited}"
        time.sleep(every)


class Stopwatch:
    """Seconds since it was made, or since it was last asked to ``restart``."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
