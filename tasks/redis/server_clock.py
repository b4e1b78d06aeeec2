"""Estimates Redis' clock, on which deadlines and expiry are, independent of the hosts' clocks."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds after which the difference is measured anew.
RESYNC = 30.0
#: Seconds that an answer may have been on its way if nobody knows; one that says still less is of another clock.
DELAYED = 1.0
#: Milliseconds by which two readings of one clock may differ.
ROUNDED = 2


def milliseconds(time_reply: tuple[int, int]) -> int:
    """Redis' answer to TIME, (seconds, microseconds), in milliseconds."""
    seconds, micros = time_reply
    return seconds * 1000 + micros // 1000


class ServerClock:
    """Milliseconds since 1970 on the Redis server's clock, from its last answer and this host's monotonic clock."""

    def __init__(self, ask: Callable[..., tuple[int, int]]) -> None:
        """``ask`` is the client's ``time``: (seconds, microseconds)."""
        self._ask = ask
        self._offset: float | None = None
        self._asked_at = 0.0

    @property
    def fresh(self) -> bool:
        """Whether ``now_ms`` can answer without asking the server."""
        return self._offset is not None and time.monotonic() - self._asked_at <= RESYNC

    def now_ms(self) -> int:
        """The server's time now. Raises as ``lead`` does."""
        lead = self.lead()
        return int(time.monotonic() * 1000 + lead)

    def lead(self) -> float:
        """The server's lead over this host's monotonic clock in ms; asks the server if the last answer is old.

        Raises what ``ask`` raises.
        """
        offset = self._offset
        if offset is None or time.monotonic() - self._asked_at > RESYNC:
            asked = time.monotonic()
            offset = self.heard(milliseconds(self._ask()), asked)
        return offset

    def at(self, moment: float) -> float | None:
        """The server's time at a moment of this host's monotonic clock, in ms; None before the server was asked."""
        return None if self._offset is None else moment * 1000 + self._offset

    def heard(self, server_ms: int, asked: float | None = None) -> float:
        """The server said that it is ``server_ms``; its lead over this host's monotonic clock in ms.

        ``asked``: when it was asked, on the monotonic clock. The answer may have come long after the server gave it, as
        when this process was stopped meanwhile: what was known before stays, if the answer can be as old.
        """
        local = time.monotonic()
        offset = server_ms - local * 1000
        on_its_way = DELAYED if asked is None else local - asked
        if self._offset is not None and 0 < self._offset - offset <= on_its_way * 1000 + ROUNDED:
            offset = self._offset
        self._asked_at, self._offset = local, offset
        return offset
