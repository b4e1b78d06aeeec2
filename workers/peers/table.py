"""The peer table in memory: a gateway's peers and the prefixes they hold, built from Redis' data. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import StoredPeer, raw_key
from peerlane.workers.dataplane import Change, SetPeer
from peerlane.workers.peers.peer_records import PeerRecords
from peerlane.workers.peers.prefixes import AddressPool, PrefixIndex

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one gateway: pools, served prefixes, limits."""

    gateway: str
    public_key: str
    pools: tuple[Prefix, ...]
    serves: tuple[Prefix, ...] = ()
    #: The gateway's own addresses, as host prefixes.
    own_addresses: tuple[Prefix, ...] = ()
    max_peers: int = 1 << 20


@dataclass(slots=True)
class Loaded:
    """The peers loaded from Redis. ``broken`` records do not parse: they and their addresses stay as they are."""

    peers: PeerRecords = field(default_factory=PeerRecords)
    index: PrefixIndex = field(default_factory=PrefixIndex)
    #: Whether two of ``peers`` hold overlapping prefixes; ``index`` then holds one of each.
    overlapping: bool = False
    broken: dict[str, StoredPeer] = field(default_factory=dict[str, StoredPeer])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    #: Peers whose preshared key is not stored as it would be now: in clear, or sealed with an old key.
    outdated: list[str] = field(default_factory=list[str])
    #: When, in seconds since 1970 on Redis' clock.
    at: int = 0

    def take(self, peer: StoredPeer, record: bytes | None = None) -> None:
        """Add a peer; ``record`` is its stored record. A peer that comes twice is added once."""
        if self._put(peer, record):
            for prefix in peer.allowed_ips:
                if not self.index.take(prefix):
                    self.overlapping = True

    def _put(self, peer: StoredPeer, record: bytes | None) -> bool:
        """Add the peer itself; returns whether it was new."""
        return self.peers.add(peer, record)


