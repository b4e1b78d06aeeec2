"""Cancels a request: the Redis commands, and what their answers mean. Pure: each client sends the commands itself.

``SET key tombstone NX GET EX life``. If that wrote the tombstone, ``PUBLISH key tombstone``, so that other waiting
callers learn it. If Redis refuses the write (full, a replica), ``GET key``: an outcome may be stored already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peerlane.config import names
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.wire import commit_record

#: Margin added to a tombstone's life beyond its request's deadline, in seconds.
TOMBSTONE_MARGIN = 60
#: Seconds that a deadline is ahead at most (tasks.lane.request); the tombstone of an unknown one lives as long.
LONGEST_DEADLINE = 86_400


@dataclass(frozen=True, slots=True)
class Cancel:
    """The cancel of one request."""

    request_id: str
    #: The record that is stored if none is there.
    tombstone: str
    #: Seconds for which it is kept: the request may wait in the lane until its deadline.
    life: int

    @classmethod
    def of(cls, request_id: str, *, result_ttl: int, seconds_left: float | None) -> Cancel:
        """``seconds_left`` are those until the request's deadline; None where it is not known."""
        left = LONGEST_DEADLINE if seconds_left is None else int(seconds_left)
        return cls(request_id, commit_record.tombstone(request_id), max(result_ttl, left + TOMBSTONE_MARGIN))

    @property
    def key(self) -> str:
        """Where the request's record is stored, and the channel it is published on."""
        return names.result_key(self.request_id)

    def decide(self, stored: bytes | None, *, written: bool) -> str | None:
        """The record that decides the request: the one stored before, else the tombstone if Redis has taken it.

        None: nothing is decided. A deadline that has passed decides nothing either: the same request may have been
        asked before with a later one, and wait in the lane.
        """
        if stored is not None:
            return stored.decode(errors="replace")
        return self.tombstone if written else None


def timed_out(within: float) -> TimedOut:
    """The error for the caller of a cancelled request."""
    return TimedOut(f"no outcome within {within:g} s: the request was cancelled and will never take effect")


def result_of(record: str, cancelled: Exception, wish: str = "") -> dict[str, Any]:
    """The result in the record that decides a cancelled request; ``wish`` is its digest, where that is known.

    Raises:
        PeerlaneError: the refusal in it.
        Exception: ``cancelled``, where it is a tombstone.
    """
    try:
        return commit_record.decode(record, wish)
    except TimedOut:
        raise cancelled from None
