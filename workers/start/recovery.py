"""Recovery: reads the device and makes it equal to Redis, at a writer's start and after a device was lost.

First it repairs what is wrong on the device, then it adds the peers that were seen last. If there are more, ``filling``
adds the others while the lane is served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from peerlane.tasks.errors import KernelError, PeerlaneError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import CreatePeer
from peerlane.tasks.wire.stored_peer import StoredPeer, text_key
from peerlane.workers import failpoints
from peerlane.workers.dataplane import AddRoute, Change, DataPlane, DevicePeer, RemovePeer, RemoveRoute
from peerlane.workers.peers.adoption import adoptable
from peerlane.workers.peers.drift import MANY_UNKNOWN, Drift, Unknown, counted, differences, route_drifts
from peerlane.workers.peers.handlers import plan_many
from peerlane.workers.peers.plan import Plan, as_set_peer
from peerlane.workers.peers.table import Coming, Loaded, PeerTable, Policy, build_table

log = logging.getLogger(__name__)

#: Changes sent to the device between two reports of progress.
BATCH = 256

#: So many peers are back before the lane is served, those that were seen last. It is some tenths of a second's work.
AT_ONCE = 4_096

#: Reasons for which a peer is kept.
_KEPT_BEFORE = "Redis does not know it, and this writer has kept it before"
_PERHAPS_CONFIRMED = "Redis does not know it, and has lost data while it was being created"

#: Fills in when each of these keys (of 32 bytes) was last seen, in seconds.
Seen = Callable[[dict[bytes, int]], None]

#: (done, total) changes.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The result of a recovery: the peer table, and what was repaired."""

    table: PeerTable
    #: Drift by kind; all of it has been mended but for unknown peers that were kept, and peers that are still coming.
    mended: Mapping[str, int] = field(default_factory=dict[str, int])
    #: Unknown peers that stay on the device, by public key, with the reason.
    kept: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Plans for unknown peers to take over; the writer commits them.
    adopted: Sequence[Plan] = ()


def recover(
    policy: Policy,
    loaded: Loaded,
    plane: DataPlane,
    *,
    unknown: Unknown = "remove",
    first_start: bool = False,
    lost_data: bool = False,
    in_hand: Collection[str] = (),
    begun: Collection[str] = (),
    kept_before: Collection[str] = (),
    seen: Seen | None = None,
    progress: Progress | None = None,
    at_once: int | None = None,
) -> Recovered:
    """Make the device equal to Redis by the smallest changes; peers that are not changed keep their sessions.

    ``unknown`` says what becomes of peers that only the device knows; at a gateway's ``first_start`` none is removed:
    another program may have used the device before. ``in_hand`` are keys that a writer was about to create: where only
    the device knows them, they go, however many they are. ``begun`` are such keys if Redis has lost data: they may have
    been confirmed, so they stay, and the table's ``begun`` has them. ``kept_before`` are peers that this writer kept at
    an earlier recovery: they stay. ``seen`` tells when each peer was last seen: those seen last come back first.
    Peers beyond ``at_once`` (``AT_ONCE``) are not added yet, but in the table's ``coming``.

    Raises:
        KernelError: the device could not be read or changed. Not where a peer's route leads elsewhere: that is logged.
    """
    table = build_table(policy, loaded)
    device = plane.peers()
    routes = plane.routes()
    differing = differences(table, device.values(), frozenset(table.broken))
    unknown_keys = [drift.subject for drift in differing.first if drift.kind == "unknown"]
    strangers = [key for key in unknown_keys if key not in in_hand and key not in begun]
    kept: dict[str, str] = {}
    adopted: Sequence[Plan] = ()
    if unknown == "adopt":
        adopted, kept = _adopted(table, [device[key] for key in strangers], loaded.at)
    elif unknown == "keep":
        kept = dict.fromkeys(strangers, "Redis does not know it, and PEERLANE_UNKNOWN_PEERS is keep")
    elif first_start:
        kept = dict.fromkeys(strangers, "Redis does not know it, and this is the gateway's first start")
    elif lost_data:
        kept = dict.fromkeys(strangers, "Redis does not know it, and has lost data")
    elif len(strangers) > MANY_UNKNOWN and len(strangers) * 2 > len(device):
        kept = dict.fromkeys(strangers, "Redis does not know it, nor most others: has Redis lost its data?")
    if not kept and unknown != "adopt":
        kept = {key: _KEPT_BEFORE for key in strangers if key in kept_before}
    kept |= {key: _PERHAPS_CONFIRMED for key in unknown_keys if key in begun}
    staying = {*kept, *(plan.public_key for plan in adopted)}
    # Kept peers keep their routes: those of single peers were made by an earlier writer for them.
    theirs = {str(prefix) for key in staying for prefix in device[key].allowed_ips}
    alone = {"unknown": staying, "unknown_route": theirs}
    first, later = (
        [d for d in part if d.subject not in alone.get(d.kind, ())]
        for part in (differing.first, route_drifts(table.routed(), routes))
    )
    later += _routes_of_adopted(adopted, routes)
    mended = counted([*first, *later]) | ({"missing": len(differing.missing)} if differing.missing else {})
    missing = _newest_first(differing.missing, seen)
    count = AT_ONCE if at_once is None else at_once
    hot, cold = missing[:count], missing[count:]
    _change(
        plane,
        chain(
            (drift.change for drift in first),
            (as_set_peer(table.peers[text_key(raw)]) for raw in hot),
            (drift.change for drift in later),
        ),
        len(first) + len(hot) + len(later),
        progress,
    )
    table.coming = Coming(cold)
    for key in kept:
        keep(table, device[key], kept[key])
    table.begun.update(key for key in kept if key in begun)
    return Recovered(table, mended, kept, adopted)


