"""What Redis says of a gateway's peers in few bytes each, to compare a device of a million peers with. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import StoredPeer, raw_key
from peerlane.workers.dataplane import DevicePeer
from peerlane.workers.peers.table import Loaded

#: The largest int that takes 32 bytes.
_MOST = (1 << 60) - 1


@dataclass(slots=True)
class LoadedDigests(Loaded):
    """Loaded peers, of each its key and a digest of what a device has to hold: some 150 bytes."""

    #: By key of 32 bytes. Two peers of a million never have one digest by chance.
    digests: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def _put(self, peer: StoredPeer, record: bytes | None) -> bool:
        raw = raw_key(peer.public_key)
        if raw is None:
            raise ValueError("not a public key")
        if raw in self.digests:
            return False
        self.digests[raw] = _digest(peer.allowed_ips, peer.preshared_key, peer.keepalive)
        return True

    def routed(self, pools: Collection[Prefix]) -> set[Prefix]:
        """Every prefix that needs its own route, because it is in no pool; also those of broken records."""
        for peer in self.broken.values():
            for prefix in peer.allowed_ips:
                self.index.take(prefix)
        return set(self.index.outside(pools))

    def suspects(
        self, device: Iterable[DevicePeer], untouchable: Iterable[str], *, missing: bool = True
    ) -> Iterator[bytes]:
        """The keys of peers that differ, only the device has, or, if ``missing``, the device lacks.

        Takes those that the device has out of ``digests``.
        """
        skipped = set(map(raw_key, untouchable))
        for peer in device:
            raw = raw_key(peer.public_key)
            differs = self.digests.pop(raw or b"", None) != _digest(
                peer.allowed_ips, peer.preshared_key, peer.keepalive
            )
            if differs and raw is not None and raw not in skipped:
                yield raw
        if missing:
            yield from (raw for raw in self.digests if raw not in skipped)


def _digest(allowed_ips: Iterable[Prefix], preshared_key: str | None, keepalive: int) -> int:
    return hash((frozenset(allowed_ips), preshared_key, keepalive)) & _MOST
