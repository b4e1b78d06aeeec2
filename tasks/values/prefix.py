"""IP prefixes as small tuples: parsed once at the edge, compared and sorted as integers, printed canonically."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import NamedTuple

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_BITS = {4: 32, 6: 128}


class Prefix(NamedTuple):
    """One prefix. ``network`` is the address as an integer, host bits zero. Sorts by family, address, length."""

    version: int
    network: int
    length: int

    @property
    def bits(self) -> int:
        """32 or 128."""
        return _BITS[self.version]

    @property
    def last(self) -> int:
        """The highest address in the prefix, as an integer."""
        return self.network | ((1 << (self.bits - self.length)) - 1)

    @property
    def packed(self) -> bytes:
        """The network address in network byte order."""
        return self.network.to_bytes(self.bits // 8, "big")

    @property
    def address(self) -> str:
        """The network address without the length."""
        return socket.inet_ntop(_FAMILY[self.version], self.packed)

    def contains(self, other: Prefix) -> bool:
        """Whether ``other`` lies inside this prefix (or equals it)."""
        return (
            self.version == other.version and self.length <= other.length and self.network <= other.network <= self.last
        )

    def overlaps(self, other: Prefix) -> bool:
        """Whether the two share an address."""
        return self.contains(other) or other.contains(self)

    def __str__(self) -> str:
        return _text(*self)

    @classmethod
    def host(cls, version: int, address: int) -> Prefix:
        """The single address ``address``."""
        return cls(version, address, _BITS[version])

    @classmethod
    def from_packed(cls, packed: bytes, length: int) -> Prefix:
        """From 4 or 16 bytes in network order."""
        return cls(4 if len(packed) == 4 else 6, int.from_bytes(packed, "big"), length)

    @classmethod
    def parse_interface(cls, text: str) -> tuple[int, Prefix]:
        """``10.8.0.1/16`` → (address as integer, its network).

        Raises:
            ValueError: not an address with an optional length, with a sentence for a person.
        """
        address, slash, size = text.partition("/")
        version = 6 if ":" in address else 4
        try:
            packed = socket.inet_pton(_FAMILY[version], address)
        except (OSError, ValueError, UnicodeError):
            raise ValueError("is not an IPv4 or IPv6 prefix such as 10.8.0.7/32 or fd00::7/128") from None
        bits = _BITS[version]
        if not slash:
            length = bits
        elif size.isascii() and size.isdigit() and len(size) <= 3 and int(size) <= bits and str(int(size)) == size:
            length = int(size)
        else:
            raise ValueError(f"has a prefix length that is not a number from 0 to {bits}")
        value = int.from_bytes(packed, "big")
        mask = ((1 << length) - 1) << (bits - length)
        return value, cls(version, value & mask, length)

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """From text; a bare address is a single host.

        Raises:
            ValueError: malformed, or bits set beyond the length; with a sentence for a person.
        """
        value, prefix = cls.parse_interface(text)
        if value != prefix.network:
            raise ValueError(f"has host bits set; did you mean {prefix}?")
        return prefix


@lru_cache(maxsize=2048)
def _text(version: int, network: int, length: int) -> str:
    """A prefix as text. Kept for a while, because a create's record, answer and addresses all contain it."""
    if version == 4:
        return f"{socket.inet_ntop(socket.AF_INET, network.to_bytes(4, 'big'))}/{length}"
    return f"{socket.inet_ntop(socket.AF_INET6, network.to_bytes(16, 'big'))}/{length}"