def _change(plane: DataPlane, changes: Iterator[Change], total: int, progress: Progress | None) -> None:
    for done in range(0, total, BATCH):
        _make(plane, list(islice(changes, BATCH)))
        failpoints.reach("between_batches")
        if progress is not None:
            progress(min(done + BATCH, total), total)


def _make(plane: DataPlane, changes: Sequence[Change]) -> None:
    """Make the changes, except routes that the kernel refuses because another program has one for the prefix."""
    try:
        plane.apply(changes)
    except KernelError:
        if not any(isinstance(change, AddRoute) for change in changes) or not plane.alive():
            raise
    else:
        return
    for change in changes:  # each says what should be, so that making it twice does no harm
        try:
            plane.apply([change])
        except KernelError as error:
            if not isinstance(change, AddRoute):
                raise
            log.error("the route to the peer with %s could not be made: %s", change.prefix, error)


def _newest_first(missing: list[bytes], seen: Seen | None) -> list[bytes]:
    """The peers in the order in which to add them: those seen last come first."""
    if seen is None or len(missing) <= BATCH:
        return missing
    last = dict.fromkeys(missing, 0)
    seen(last)
    return sorted(missing, key=last.__getitem__, reverse=True)


def settling(table: PeerTable, plan: Plan, truth: StoredPeer | None) -> list[Change]:
    """The changes that make the device hold ``truth`` for the plan's peer, whatever part of the plan was applied."""
    prefixes = {p for peer in (plan.before, plan.after) if peer is not None for p in peer.allowed_ips}
    routed = {p for p in prefixes if table.needs_route(p)}
    wanted = {p for p in truth.allowed_ips if table.needs_route(p)} if truth else set[Prefix]()
    changes: list[Change] = [RemoveRoute(prefix) for prefix in sorted(routed - wanted)]
    if truth is None:
        changes.append(RemovePeer(plan.public_key))
    elif plan.stored or plan.after is None or as_set_peer(plan.after) != as_set_peer(truth):
        changes.append(as_set_peer(truth))
    return [*changes, *(AddRoute(prefix) for prefix in sorted(wanted))]


def _adopted(table: PeerTable, strangers: Sequence[DevicePeer], now: int) -> tuple[Sequence[Plan], dict[str, str]]:
    wishes: list[CreatePeer] = []
    kept: dict[str, str] = {}
    for peer in strangers:
        try:
            wishes.append(adoptable(table.policy.gateway, peer))
        except PeerlaneError as error:
            kept[peer.public_key] = str(error)
    plans, refused = plan_many(table, wishes, now=now, state="active")
    kept |= {key: str(error) for key, error in refused.items()}
    planned = {plan.public_key for plan in plans}
    kept |= {wish.public_key: "not reached" for wish in wishes if wish.public_key not in planned | set(kept)}
    return plans, kept


def _routes_of_adopted(adopted: Sequence[Plan], there: Collection[Prefix]) -> list[Drift]:
    """The routes that adopted peers lack; the peers themselves are left alone."""
    wanted = [change for plan in adopted for change in plan.changes if isinstance(change, AddRoute)]
    return [Drift("missing_route", str(change.prefix), change) for change in wanted if change.prefix not in there]


def keep(table: PeerTable, unknown: DevicePeer | StoredPeer, reason: str) -> None:
    """Enter a peer of the device that Redis does not know, so that no other peer gets its addresses."""
    peer = StoredPeer(unknown.public_key, tuple(sorted(unknown.allowed_ips)), unknown.preshared_key, unknown.keepalive)
    table.keep(peer, f"the device holds this peer, {reason}")
    table.foreign.add(unknown.public_key)
