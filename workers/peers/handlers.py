"""The planners, one for each task: what to change on the device and in Redis, and what to answer.

A planner takes checked arguments. It reads the table, and for imports the device and the staged peers. It changes
nothing, except that a list's creates are in the table afterwards (``Decision.entered``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from peerlane.config import names
from peerlane.tasks.errors import Conflict, Draining, Invalid, PeerlaneError, PoolExhausted
from peerlane.tasks.wire.bulk import ImportPeers, MendPeers, RemovePeers, StagedPeer, Victim
from peerlane.tasks.wire.model import CreatePeer, DeletePeer, parse
from peerlane.tasks.wire.registry import LANE_TASKS
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.dataplane import AddRoute, Change, DevicePeer, RemovePeer, RemoveRoute, SetPeer
from peerlane.workers.peers.adoption import NO_ALLOWED_IPS, as_stored, strangers, summary
from peerlane.workers.peers.lists import create_peers, delete_peers
from peerlane.workers.peers.plan import (
    Decision,
    Plan,
    PlanningContext,
    as_set_peer,
    check_lane,
    device_changes,
    plan_create,
    plan_delete,
)
from peerlane.workers.peers.table import PeerTable

#: Conflicts named in the refusal of an import; the rest is counted.
NAMED_CONFLICTS = 20


def create_peer(context: PlanningContext, wish: CreatePeer) -> Decision:
    """Plan a create."""
    wish = context.opened(wish)
    plan = plan_create(context.table, wish, now=context.now, state=context.state)
    return Decision((plan,), plan.changes, _answer(context, plan), wish.deadline or 0)


def delete_peer(context: PlanningContext, wish: DeletePeer) -> Decision:
    """Plan a delete."""
    plan = plan_delete(context.table, wish)
    return Decision((plan,), plan.changes, _answer(context, plan), wish.deadline or 0)


def _answer(context: PlanningContext, plan: Plan) -> dict[str, Any]:
    peer = plan.after or plan.before
    answer: dict[str, Any] = {"outcome": plan.outcome, "gateway": context.table.policy.gateway}
    answer |= peer.public() if peer is not None else {"public_key": plan.public_key}
    return {**answer, **context.facts} if plan.after is not None else answer


def remove_peers(context: PlanningContext, wish: RemovePeers) -> Decision:
    """Plan the removal of peers that a sweep found stale. Those that are no longer stale are kept, with the reason."""
    check_lane(context.table.policy, wish.gateway)
    plans: list[Plan] = []
    kept: dict[str, str] = {}
    for victim in wish.victims:
        peer = context.table.peers.get(victim.public_key)
        if reason := _why_kept(context, victim, peer):
            kept[victim.public_key] = reason
        else:
            plans.append(Plan("deleted", victim.public_key, peer, None, device_changes(context.table, peer, None)))
    result = {
        "outcome": "removed",
        "gateway": wish.gateway,
        "removed": [plan.public_key for plan in plans],
        "kept": kept,
    }
    return Decision(tuple(plans), _changes(plans), result, wish.deadline or 0)


def _why_kept(context: PlanningContext, victim: Victim, peer: StoredPeer | None) -> str | None:
    if peer is None:
        return "gone already"
    if victim.public_key in context.table.broken:
        return "its record does not parse"
    if peer.pinned:
        return "pinned"
    if peer.created_at != victim.created_at:
        return "created anew since"
    if victim.reason == "expired" and (peer.expires_at is None or peer.expires_at > context.now):
        return "not expired"
    return None


def mend_peers(context: PlanningContext, wish: MendPeers) -> Decision:
    """Plan repairs: set these keys and routes on the device as the table has them. Correct ones are not touched."""
    table = context.table
    check_lane(table.policy, wish.gateway)
    changes: list[Change] = []
    mended = {"removed": 0, "set": 0, "routes": 0} | ({"device": 1} if wish.device else {})
    for key in wish.keys:
        if key in table.broken or key == table.policy.public_key:
            continue
        peer = table.peers.get(key)
        changes.append(as_set_peer(peer) if peer is not None else RemovePeer(key))
        mended["set" if peer is not None else "removed"] += 1
    for prefix in wish.routes or ():
        wanted = prefix in table.index and table.needs_route(prefix)
        changes.append(AddRoute(prefix) if wanted else RemoveRoute(prefix))
        mended["routes"] += 1
    changes.sort(key=lambda change: not isinstance(change, (RemovePeer, RemoveRoute)))
    result = {"outcome": "mended", "gateway": wish.gateway, "mended": mended}
    return Decision((), tuple(changes), result, wish.deadline or 0, reopen=wish.device)


def import_peers(context: PlanningContext, wish: ImportPeers) -> Decision:
    """Plan an import of staged peers, or of those of the live device: all of them or none.

    Raises:
        Conflict: names up to 20 of the peers that cannot be taken, and why.
        Draining, PoolExhausted: the gateway takes no new peers, or not so many.
        Invalid: what was staged is not there, or not what the request says.
    """
    table = context.table
    check_lane(table.policy, wish.gateway)
    device = context.device()
    staged = {} if wish.live else _staged(context, wish)
    known = {key: None if key in table.foreign else table.peers.get(key) for key in staged}
    taken = [entry.wish(wish.gateway, known[key]) for key, entry in staged.items()]
    unlisted = strangers(table, device) if wish.live else None
    wishes = unlisted.wishes if unlisted is not None else taken
    plans, refused = plan_many(table, wishes, now=context.now, state=context.state)
    if unlisted is not None:
        refused |= unlisted.refused
        if wish.dry_run:
            report = summary("would_import", wish.gateway, plans, unlisted, refused)
            return Decision((), (), report, wish.deadline or 0)
        if not wish.leave_out:
            refused |= dict.fromkeys(unlisted.left_out, Invalid(NO_ALLOWED_IPS))
    plans = [_dated(plan, staged.get(plan.public_key), refused, context.now) for plan in plans]
    plans = [_of_the_device(plan, device) for plan in plans]
    for error in refused.values():
        if isinstance(error, (Draining, PoolExhausted)):
            raise type(error)(f"nothing was imported: {error}")
    if refused:
        named = "; ".join(f"{key}: {error}" for key, error in list(refused.items())[:NAMED_CONFLICTS])
        more = len(refused) - NAMED_CONFLICTS
        raise Conflict(f"nothing was imported: {named}" + (f"; and {more} more" if more > 0 else ""))
    if unlisted is not None:
        result = summary("imported", wish.gateway, plans, unlisted, {})
    else:
        outcomes = [plan.outcome for plan in plans]
        counts = {"created": outcomes.count("created"), "existing": outcomes.count("existing")}
        result = {"outcome": "imported", "gateway": wish.gateway, **counts}
    return Decision(tuple(plans), differing(_changes(plans), device), result, wish.deadline or 0)


def plan_many(
    table: PeerTable, wishes: Sequence[CreatePeer], *, now: int, state: str
) -> tuple[list[Plan], dict[str, PeerlaneError]]:
    """Plan wishes one after the other; returns the plans, and the refusals by public key."""
    trial = table.copy()
    plans: list[Plan] = []
    refused: dict[str, PeerlaneError] = {}
    for wish in wishes:
        if wish.public_key in trial.foreign:
            trial.drop(wish.public_key)  # the device has it already: this is what takes it over
        try:
            plan = plan_create(trial, wish, now=now, state=state)
        except PoolExhausted as error:
            refused[wish.public_key] = error
            break
        except PeerlaneError as error:
            refused[wish.public_key] = error
            continue
        plans.append(plan)
        if plan.after is not None:
            trial.put(plan.after)
    return plans, refused


def differing(changes: Sequence[Change], device: Mapping[str, DevicePeer]) -> tuple[Change, ...]:
    """The changes without those that set a peer as the device has it already, so that its traffic is not disturbed."""
    return tuple(change for change in changes if not (isinstance(change, SetPeer) and _holds(device, change)))


def _holds(device: Mapping[str, DevicePeer], wanted: SetPeer) -> bool:
    on_device = device.get(wanted.public_key)
    return on_device is not None and wanted == SetPeer(
        on_device.public_key, on_device.allowed_ips, on_device.preshared_key, on_device.keepalive
    )


def _of_the_device(plan: Plan, device: Mapping[str, DevicePeer]) -> Plan:
    """The plan, which names what the device holds of the peer already, though Redis does not know it."""
    on_device = device.get(plan.public_key)
    if plan.before is not None or on_device is None:
        return plan
    return replace(plan, before=as_stored(on_device), stored=False)


def _dated(plan: Plan, entry: StagedPeer | None, refused: dict[str, PeerlaneError], now: int) -> Plan:
    """The plan with the times of an import instead of the present ones."""
    if entry is None or plan.after is None:
        return plan
    named = {"expires_at": entry.expires_at, "created_at": entry.created_at}
    if plan.outcome == "created":
        times = {name: value for name, value in named.items() if value is not None}
        if entry.created_at is not None:
            times["imported_at"] = now  # it is new here, however old it is: its client has yet to come
        return replace(plan, after=plan.after._replace(**times), record=None)
    if entry.expires_at not in (None, plan.after.expires_at):
        refused[plan.public_key] = Conflict("the peer is there already with another expires_at")
    return plan


def _staged(context: PlanningContext, wish: ImportPeers) -> dict[str, StagedPeer]:
    entries = context.staged(str(wish.token))
    digest = hashlib.sha256("".join(f"{entry}\n" for entry in entries).encode()).hexdigest()
    if len(entries) != wish.count or digest != wish.digest:
        raise Invalid("what was staged for this import is not there any more, or not whole: import again")
    staged: dict[str, StagedPeer] = {}
    for entry in entries:
        try:
            fields = json.loads(entry)
        except (ValueError, RecursionError):
            raise Invalid("a staged entry is not JSON") from None
        if not isinstance(fields, dict):
            raise Invalid("a staged entry is not a JSON object")
        peer = context.opened(parse(StagedPeer, cast("dict[str, Any]", fields)))
        if peer.public_key in staged:
            raise Invalid(f"the peer {peer.public_key} is staged twice")
        staged[peer.public_key] = peer
    return staged


def _changes(plans: Sequence[Plan]) -> tuple[Change, ...]:
    return tuple(change for plan in plans for change in plan.changes)


#: Task name → the function that decides; the names are those of peerlane.tasks.wire.registry.
PLANNERS: Mapping[str, Callable[[PlanningContext, Any], Decision]] = {
    names.CREATE_PEER: create_peer,
    names.DELETE_PEER: delete_peer,
    names.CREATE_PEERS: create_peers,
    names.DELETE_PEERS: delete_peers,
    names.REMOVE_PEERS: remove_peers,
    names.MEND_PEERS: mend_peers,
    names.IMPORT_PEERS: import_peers,
}


def decide(task: str, context: PlanningContext, arguments: Mapping[str, Any]) -> Decision:
    """Decide a request.

    Raises:
        PeerlaneError: it is refused.
    """
    return PLANNERS[task](context, parse(LANE_TASKS[task].model, arguments))
