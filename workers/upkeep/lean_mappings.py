"""Compact mappings by public key, because an observer may have a million peers: 32 bytes a key and a few more. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from peerlane.tasks.wire.stored_peer import raw_key, text_key
from peerlane.workers.store.activity import StoredActivity


class Lifetime(NamedTuple):
    """The fields of a peer's record that a sweep uses (``sweep_policy.SweepCandidate``)."""

    created_at: int
    expires_at: int | None
    pinned: bool
    imported_at: int | None = None


class Lifetimes(Mapping[str, Lifetime]):
    """Public key → Lifetime. Malformed keys are ignored."""

    def __init__(self) -> None:
        self._held: dict[bytes, bytes] = {}

    def __getitem__(self, public_key: str) -> Lifetime:
        return _read(self._held[raw_key(public_key) or b""])

    def __contains__(self, public_key: object) -> bool:
        return isinstance(public_key, str) and raw_key(public_key) in self._held

    def __iter__(self) -> Iterator[str]:
        return map(text_key, self._held)

    def __len__(self) -> int:
        return len(self._held)

    def put(self, public_key: str, life: Lifetime) -> None:
        """Take one in."""
        if (raw := raw_key(public_key)) is not None:
            self._held[raw] = _written(life)


def _written(life: Lifetime) -> bytes:
    # As text: a record may name a time of any size.
    fields = ("" if each is None else str(int(each)) for each in life)
    return " ".join(fields).encode()


def _read(held: bytes) -> Lifetime:
    created_at, expires_at, pinned, imported_at = held.split(b" ")
    return Lifetime(
        int(created_at),
        int(expires_at) if expires_at else None,
        pinned == b"1",
        int(imported_at) if imported_at else None,
    )


_NUMBERS = struct.Struct("=6Q")


class Activities(MutableMapping[str, StoredActivity]):
    """Public key → activity. Malformed keys are ignored."""

    def __init__(self) -> None:
        self._held: dict[bytes, bytes] = {}

    def __getitem__(self, public_key: str) -> StoredActivity:
        held = self._held[raw_key(public_key) or b""]
        last_seen, rx, tx, handshake, raw_rx, raw_tx = _NUMBERS.unpack_from(held)
        return StoredActivity(last_seen, rx, tx, handshake, raw_rx, raw_tx, held[_NUMBERS.size :].decode())

    def __setitem__(self, public_key: str, seen: StoredActivity) -> None:
        if (raw := raw_key(public_key)) is not None:
            self._held[raw] = _NUMBERS.pack(*seen[:6]) + seen.endpoint.encode()

    def __delitem__(self, public_key: str) -> None:
        del self._held[raw_key(public_key) or b""]

    def __contains__(self, public_key: object) -> bool:
        return isinstance(public_key, str) and raw_key(public_key) in self._held

    def __iter__(self) -> Iterator[str]:
        return map(text_key, self._held)

    def __len__(self) -> int:
        return len(self._held)


class Keys(AbstractSet[str]):
    """A set of public keys."""

    def __init__(self) -> None:
        self._held: set[bytes] = set()

    def add(self, public_key: str) -> None:
        """Take one in."""
        if (raw := raw_key(public_key)) is not None:
            self._held.add(raw)

    def __contains__(self, public_key: object) -> bool:
        return isinstance(public_key, str) and raw_key(public_key) in self._held

    def __iter__(self) -> Iterator[str]:
        return map(text_key, self._held)

    def __len__(self) -> int:
        return len(self._held)
