"""Allocates the smallest free address of a pool."""

from __future__ import annotations

import heapq

from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.peers.prefix_index import PrefixIndex


class AddressPool:
    """One pool. The index knows which addresses are taken; the pool only remembers where to look next.

    Invariant: ``smallest_free`` is the smallest address of the pool that nobody holds. The cursor is below every free
    address that is not on the heap, and every address freed below the cursor is on the heap.
    """

    def __init__(self, prefix: Prefix, index: PrefixIndex, reserved: frozenset[int] = frozenset()) -> None:
        """``reserved`` are addresses never given out, besides the pool's first and, in IPv4, its last."""
        self.prefix = prefix
        self._index = index
        self._first, self._end = prefix.network, prefix.last
        if prefix.bits - prefix.length >= 2:
            # The network address, and the broadcast address that only IPv4 has.
            self._first += 1
            self._end -= 1 if prefix.version == 4 else 0
        self._reserved = reserved
        self._cursor = self._first
        self._freed: list[tuple[int, int]] = []
        #: What is on the heap: who comes and goes at one address while a smaller one is free leaves one entry.
        self._on_heap: set[tuple[int, int]] = set()

    @property
    def size(self) -> int:
        """How many addresses it can give out."""
        return self._end - self._first + 1 - sum(self._first <= address <= self._end for address in self._reserved)

    @property
    def in_use(self) -> int:
        """How many prefixes in it are held; nearly always single addresses."""
        return self._index.count_within(self.prefix)

    def smallest_free(self) -> Prefix | None:
        """The smallest free address as a host prefix, or None when the pool is full. Does not take it."""
        while self._freed:
            start, end = self._freed[0]
            free = self._next_free(start, end)
            if free == start:
                return Prefix.host(self.prefix.version, start)
            self._on_heap.discard(heapq.heappop(self._freed))
            if free is not None:
                self._put(free, end)
        free = self._next_free(self._cursor, self._end)
        self._cursor = self._end + 1 if free is None else free
        return None if free is None else Prefix.host(self.prefix.version, free)

    def freed(self, prefix: Prefix) -> None:
        """Take note that ``prefix``, inside or around this pool, is free again."""
        start, end = max(prefix.network, self._first), min(prefix.last, self._end, self._cursor - 1)
        if start <= end:
            self._put(start, end)

    def _put(self, start: int, end: int) -> None:
        if (start, end) not in self._on_heap:
            self._on_heap.add((start, end))
            heapq.heappush(self._freed, (start, end))

    def _next_free(self, start: int, end: int) -> int | None:
        while (free := self._index.first_free(self.prefix.version, start, end)) in self._reserved:
            start = free + 1
        return free
