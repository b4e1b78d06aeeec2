"""What an observer holds of many peers, in few bytes each: there may be a million. Pure."""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, cast, overload

from peerlane.tasks.wire.bulk import Reason
from peerlane.tasks.wire.stored_peer import raw_key, text_key


class Lifetime(NamedTuple):
    """What a sweep looks at of a peer's record (``sweep_policy.SweepCandidate``)."""

    created_at: int
    expires_at: int | None
    pinned: bool
    imported_at: int | None = None


class StalePeer(NamedTuple):
    """A stale peer. ``since``: when it expired, was made or imported (never), or was last seen (idle)."""

    public_key: str
    reason: Reason
    created_at: int
    since: int


_REASONS: tuple[Reason, ...] = ("expired", "never", "idle")
_PACKED = struct.Struct("=32sBqq")
#: Times beyond this do not fit, and are kept apart; no real peer has one.
_LARGE = 2**60
#: Added to the times of those who are not expired: they come after all who are.
_LATER = 2**80


class StalePeers(Sequence[StalePeer]):
    """Stale peers in the order in which to remove them, at some 60 bytes each."""

    def __init__(self, peers: Iterable[StalePeer] = ()) -> None:
        self._packed = bytearray()
        self._order = array("I")
        #: Those that do not fit, by their place.
        self._odd: dict[int, StalePeer] = {}
        #: How many for each reason.
        self.counts: Counter[str] = Counter()
        for peer in peers:
            self.append(peer)

    def append(self, peer: StalePeer) -> None:
        """Append a stale peer."""
        raw = raw_key(peer.public_key)
        if raw is not None and abs(peer.created_at) < _LARGE and abs(peer.since) < _LARGE:
            self._packed += _PACKED.pack(raw, _REASONS.index(peer.reason), peer.created_at, peer.since)
        else:
            self._odd[len(self)] = peer
            self._packed += bytes(_PACKED.size)
        self._order.append(len(self._order))
        self.counts[peer.reason] += 1

    def sort(self) -> None:
        """Those that expired first in front, then the others, those that are silent for longest first."""

        def rank(place: int) -> int:
            if place in self._odd:
                reason, since = self._odd[place].reason, self._odd[place].since
                return since + (0 if reason == "expired" else _LATER)
            _, number, _, since = _PACKED.unpack_from(self._packed, place * _PACKED.size)
            return since + (_LATER if number else 0)

        self._order = array("I", sorted(self._order, key=rank))

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> StalePeer: ...
    @overload
    def __getitem__(self, index: slice) -> list[StalePeer]: ...
    def __getitem__(self, index: int | slice) -> StalePeer | list[StalePeer]:
        if isinstance(index, slice):
            return [self._at(place) for place in self._order[index]]
        return self._at(self._order[index])

    def __iter__(self) -> Iterator[StalePeer]:
        return map(self._at, self._order)

    def _at(self, place: int) -> StalePeer:
        if (odd := self._odd.get(place)) is not None:
            return odd
        raw, number, created_at, since = cast(
            "tuple[bytes, int, int, int]", _PACKED.unpack_from(self._packed, place * _PACKED.size)
        )
        return StalePeer(text_key(raw), _REASONS[number], created_at, since)

    def first(self, count: int) -> list[StalePeer]:
        """The first ``count``, or all if there are fewer."""
        return list(islice(self, count))
