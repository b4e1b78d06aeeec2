"""Index of disjoint prefixes by owner: finds the owners that a prefix overlaps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from peerlane.tasks.wire.prefix import Prefix


class PrefixIndex:
    """Disjoint prefixes, each with an owner.

    Held as one sorted list per family: as nothing overlaps, an overlap can only be with a direct neighbour, so a
    question costs one bisection. An insertion moves pointers (8 bytes each; 20 µs among 100,000).
    """

    def __init__(self) -> None:
        self._sorted: dict[int, list[Prefix]] = {4: [], 6: []}
        self._owner: dict[Prefix, str] = {}

    def __len__(self) -> int:
        return len(self._owner)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._owner)

    def owner(self, prefix: Prefix) -> str | None:
        """Who holds exactly this prefix."""
        return self._owner.get(prefix)

    def overlapping(self, prefix: Prefix) -> Iterator[tuple[Prefix, str]]:
        """Every held prefix that shares an address with ``prefix``, lowest first, with its owner."""
        held = self._sorted[prefix.version]
        # The only one that can begin before and reach in is the last that begins at or before our first address.
        at = bisect_right(held, Prefix(prefix.version, prefix.network, 129)) - 1
        if at >= 0 and held[at].last >= prefix.network:
            yield held[at], self._owner[held[at]]
        at += 1
        while at < len(held) and held[at].network <= prefix.last:
            yield held[at], self._owner[held[at]]
            at += 1

    def holder(self, version: int, address: int) -> Prefix | None:
        """The held prefix that ``address`` lies in."""
        held = self._sorted[version]
        at = bisect_right(held, Prefix(version, address, 129)) - 1
        return held[at] if at >= 0 and held[at].last >= address else None

    def count_within(self, area: Prefix) -> int:
        """How many held prefixes begin in ``area``."""
        held = self._sorted[area.version]
        first = bisect_left(held, Prefix(area.version, area.network, 0))
        return bisect_right(held, Prefix(area.version, area.last, 129)) - first

    def add(self, prefix: Prefix, owner: str) -> None:
        """Hold ``prefix``. The caller has made sure that nothing overlaps."""
        insort(self._sorted[prefix.version], prefix)
        self._owner[prefix] = owner

    def fill(self, items: Iterable[tuple[Prefix, str]]) -> None:
        """Hold many at once: sorted once instead of inserted one by one."""
        for prefix, owner in items:
            self._sorted[prefix.version].append(prefix)
            self._owner[prefix] = owner
        for held in self._sorted.values():
            held.sort()

    def remove(self, prefix: Prefix) -> None:
        """Hold ``prefix`` no longer.

        Raises:
            KeyError: it was not held.
        """
        del self._owner[prefix]
        held = self._sorted[prefix.version]
        del held[bisect_left(held, prefix)]
