"""Derives a peer's activity from successive raw readings of its counters. Pure: no clock, no I/O.

``last_seen`` is on Redis' clock and comes from a *change* of the raw handshake time between two readings, never from
its value: that is the gateway's wall clock, which jumps. Totals only grow: the device's counters begin again at 0
whenever a peer or the device is made anew, so the last raw values are kept with the totals.
"""

from __future__ import annotations

from typing import NamedTuple

from peerlane.tasks.values.activity import LIMIT, VERSION, stored_fields
from peerlane.workers.dataplane.counters import PeerCounters

#: How the stored form begins, and how many digits its first figure has at most.
_BEGIN, _DIGITS = f"{VERSION} ".encode(), 20


class StoredActivity(NamedTuple):
    """A peer's activity, and the raw values it was derived from."""

    #: Seconds since 1970 on Redis' clock; 0 for never.
    last_seen: int
    #: Bytes since the key was first seen here; they never fall.
    rx: int
    tx: int
    #: The device's own values at the last reading: handshake in µs since 1970 on the gateway's clock, bytes.
    raw_handshake: int
    raw_rx: int
    raw_tx: int
    #: ``address:port`` that the peer was last heard from; empty if it never was.
    endpoint: str = ""


def advance(before: StoredActivity | None, raw: PeerCounters, now: int) -> StoredActivity | None:
    """The activity after a reading at ``now``; ``before`` itself if nothing changed.

    None where there is nothing to know yet: the peer never handshaked and no byte has gone by.
    """
    handshake = max(0, round(raw.latest_handshake * 1_000_000))
    endpoint = endpoint_text(raw.endpoint)
    if before is None:
        if handshake == 0 and raw.rx_bytes == 0 and raw.tx_bytes == 0:
            return None
        # When it was seen is not known; now is the latest it can have been.
        seen_at = now if handshake else 0
        return StoredActivity(seen_at, raw.rx_bytes, raw.tx_bytes, handshake, raw.rx_bytes, raw.tx_bytes, endpoint)
    if (handshake, raw.rx_bytes, raw.tx_bytes) == before[3:6] and endpoint in ("", before.endpoint):
        return before
    moved = handshake not in (0, before.raw_handshake)
    return StoredActivity(
        # Redis' clock may have been set back since.
        last_seen=max(now, before.last_seen) if moved else before.last_seen,
        rx=_grown(before.rx, before.raw_rx, raw.rx_bytes),
        tx=_grown(before.tx, before.raw_tx, raw.tx_bytes),
        raw_handshake=handshake,
        raw_rx=raw.rx_bytes,
        raw_tx=raw.tx_bytes,
        endpoint=endpoint or before.endpoint,
    )


def _grown(total: int, before: int, raw: int) -> int:
    return min(total + (raw - before if raw >= before else raw), LIMIT - 1)


def endpoint_text(endpoint: tuple[str, int] | None) -> str:
    """An endpoint as ``192.0.2.1:51820`` or ``[2001:db8::1]:51820``; '' for none."""
    if endpoint is None:
        return ""
    address, port = endpoint
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def encode(seen: StoredActivity) -> str:
    """The stored form: version, then the fields in order, separated by blanks; an operator can read it."""
    return f"{VERSION} {seen[0]} {seen[1]} {seen[2]} {seen[3]} {seen[4]} {seen[5]} {seen.endpoint}".rstrip(" ")


def decode(stored: str | bytes) -> StoredActivity | None:
    """From the stored form; None for any other text, which counts as never stored."""
    fields = stored_fields(stored)
    return None if fields is None else StoredActivity(*fields[0], endpoint=fields[1])


def last_seen(stored: bytes) -> int | None:
    """Only the last seen of the stored form; None for any other text."""
    if not stored.startswith(_BEGIN):
        return None
    first = stored[len(_BEGIN) : len(_BEGIN) + _DIGITS + 1].partition(b" ")[0]
    return int(first) if first.isdigit() and len(first) <= _DIGITS else None