class Coming:
    """Keys of peers to add, in order. Belongs to the writer's thread; any thread may read its length."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """``keys`` are those of 32 bytes; what comes first is added first."""
        self._order = list(reversed(keys))
        self._left = set(keys)

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, public_key: str) -> bool:
        return bool(self._left) and raw_key(public_key) in self._left

    def pop(self, count: int) -> list[bytes]:
        """The next keys. They stay in the set until ``added``, ``made`` or ``discard`` removes them."""
        keys: list[bytes] = []
        while self._order and len(keys) < count:
            raw = self._order.pop()
            if raw in self._left:
                keys.append(raw)
        return keys

    def added(self, keys: Iterable[bytes]) -> None:
        """Remove peers that have been popped, and are on the device now, or not in the table any more."""
        self._left.difference_update(keys)
        if not self._left:
            self._order.clear()

    def discard(self, public_key: str) -> None:
        """Remove a peer that is on the device now, or will never be."""
        if self._left and (raw := raw_key(public_key)) is not None:
            self._left.discard(raw)
            if not self._left:
                self._order.clear()

    def made(self, changes: Iterable[Change]) -> None:
        """Remove the peers that these changes have set on the device."""
        if self._left:
            for change in changes:
                if isinstance(change, SetPeer):
                    self.discard(change.public_key)


class PeerTable:
    """The gateway's peers, and the prefixes they hold. Only the writer uses it."""

    def __init__(self, policy: Policy, peers: Iterable[StoredPeer] = ()) -> None:
        """``peers`` must not overlap: Redis' records were checked when they were created.

        Raises:
            ValueError: two peers hold overlapping prefixes.
        """
        self.policy = policy
        self.peers = PeerRecords()
        #: Keys whose records cannot be used, with the reason; ``peers`` has what is known of their addresses.
        self.broken: dict[str, str] = {}
        #: Keys that the device holds and Redis does not; kept in ``peers`` so that no other peer gets their addresses.
        self.foreign: set[str] = set()
        #: Those of ``foreign`` that an earlier writer was creating when Redis lost data: a create of one takes it over.
        self.begun: set[str] = set()
        #: Peers that the device is still to be given.
        self.coming = Coming()
        self._hold(PrefixIndex())
        for peer in peers:
            self.peers.put(peer)
            for prefix in peer.allowed_ips:
                if (other := next(self.index.overlapping(prefix), None)) is not None:
                    same = "two peers hold the same prefix" if other == prefix else "two peers overlap"
                    raise ValueError(f"{same}: {min(other, prefix)} and {max(other, prefix)}")
                self.index.add(prefix)

    def _hold(self, index: PrefixIndex) -> None:
        policy = self.policy
        reserved = frozenset(address.network for address in policy.own_addresses)
        self.index = index
        self.pools = [AddressPool(pool, index, reserved) for pool in policy.pools]
        #: The pools of each family that has any.
        self.pools_of = {
            version: pools
            for version in (4, 6)
            if (pools := [pool for pool in self.pools if pool.prefix.version == version])
        }
        self._covered = [(pool.version, pool.network, pool.last, pool.length) for pool in policy.pools]

    def copy(self) -> PeerTable:
        """A table to try plans on."""
        other = PeerTable(self.policy)
        other.peers, other.coming = self.peers.copy(), self.coming
        other.broken, other.foreign, other.begun = dict(self.broken), set(self.foreign), set(self.begun)
        other._hold(self.index.copy())
        return other

    @classmethod
    def of(cls, policy: Policy, loaded: Loaded) -> PeerTable:
        """The table of loaded peers without overlaps; takes ``loaded`` over."""
        table = cls(policy)
        table.peers = loaded.peers
        table._hold(loaded.index)
        return table

    def put(self, peer: StoredPeer, record: str | None = None) -> None:
        """Put a peer in place of any with the same key. ``record`` is the peer's, if it has been made already."""
        self._leave(peer.public_key)
        self.add(peer, record)

    def add(self, peer: StoredPeer, record: str | None = None) -> None:
        """As ``put``, a peer whose key is not there."""
        self.peers.put(peer, record)
        for prefix in peer.allowed_ips:
            self.index.add(prefix)

    def keep(self, peer: StoredPeer, reason: str) -> None:
        """Keep a peer without a usable record as it is; no other peer gets its addresses."""
        self.drop(peer.public_key)
        taken = tuple(prefix for prefix in peer.allowed_ips if self.index.take(prefix))
        self.peers.keep(peer._replace(allowed_ips=taken))
        self.broken[peer.public_key] = reason

    def drop(self, public_key: str) -> None:
        """Remove a peer and free its addresses. No error if it was not there."""
        if self._leave(public_key):
            self.peers.drop(public_key)
            self.coming.discard(public_key)

    def _leave(self, public_key: str) -> bool:
        """Free a peer's addresses; returns whether it was there."""
        peer = self.peers.get(public_key)
        if peer is None:
            return False
        self.broken.pop(public_key, None)
        self.foreign.discard(public_key)
        self.begun.discard(public_key)
        for prefix in peer.allowed_ips:
            self.index.remove(prefix)
            for pool in self.pools:
                if pool.prefix.overlaps(prefix):
                    pool.freed(prefix)
        return True

    def needs_route(self, prefix: Prefix) -> bool:
        """Whether this prefix needs its own route, because no pool's covering route includes it."""
        version, network, length = prefix
        for family, first, last, wide in self._covered:
            if family == version and first <= network <= last and wide <= length:
                return False
        return True

    def routed(self) -> set[Prefix]:
        """Every held prefix that needs its own route."""
        return set(self.index.outside(self.policy.pools))


def build_table(policy: Policy, loaded: Loaded) -> PeerTable:
    """The table of the loaded peers. If two records overlap, the younger counts as broken."""
    if not loaded.overlapping:
        table = PeerTable.of(policy, loaded)
    else:
        table = PeerTable(policy)
        for peer in sorted(loaded.peers.values(), key=lambda peer: (peer.created_at, peer.public_key)):
            if any(True for prefix in peer.allowed_ips for _ in table.index.overlapping(prefix)):
                reason = f"the record of peer {peer.public_key} holds addresses that an older peer holds"
                log.error("gateway %s: %s; left as it is", policy.gateway, reason)
                table.keep(peer, reason)
            else:
                table.put(peer)
    for peer in loaded.broken.values():
        table.keep(peer, loaded.reasons[peer.public_key])
    return table
