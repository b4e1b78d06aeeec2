"""A gateway's peers in memory, each as its stored record, which is parsed when it is read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from peerlane.tasks.wire.stored_peer import StoredPeer, raw_key, text_key

#: A record of more bytes than this is held as this program would write it.
_ROOMY = 512


class PeerRecords(Mapping[str, StoredPeer]):
    """Mapping of public keys to peers.

    Held as key of 32 bytes → record, with its preshared key in clear: some 300 bytes a peer, and nothing for the
    garbage collector to look at. Peers that have no usable record are held as they are.
    """

    def __init__(self) -> None:
        self._records: dict[bytes, bytes] = {}
        self._kept: dict[str, StoredPeer] = {}

    def copy(self) -> PeerRecords:
        """Another mapping of the same peers, which share their memory."""
        other = PeerRecords()
        other._records, other._kept = dict(self._records), dict(self._kept)
        return other

    def __getitem__(self, public_key: str) -> StoredPeer:
        peer = self.get(public_key)
        if peer is None:
            raise KeyError(public_key)
        return peer

    def get(self, public_key: str, default: StoredPeer | None = None) -> StoredPeer | None:  # type: ignore[override]
        """The peer, or ``default``."""
        raw = raw_key(public_key)
        if raw is not None and (record := self._records.get(raw)) is not None:
            return StoredPeer.from_record(public_key, record)
        return self._kept.get(public_key, default)

    def __contains__(self, public_key: object) -> bool:
        if not isinstance(public_key, str):
            return False
        return raw_key(public_key) in self._records or public_key in self._kept

    def __len__(self) -> int:
        return len(self._records) + len(self._kept)

    def __iter__(self) -> Iterator[str]:
        yield from map(text_key, self._records)
        yield from self._kept

    def raw_keys(self) -> Iterator[bytes]:
        """The keys of the peers with a record, as 32 bytes."""
        return iter(self._records)

    def record(self, raw: bytes) -> bytes | None:
        """The record of a key of 32 bytes."""
        return self._records.get(raw)

    def by_raw_key(self, raw: bytes) -> StoredPeer | None:
        """The peer with this key of 32 bytes, if it has a usable record."""
        record = self._records.get(raw)
        return None if record is None else StoredPeer.from_record(text_key(raw), record)

    def put(self, peer: StoredPeer, record: str | None = None) -> None:
        """Put a peer in place of any with its key. ``record`` is ``peer.record()``, if it has been made already."""
        if self._kept:
            self._kept.pop(peer.public_key, None)
        self._records[_raw(peer)] = (record or peer.record()).encode()

    def add(self, peer: StoredPeer, record: bytes | None) -> bool:
        """Put a peer, unless there is one with its key; returns whether it was put. ``record`` is its stored record."""
        raw = _raw(peer)
        if raw in self._records:
            return False
        whole = record is not None and len(record) <= _ROOMY
        self._records[raw] = record if record is not None and whole else peer.record().encode()
        return True

    def keep(self, peer: StoredPeer) -> None:
        """Put a peer that has no usable record."""
        self.drop(peer.public_key)
        self._kept[peer.public_key] = peer

    def drop(self, public_key: str) -> None:
        """Remove a peer. No error if it was not there."""
        if self._kept.pop(public_key, None) is None and (raw := raw_key(public_key)) is not None:
            self._records.pop(raw, None)


def _raw(peer: StoredPeer) -> bytes:
    raw = raw_key(peer.public_key)
    if raw is None:
        raise ValueError("not a public key")
    return raw
