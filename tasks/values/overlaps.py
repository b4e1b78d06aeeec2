"""Finds all pairs of prefixes that overlap, with one sort. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from peerlane.tasks.values.prefix import Prefix

_Holder = TypeVar("_Holder")


def overlaps(
    held: Iterable[tuple[Prefix, _Holder]],
) -> Iterator[tuple[tuple[Prefix, _Holder], tuple[Prefix, _Holder]]]:
    """Every two of ``held`` that share an address, the wider one first.

    Two prefixes lie one in the other or apart, so in the order of their addresses those around one are a stack.
    """
    around: list[tuple[Prefix, _Holder]] = []
    for one in sorted(held, key=lambda item: item[0]):
        while around and not around[-1][0].contains(one[0]):
            around.pop()
        for wider in around:
            yield wider, one
        around.append(one)
