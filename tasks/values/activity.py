"""Per-peer activity as the observer stores it: last seen, traffic totals, endpoint. Pure.

The stored form is one line: version, last seen, bytes received, bytes sent, the device's own three values at the last
reading, then the peer's endpoint if it had one; separated by blanks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Version of the stored form.
VERSION = "1"
#: The largest u64; larger numbers are not stored, for the programs that read these fields.
LIMIT = 1 << 64


def stored_fields(stored: str | bytes) -> tuple[tuple[int, ...], str] | None:
    """The six numbers and the endpoint of the stored form; None for any other text, which counts as never stored."""
    try:
        text = stored if isinstance(stored, str) else stored.decode("ascii")
        version, *fields = text.split(" ")
        if version != VERSION or len(fields) not in (6, 7):
            return None
        numbers = tuple(int(field) for field in fields[:6])
    except ValueError:
        return None
    if not all(0 <= number < LIMIT for number in numbers) or not text.isprintable():
        return None
    return numbers, fields[6] if len(fields) == 7 else ""


@dataclass(frozen=True, slots=True)
class PeerActivity:
    """A peer's activity: when it was last seen, its traffic, its endpoint."""

    #: When its last handshake was noticed, in seconds since 1970 on Redis' clock; None if it has had none.
    last_seen: int | None
    #: Bytes received from it and sent to it since its key was first seen on this gateway; they never fall.
    rx_bytes: int
    tx_bytes: int
    #: ``address:port`` that it was last heard from; None if it never was.
    endpoint: str | None

    @classmethod
    def from_stored(cls, stored: str | bytes | None, created_at: int = 0) -> PeerActivity | None:
        """From the stored form; None if there is none, or if it is that of an earlier peer with the same key."""
        fields = None if stored is None else stored_fields(stored)
        if fields is None:
            return None
        (last_seen, rx, tx, *_), endpoint = fields
        return cls(last_seen if last_seen and last_seen >= created_at else None, rx, tx, endpoint or None)

    def as_dict(self) -> dict[str, Any]:
        """The activity as JSON has it."""
        return asdict(self)
