"""Estimates Redis' clock, on which deadlines and expiry are, independent of the hosts' clocks."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds after which the difference is measured anew.
RESYNC = 30.0
#: Milliseconds by which an answer may say less than expected because it was long on its way; more is another clock.
DELAYED = 1000


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
            offset = self.heard(milliseconds(self._ask()))
        return offset

    def at(self, moment: float) -> float | None:
        """The server's time at a moment of this host's monotonic clock, in ms; None before the server was asked."""
        return None if self._offset is None else moment * 1000 + self._offset

    def heard(self, server_ms: int) -> float:
        """The server said just now that it is ``server_ms``; its lead over this host's monotonic clock in ms.

        Of the answers of the last ``RESYNC`` seconds the one counts that was on its way for the shortest time.
        """
        local = time.monotonic()
        offset = server_ms - local * 1000
        if self._offset is not None and self.fresh and 0 < self._offset - offset < DELAYED:
            return self._offset
        self._asked_at, self._offset = local, offset
        return offset
