"""The start of a writer, and of a device that was lost: load the hashes, read the device, make the device equal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.wire.model import CreatePeer, Peer
from peerlane.tasks.wire.prefix import Prefix
from peerlane.workers import failpoints
from peerlane.workers.dataplane import AddRoute, Change, DataPlane, DevicePeer, RemovePeer, RemoveRoute
from peerlane.workers.peers.adoption import adoptable
from peerlane.workers.peers.drift import MANY_UNKNOWN, Drift, Unknown, counted, drifts
from peerlane.workers.peers.handlers import plan_many
from peerlane.workers.peers.plan import Plan, as_set_peer
from peerlane.workers.peers.table import Loaded, PeerTable, Policy, build_table

#: Changes sent to the device between two reports of progress.
BATCH = 256

#: (done, total) changes.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The peer table, and what was found and mended on the way."""

    table: PeerTable
    #: Drift by kind; all of it has been mended but for unknown peers that were kept.
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
    seen: Callable[[], Mapping[str, float]] | None = None,
    progress: Progress | None = None,
) -> Recovered:
    """Make the device hold exactly what Redis holds, by the smallest changes; untouched peers keep their sessions.

    ``unknown`` says what becomes of peers that only the device knows; at a gateway's ``first_start`` none is removed:
    the device may have been somebody's before. ``seen`` tells when each peer was last seen:
    those seen last come back first.

    Raises:
        KernelError: the device could not be read or changed.
    """
    table = build_table(policy, loaded)
    device = plane.peers()
    routes = plane.routes()
    found = drifts(table, device, routes, frozenset(table.broken))
    strangers = [drift.subject for drift in found if drift.kind == "unknown"]
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
    staying = {*kept, *(plan.public_key for plan in adopted)}
    # Who stays can be reached: routes of single peers are what an earlier writer made for them.
    theirs = {str(prefix) for key in staying for prefix in device[key].allowed_ips}
    alone = {"unknown": staying, "unknown_route": theirs}
    todo = [drift for drift in found if drift.subject not in alone.get(drift.kind, ())]
    todo += _routes_of_adopted(adopted, routes)
    if seen is not None and sum(drift.kind == "missing" for drift in todo) > BATCH:
        todo = _last_seen_first(todo, seen())
    for start in range(0, len(todo), BATCH):
        plane.apply([drift.change for drift in todo[start : start + BATCH]])
        failpoints.reach("between_batches")
        if progress is not None:
            progress(min(start + BATCH, len(todo)), len(todo))
    for key in kept:
        keep(table, device[key], kept[key])
    return Recovered(table, counted(todo), kept, adopted)


def settling(table: PeerTable, plan: Plan, truth: Peer | None) -> list[Change]:
    """What makes the device hold ``truth`` of the plan's peer, whatever part of the plan was carried out."""
    prefixes = {p for peer in (plan.before, plan.after) if peer is not None for p in peer.allowed_ips}
    routed = {p for p in prefixes if table.needs_route(p)}
    wanted = {p for p in truth.allowed_ips if table.needs_route(p)} if truth else set[Prefix]()
    changes: list[Change] = [RemoveRoute(prefix) for prefix in sorted(routed - wanted)]
    changes.append(as_set_peer(truth) if truth else RemovePeer(plan.public_key))
    return [*changes, *(AddRoute(prefix) for prefix in sorted(wanted))]


def _adopted(table: PeerTable, strangers: Sequence[DevicePeer], now: int) -> tuple[Sequence[Plan], dict[str, str]]:
    wishes: list[CreatePeer] = []
    kept: dict[str, str] = {}
    for held in strangers:
        try:
            wishes.append(adoptable(table.policy.gateway, held))
        except PeerlaneError as error:
            kept[held.public_key] = str(error)
    plans, refused = plan_many(table, wishes, now=now, state="active")
    kept |= {key: str(error) for key, error in refused.items()}
    planned = {plan.public_key for plan in plans}
    kept |= {wish.public_key: "not reached" for wish in wishes if wish.public_key not in planned | set(kept)}
    return plans, kept


def _routes_of_adopted(adopted: Sequence[Plan], there: Collection[Prefix]) -> list[Drift]:
    """The routes that adopted peers lack; the peers themselves are left alone."""
    wanted = [change for plan in adopted for change in plan.changes if isinstance(change, AddRoute)]
    return [Drift("missing_route", str(change.prefix), change) for change in wanted if change.prefix not in there]


def keep(table: PeerTable, held: DevicePeer | Peer, reason: str) -> None:
    """A peer of the device that is no peer of ours: nobody else gets its addresses."""
    free = [p for p in sorted(held.allowed_ips) if not any(True for _ in table.index.overlapping(p))]
    table.put(
        Peer.model_construct(
            public_key=held.public_key,
            allowed_ips=tuple(free),
            preshared_key=held.preshared_key,
            keepalive=held.keepalive,
            labels={},
        )
    )
    table.foreign.add(held.public_key)
    table.broken[held.public_key] = f"the device holds this peer, {reason}"


def _last_seen_first(todo: Sequence[Drift], seen: Mapping[str, float]) -> list[Drift]:
    rest = [drift for drift in todo if drift.kind not in ("missing", "missing_route", "unknown_route")]
    missing = sorted(
        (drift for drift in todo if drift.kind == "missing"), key=lambda drift: -seen.get(drift.subject, 0.0)
    )
    routes = [drift for drift in todo if drift.kind in ("missing_route", "unknown_route")]
    return [*rest, *missing, *routes]
