"""Puts the peers of a gateway in the order of their addresses, at a hundred bytes a peer. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from peerlane.tasks.errors import StorageError
from peerlane.tasks.wire.stored_peer import StoredPeer, raw_key, text_key


class PeerOrder:
    """Public keys in the order of their peers' lowest addresses; no two peers share an address."""

    def __init__(self) -> None:
        self._ranked: list[bytes] = []

    def take(self, key: bytes, record: bytes) -> None:
        """One as stored; what does not parse is left out."""
        text = key.decode(errors="replace")
        raw = raw_key(text)
        if raw is None:
            return
        try:
            version, network, length = StoredPeer.from_record(text, record).allowed_ips[0]
        except (StorageError, IndexError):
            return
        self._ranked.append(bytes([version]) + network.to_bytes(16, "big") + bytes([length]) + raw)

    def pages(self, size: int) -> Iterator[list[str]]:
        """The keys in order, each once."""
        self._ranked.sort()
        ranked = iter(self._ranked)
        last = b""
        while page := list(islice(ranked, size)):
            fresh = [key for before, key in zip([last, *page], page, strict=False) if key != before]
            last = page[-1]
            yield [text_key(key[18:]) for key in fresh]
