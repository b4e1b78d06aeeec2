"""The prefixes that peers hold: overlaps, and the addresses that are free. Pure."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from peerlane.tasks.values.prefix import Prefix

#: Bits of an address that tell one host of a page from another.
_SHIFT = 10
_PAGE = 1 << _SHIFT
_BITS = {4: 32, 6: 128}


class PrefixIndex:
    """Disjoint prefixes.

    Single hosts, which nearly all are, are bits: one integer for each page of 1,024 addresses that holds any. Wider
    ones stand in one sorted list per family: as nothing overlaps, an overlap can only be with a direct neighbour. An
    insertion there moves pointers (8 bytes each; 20 µs among 100,000).
    """

    def __init__(self) -> None:
        self._pages: dict[int, dict[int, int]] = {4: {}, 6: {}}
        self._wide: dict[int, list[Prefix]] = {4: [], 6: []}
        self._count = 0

    def copy(self) -> PrefixIndex:
        """Another index of the same prefixes; takes a millisecond for a million."""
        other = PrefixIndex()
        other._pages = {version: dict(pages) for version, pages in self._pages.items()}
        other._wide = {version: list(wide) for version, wide in self._wide.items()}
        other._count = self._count
        return other

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Prefix]:
        for version in (4, 6):
            for page in self._pages[version]:
                yield from _hosts(version, page, self._pages[version][page])
            yield from self._wide[version]

    def __contains__(self, prefix: Prefix) -> bool:
        version, network, length = prefix
        if length == _BITS[version]:
            return bool(self._pages[version].get(network >> _SHIFT, 0) >> (network & _PAGE - 1) & 1)
        wide = self._wide[version]
        at = bisect_left(wide, prefix)
        return at < len(wide) and wide[at] == prefix

    def add(self, prefix: Prefix) -> None:
        """Add ``prefix``, which must not overlap a held prefix."""
        version, network, length = prefix
        if length == _BITS[version]:
            pages, page = self._pages[version], network >> _SHIFT
            pages[page] = pages.get(page, 0) | 1 << (network & _PAGE - 1)
        else:
            insort(self._wide[version], prefix)
        self._count += 1

    def take(self, prefix: Prefix) -> bool:
        """Add ``prefix``, unless it overlaps a held prefix; returns whether it was added."""
        version, network, length = prefix
        if length == _BITS[version] and not self._wide[version]:
            pages, page, bit = self._pages[version], network >> _SHIFT, 1 << (network & _PAGE - 1)
            bits = pages.get(page, 0)
            if bits & bit:
                return False
            pages[page] = bits | bit
            self._count += 1
            return True
        if any(True for _ in self.overlapping(prefix)):
            return False
        self.add(prefix)
        return True

    def remove(self, prefix: Prefix) -> None:
        """Remove ``prefix``.

        Raises:
            KeyError: it was not held.
        """
        if prefix not in self:
            raise KeyError(prefix)
        version, network, length = prefix
        if length == _BITS[version]:
            pages, page = self._pages[version], network >> _SHIFT
            left = pages[page] ^ 1 << (network & _PAGE - 1)
            if left:
                pages[page] = left
            else:
                del pages[page]
        else:
            wide = self._wide[version]
            del wide[bisect_left(wide, prefix)]
        self._count -= 1

    def overlapping(self, prefix: Prefix) -> Iterator[Prefix]:
        """Every held prefix that shares an address with ``prefix``, lowest first."""
        if prefix.length == _BITS[prefix.version]:
            holder = self.holder(prefix.version, prefix.network)
            return iter(() if holder is None else (holder,))
        return heapq.merge(self._wide_overlapping(prefix), self._hosts_inside(prefix))

    def holder(self, version: int, address: int) -> Prefix | None:
        """The held prefix that ``address`` lies in."""
        if self._pages[version].get(address >> _SHIFT, 0) >> (address & _PAGE - 1) & 1:
            return Prefix.host(version, address)
        return self._wide_holder(version, address)

    def first_free(self, version: int, start: int, end: int) -> int | None:
        """The smallest address from ``start`` to ``end``, both included, that no peer holds."""
        pages, wide = self._pages[version], self._wide[version]
        while start <= end:
            bits = pages.get(start >> _SHIFT)
            if bits is not None:
                offset = start & _PAGE - 1
                free = ~(bits >> offset)
                skipped = (free & -free).bit_length() - 1
                start += skipped
                if offset + skipped == _PAGE or start > end:
                    continue
            holder = self._wide_holder(version, start) if wide else None
            if holder is None:
                return start
            start = holder.last + 1
        return None

    def count_within(self, area: Prefix) -> int:
        """How many held prefixes begin in ``area``. Any thread may ask."""
        pages, wide = self._pages[area.version], self._wide[area.version]
        first, last = area.network, area.last
        count = bisect_right(wide, Prefix(area.version, last, 129)) - bisect_left(wide, Prefix(area.version, first, 0))
        for page, bits in list(pages.items()):
            base = page << _SHIFT
            if first <= base and base + _PAGE - 1 <= last:
                count += bits.bit_count()
            elif base <= last and first < base + _PAGE:
                count += sum(first <= host.network <= last for host in _hosts(area.version, page, bits))
        return count

    def outside(self, areas: Iterable[Prefix]) -> Iterator[Prefix]:
        """Every held prefix that lies in none of ``areas``."""
        around = list(areas)
        for version in (4, 6):
            bits = _BITS[version]
            for page in self._pages[version]:
                whole = Prefix(version, page << _SHIFT, bits - _SHIFT)
                if not any(area.contains(whole) for area in around):
                    hosts = _hosts(version, page, self._pages[version][page])
                    yield from (host for host in hosts if not any(area.contains(host) for area in around))
            yield from (wide for wide in self._wide[version] if not any(area.contains(wide) for area in around))

    def _wide_holder(self, version: int, address: int) -> Prefix | None:
        wide = self._wide[version]
        at = bisect_right(wide, Prefix(version, address, 129)) - 1
        return wide[at] if at >= 0 and wide[at].last >= address else None

    def _wide_overlapping(self, prefix: Prefix) -> Iterator[Prefix]:
        wide = self._wide[prefix.version]
        # The only one that can begin before and reach in is the last that begins at or before our first address.
        at = bisect_right(wide, Prefix(prefix.version, prefix.network, 129)) - 1
        if at >= 0 and wide[at].last >= prefix.network:
            yield wide[at]
        at += 1
        while at < len(wide) and wide[at].network <= prefix.last:
            yield wide[at]
            at += 1

    def _hosts_inside(self, prefix: Prefix) -> Iterator[Prefix]:
        pages = self._pages[prefix.version]
        first, last = prefix.network >> _SHIFT, prefix.last >> _SHIFT
        numbers: Iterable[int] = range(first, last + 1)
        if last - first >= len(pages):
            numbers = sorted(page for page in pages if first <= page <= last)
        for page in numbers:
            if page in pages:
                hosts = _hosts(prefix.version, page, pages[page])
                yield from (host for host in hosts if prefix.network <= host.network <= prefix.last)


def _hosts(version: int, page: int, bits: int) -> Iterator[Prefix]:
    base = page << _SHIFT
    while bits:
        lowest = bits & -bits
        yield Prefix.host(version, base + lowest.bit_length() - 1)
        bits ^= lowest


class AddressPool:
    """Allocates the addresses of one pool. The index knows which are taken; the pool only remembers where to look next.

    Invariant: ``smallest_free`` is the smallest address of the pool that no peer holds. The cursor is below every free
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
