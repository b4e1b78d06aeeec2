"""Watches the main thread: it reports each step, and the time within which it will report the next.

The heartbeat stores how long ago the last step was. A supervisor that started this process hears of each step by a
pipe, and ends a process that reports none. There is one in each process.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

#: Seconds between two turns of a lane, at most: it is turned each second, and at each request.
SOON = 5.0
#: The same while something long goes on: a step of a recovery, a list of peers.
LONG = 120.0
#: Seconds of silence after which a supervisor ends the process, at least.
SILENCE = 30.0
#: Seconds between two words to the supervisor, at least.
_SPARING = 0.5


@dataclass(slots=True)
class Pulse:
    """The main thread's last report. Other threads may read its attributes."""

    #: When the lane was last turned, on the monotonic clock, and within how many seconds it is to be turned again.
    turned: float
    within: float = LONG
    #: Whether the lane has been served since the process began.
    serving: bool = False
    _pipe: int | None = None
    _said: bytes = b""
    _said_at: float = 0.0

    def turn(self, within: float = SOON) -> None:
        """Report a step: a request has advanced, or was looked for."""
        self.turned, self.within = time.monotonic(), within
        self._tell(within)

    def wait(self) -> None:
        """Report that the thread works but waits for Redis, so that it is not ended."""
        self._tell(SOON)

    def idle(self) -> float:
        """Seconds since the last step."""
        return time.monotonic() - self.turned

    def tell_by(self, pipe: int) -> None:
        """Report to a supervisor too, by the writing end of a pipe."""
        os.set_blocking(pipe, False)
        os.set_inheritable(pipe, False)  # noqa: FBT003 - likewise
        self._pipe = pipe
        self._tell(LONG)

    def _tell(self, within: float) -> None:
        if self._pipe is None:
            return
        now = time.monotonic()
        line = f"{max(SILENCE, within):g} {'serving' if self.serving else 'starting'}\n".encode()
        if line == self._said and now - self._said_at < _SPARING:
            return
        self._said, self._said_at = line, now
        with suppress(OSError):  # the supervisor has ended, or does not read fast enough
            os.write(self._pipe, line)


PULSE = Pulse(time.monotonic())
