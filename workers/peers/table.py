"""The peer table in memory: every peer of a gateway and who holds which prefix; built from what Redis holds. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from peerlane.tasks.wire.model import Peer
from peerlane.tasks.wire.prefix import Prefix
from peerlane.workers.peers.address_pool import AddressPool
from peerlane.workers.peers.prefix_index import PrefixIndex

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What one gateway gives to peers."""

    gateway: str
    public_key: str
    pools: tuple[Prefix, ...]
    serves: tuple[Prefix, ...] = ()
    #: The gateway's own addresses, as host prefixes.
    own_addresses: tuple[Prefix, ...] = ()
    max_peers: int = 1 << 20


@dataclass(slots=True)
class Loaded:
    """What Redis holds. ``broken`` records do not parse: they stay as they are, and so do their addresses."""

    peers: dict[str, Peer]
    broken: dict[str, Peer]
    reasons: dict[str, str]
    #: Peers whose preshared key is not stored as it would be now: in clear, or sealed with an old key.
    outdated: list[str] = field(default_factory=list[str])
    #: When, in seconds since 1970 on Redis' clock.
    at: int = 0


class PeerTable:
    """Every peer of the gateway, and who holds which prefix. Belongs to the writer alone."""

    def __init__(self, policy: Policy, peers: Iterable[Peer] = ()) -> None:
        """``peers`` do not overlap: what Redis holds was checked when it was created.

        Raises:
            ValueError: two peers hold overlapping prefixes.
        """
        self.policy = policy
        self.peers: dict[str, Peer] = {peer.public_key: peer for peer in peers}
        #: Keys whose records cannot be used, with the reason; ``peers`` has what is known of their addresses.
        self.broken: dict[str, str] = {}
        #: Keys that the device holds and Redis does not; kept in ``peers`` so that nobody gets their addresses.
        self.foreign: set[str] = set()
        self.index = PrefixIndex()
        self.index.fill((prefix, peer.public_key) for peer in self.peers.values() for prefix in peer.allowed_ips)
        self._refuse_overlaps()
        reserved = frozenset(address.network for address in policy.own_addresses)
        self.pools = [AddressPool(pool, self.index, reserved) for pool in policy.pools]

    def _refuse_overlaps(self) -> None:
        previous: Prefix | None = None
        for prefix in sorted(self.index):
            if previous is not None and previous.overlaps(prefix):
                raise ValueError(
                    f"peers {self.index.owner(previous)} and {self.index.owner(prefix)} overlap: "
                    f"{previous} and {prefix}"
                )
            previous = prefix
        held = sum(len(peer.allowed_ips) for peer in self.peers.values())
        if held != len(self.index):
            raise ValueError("two peers hold the same prefix")

    def put(self, peer: Peer) -> None:
        """The peer is there now, in place of any earlier one of the same key."""
        self.drop(peer.public_key)
        self.peers[peer.public_key] = peer
        for prefix in peer.allowed_ips:
            self.index.add(prefix, peer.public_key)

    def drop(self, public_key: str) -> None:
        """The peer is gone; its addresses are free again. No error if it was not there."""
        peer = self.peers.pop(public_key, None)
        if peer is None:
            return
        self.broken.pop(public_key, None)
        self.foreign.discard(public_key)
        for prefix in peer.allowed_ips:
            self.index.remove(prefix)
            for pool in self.pools:
                if pool.prefix.overlaps(prefix):
                    pool.freed(prefix)

    def needs_route(self, prefix: Prefix) -> bool:
        """Whether no pool's covering route leads to this prefix."""
        return not any(pool.contains(prefix) for pool in self.policy.pools)


def build_table(policy: Policy, loaded: Loaded) -> PeerTable:
    """The table of what Redis holds. Where two records overlap, the younger is set aside as broken."""
    try:
        table = PeerTable(policy, [*loaded.peers.values(), *loaded.broken.values()])
    except ValueError:
        table = PeerTable(policy)
        oldest_first = sorted(loaded.peers.values(), key=lambda peer: (peer.created_at, peer.public_key))
        for peer in [*oldest_first, *loaded.broken.values()]:
            free = [p for p in peer.allowed_ips if not any(True for _ in table.index.overlapping(p))]
            if len(free) < len(peer.allowed_ips):
                reason = f"the record of peer {peer.public_key} holds addresses that an older peer holds"
                log.error("gateway %s: %s; left as it is", policy.gateway, reason)
                loaded.reasons.setdefault(peer.public_key, reason)
                loaded.broken[peer.public_key] = peer
            table.put(peer.model_copy(update={"allowed_ips": tuple(free)}))
    table.broken.update(loaded.reasons)
    return table
