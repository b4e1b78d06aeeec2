"""Plans a create or delete: the changes of table and device, or a refusal. Pure: no I/O, no clock.

``plan_create`` and ``plan_delete`` change nothing. ``PeerTable.put`` and ``drop`` enter a plan in the table, and
``take_out`` undoes creates that were entered and are not committed.
A planner (``handlers``, ``lists``) makes the ``Decision`` about a request of its ``Plan``s, from a ``PlanningContext``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peerlane.tasks.errors import Conflict, Draining, Invalid, PeerlaneError, PoolExhausted, StorageError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.bulk import StagedPeer
from peerlane.tasks.wire.model import CreatePeer, DeletePeer, Outcome
from peerlane.tasks.wire.psk_cipher import PskCipher, Unsealable
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.dataplane import AddRoute, Change, DevicePeer, RemovePeer, RemoveRoute, SetPeer
from peerlane.workers.peers.table import PeerTable, Policy

Wish = TypeVar("Wish", CreatePeer, StagedPeer)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a request. No ``changes`` and ``before is after``: there is nothing to do.

    ``before is after`` with changes: the peer exists, and still has to be added to the device.
    """

    outcome: Outcome
    public_key: str
    before: StoredPeer | None
    after: StoredPeer | None
    changes: tuple[Change, ...] = field(default=())
    #: Whether Redis holds a record of ``before``. Of a peer that only the device has there is none: undoing the plan
    #: leaves it on the device.
    stored: bool = True
    #: The record of ``after``, with its preshared key in clear, where it has been made already.
    record: str | None = field(default=None, repr=False)
    #: Addresses that Redis assigns to the peer and that it does not have; the commit frees them.
    freed: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about a request."""

    plans: tuple[Plan, ...]
    changes: tuple[Change, ...]
    result: Mapping[str, Any]
    #: In ms on Redis' clock; 0 for none.
    deadline: int = 0
    #: Whether the device itself is to be made what it should be, before the changes.
    reopen: bool = False
    #: Of a list: which of its wishes each plan is for. One that cannot be carried out does not touch the others.
    indexes: tuple[int, ...] = ()
    #: Whether the creates among ``plans`` are in the table already, as a list's are, though not committed.
    entered: bool = False

    @property
    def removes(self) -> bool:
        """Whether a peer's session would end."""
        return any(plan.after is None and plan.before is not None for plan in self.plans)


@dataclass(frozen=True, slots=True)
class PlanningContext:
    """The input of planners."""

    table: PeerTable
    #: Milliseconds since 1970 on Redis' clock.
    now_ms: int
    #: ``active`` or ``draining``.
    state: str
    #: What results say of the gateway.
    facts: Mapping[str, str]
    #: Reads the device's peers.
    device: Callable[[], Mapping[str, DevicePeer]]
    #: Reads what was staged under a token.
    staged: Callable[[str], Sequence[str]]
    #: Opens preshared keys that were sealed on their way here.
    cipher: PskCipher = field(default_factory=PskCipher)
    #: Wishes of a list, by index, that the device has refused a moment ago: they are answered with that.
    refused: Mapping[int, PeerlaneError] = field(default_factory=dict[int, PeerlaneError])

    @property
    def now(self) -> int:
        """In seconds, as records have it."""
        return self.now_ms // 1000

    def opened(self, wish: Wish) -> Wish:
        """A wish with its preshared key in clear.

        Raises:
            Invalid: no key of ours opens it.
        """
        if wish.preshared_key is None:
            return wish
        try:
            return self.cipher.opened(self.table.policy.gateway, wish)
        except Unsealable as error:
            raise Invalid(f"peer {wish.public_key}: {error}") from None


def as_set_peer(peer: StoredPeer) -> SetPeer:
    """The change that sets the peer on the device."""
    return SetPeer(peer.public_key, frozenset(peer.allowed_ips), peer.preshared_key, peer.keepalive)


def device_changes(table: PeerTable, before: StoredPeer | None, after: StoredPeer | None) -> tuple[Change, ...]:
    """The changes of the device from ``before`` to ``after``, both with one public key.

    A peer that is still coming is not on the device; its routes are.
    """
    if before is None and after is not None:
        return (as_set_peer(after), *[AddRoute(p) for p in after.allowed_ips if table.needs_route(p)])
    changes: list[Change] = []
    old = {p for p in before.allowed_ips if table.needs_route(p)} if before else set[Prefix]()
    new = {p for p in after.allowed_ips if table.needs_route(p)} if after else set[Prefix]()
    changes += [RemoveRoute(prefix) for prefix in sorted(old - new)]
    there = None if before is None or before.public_key in table.coming else before
    if after is not None:
        if there is None or as_set_peer(there) != as_set_peer(after):
            changes.append(as_set_peer(after))
    elif there is not None:
        changes.append(RemovePeer(there.public_key))
    changes += [AddRoute(prefix) for prefix in sorted(new - old)]
    return tuple(changes)


