"""A set of many texts in few bytes each: there may be millions. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class KeySet:
    """A set of texts of which 64 bits each are held: 16 to 32 bytes a text. Two of a million are never mistaken.

    The bits are Python's own hash, which differs from process to process: so no key can be chosen to collide.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._slots = array("q", bytes(8 * 16))
        self._count = 0
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: object) -> bool:
        slots, bits = self._slots, hash(text) or 1
        mask = len(slots) - 1
        at = bits & mask
        while (slot := slots[at]) != 0:
            if slot == bits:
                return True
            at = at + 1 & mask
        return False

    def add(self, text: str) -> bool:
        """Add a text; returns whether it was not in the set."""
        if self._count * 2 >= len(self._slots):
            self._grow()
        if not _put(self._slots, hash(text) or 1):
            return False
        self._count += 1
        return True

    def _grow(self) -> None:
        before = self._slots
        self._slots = array("q", bytes(16 * len(before)))
        for bits in before:
            if bits:
                _put(self._slots, bits)


def _put(slots: array[int], bits: int) -> bool:
    mask = len(slots) - 1
    at = bits & mask
    while (slot := slots[at]) != 0:
        if slot == bits:
            return False
        at = at + 1 & mask
    slots[at] = bits
    return True
