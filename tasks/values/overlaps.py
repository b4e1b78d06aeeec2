"""Finds all pairs of prefixes that overlap, with one sort. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TypeVar

from peerlane.tasks.values.prefix import Prefix

_Holder = TypeVar("_Holder")


def overlaps(
    prefixes: Iterable[tuple[Prefix, _Holder]],
) -> Iterator[tuple[tuple[Prefix, _Holder], tuple[Prefix, _Holder]]]:
    """Every two of ``prefixes`` that share an address, the wider one first.

    Two prefixes lie one in the other or apart, so in the order of their addresses those around one are a stack.
    """
    around: list[tuple[Prefix, _Holder]] = []
    for entry in sorted(prefixes, key=lambda item: item[0]):
        while around and not around[-1][0].contains(entry[0]):
            around.pop()
        for wider in around:
            yield wider, entry
        around.append(entry)


class Areas:
    """The addresses of some prefixes."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[int]] = {4: [], 6: []}
        for prefix in sorted(set(prefixes)):
            ends = self._ends[prefix.version]
            if not ends or prefix.network > ends[-1]:  # else it lies in the one before
                self._starts[prefix.version].append(prefix.network)
                ends.append(prefix.last)

    def touch(self, prefix: Prefix) -> bool:
        """Whether any address of ``prefix`` is one of theirs."""
        at = bisect_right(self._starts[prefix.version], prefix.last) - 1
        return at >= 0 and self._ends[prefix.version][at] >= prefix.network