def plan_create(table: PeerTable, wish: CreatePeer, *, now: int, state: str = "active") -> Plan:
    """Plan a create. ``now`` is in seconds; ``state`` is the gateway's.

    A peer that has expired is made anew, with another wish too; it keeps its addresses where none are asked for.
    So does one that was ``begun``: its caller may have been told them.

    Raises:
        Invalid: the gateway's own key, or addresses that the gateway does not serve.
        Conflict: the key is there with another wish, or addresses overlap another peer's or the gateway's.
        PoolExhausted: no address, or no room for another peer.
        Draining: the gateway takes no new peers.
        StorageError: the stored record of this key does not parse.
    """
    policy = table.policy
    check_lane(policy, wish.gateway)
    if wish.public_key == policy.public_key:
        raise Invalid(f"that is the public key of the gateway {policy.gateway} itself; make a key pair for the peer")
    begun = wish.public_key in table.begun
    if not begun and (reason := table.broken.get(wish.public_key)) is not None:
        raise StorageError(f"{reason}; delete the peer to be rid of it, or mend the record and reconcile")
    holder = table.peers.get(wish.public_key)
    present = None if begun else holder
    # An expired peer counts as gone before a sweep has removed it: no caller is answered ``existing`` for it.
    if present is not None and not _over(present, now):
        if differs := _differences(present, wish):
            raise Conflict(
                f"the peer is there already with another {', '.join(differs)}; delete it first or ask for the same"
            )
        settled = (as_set_peer(present),) if present.public_key in table.coming else ()
        return Plan("existing", wish.public_key, present, present, settled)
    if state != "active":
        raise draining(policy)
    if holder is None and len(table.peers) >= policy.max_peers:
        raise PoolExhausted(f"the gateway {policy.gateway} is full: it holds {len(table.peers)} peers, its limit")
    if wish.allowed_ips is not None:
        allowed_ips = wish.allowed_ips
        for prefix in allowed_ips:
            _check_served(table, prefix, wish.public_key)
    else:
        # Of what was begun, Redis may have given an address to another peer since.
        whole = holder is not None and (not begun or len(holder.allowed_ips) >= len(table.pools_of))
        allowed_ips = holder.allowed_ips if holder is not None and whole else _allocate(table)
    peer = StoredPeer(
        public_key=wish.public_key,
        allowed_ips=allowed_ips,
        preshared_key=wish.preshared_key,
        keepalive=wish.keepalive,
        ttl=wish.ttl,
        expires_at=None if wish.ttl is None else now + wish.ttl,
        labels=wish.labels,
        pinned=wish.pinned,
        created_at=now,
    )
    return Plan("created", peer.public_key, present, peer, device_changes(table, present, peer), record=peer.record())


def _over(peer: StoredPeer, now: int) -> bool:
    return not peer.pinned and peer.expires_at is not None and peer.expires_at <= now


def draining(policy: Policy) -> Draining:
    """The refusal of a gateway that is being emptied."""
    return Draining(f"the gateway {policy.gateway} is being drained and takes no new peers; use another gateway")


def take_out(table: PeerTable, plans: Sequence[Plan]) -> None:
    """Undo the creates of plans that were entered in the table one after the other."""
    for plan in reversed(plans):
        if plan.before is plan.after or plan.after is None:
            continue
        if plan.before is not None:
            table.put(plan.before)
        else:
            table.drop(plan.public_key)


def plan_delete(table: PeerTable, wish: DeletePeer) -> Plan:
    """Plan a delete. Deleting a peer that does not exist is ``absent``, no error.

    Raises:
        Invalid: the wish is for another gateway.
    """
    check_lane(table.policy, wish.gateway)
    present = table.peers.get(wish.public_key)
    if present is None:
        return Plan("absent", wish.public_key, None, None)
    stored = wish.public_key not in table.foreign
    return Plan("deleted", wish.public_key, present, None, device_changes(table, present, None), stored)


def check_lane(policy: Policy, gateway: str) -> None:
    """Refuse a request for another gateway.

    Raises:
        Invalid: names both.
    """
    if gateway != policy.gateway:
        raise Invalid(f"this lane serves the gateway {policy.gateway}, not {gateway}")


def _differences(present: StoredPeer, wish: CreatePeer) -> list[str]:
    """The fields in which the wish differs from ``present``, the existing peer. Addresses count only if it has some."""
    pairs: Mapping[str, tuple[object, object]] = {
        "allowed_ips": (present.allowed_ips, wish.allowed_ips or present.allowed_ips),
        "preshared_key": (present.preshared_key, wish.preshared_key),
        "keepalive": (present.keepalive, wish.keepalive),
        "ttl": (present.ttl, wish.ttl),
        "labels": (present.labels, wish.labels),
        "pinned": (present.pinned, wish.pinned),
    }
    return [name for name, (have, want) in pairs.items() if have != want]


def _allocate(table: PeerTable) -> tuple[Prefix, ...]:
    """One address for each family that has pools, from the first pool of the family with room."""
    prefixes: list[Prefix] = []
    for version, pools in table.pools_of.items():
        for pool in pools:
            if (free := pool.smallest_free()) is not None:
                prefixes.append(free)
                break
        else:
            full = ", ".join(str(pool.prefix) for pool in pools)
            raise PoolExhausted(f"no free IPv{version} address is left in {full}; delete peers or add a pool")
    if not prefixes:
        raise Invalid("this gateway has no pools: name the allowed_ips")
    return tuple(prefixes)


def _check_served(table: PeerTable, prefix: Prefix, public_key: str) -> None:
    policy = table.policy
    served = (*policy.pools, *policy.serves)
    if not any(area.contains(prefix) for area in served):
        listed = ", ".join(str(area) for area in served) or "nothing"
        raise Invalid(
            f"allowed_ips: {prefix} is outside what the gateway {policy.gateway} serves ({listed});"
            " its PEERLANE_SERVES can add to that"
        )
    for own in policy.own_addresses:
        if prefix.contains(own):
            raise Conflict(f"allowed_ips: {prefix} holds the gateway's own address {own.address}")
    present = table.peers.get(public_key)
    for other in table.index.overlapping(prefix):
        if present is not None and other in present.allowed_ips:
            continue
        raise Conflict(f"allowed_ips: {prefix} overlaps {other}, which another peer holds")
