"""Restores peers from the writer's table if Redis has lost commits that are no longer in the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from peerlane.config import names
from peerlane.tasks.status.alarms import raise_alarm
from peerlane.tasks.wire.stored_peer import text_key
from peerlane.workers.peers.plan import Plan
from peerlane.workers.peers.table import Loaded, PeerTable
from peerlane.workers.start.recovery import Recovered
from peerlane.workers.start.startup_commits import restore_lost
from peerlane.workers.store.journal import Lost
from peerlane.workers.store.procedures import Answer
from peerlane.workers.store.retry import RetryUntilShutdown
from peerlane.workers.store.store import Store

log = logging.getLogger(__name__)

#: The alarm of a Redis that has lost more than could be made true again.
LOST_DATA = "redis_lost_data"


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences between a table that has every commit and Redis."""

    #: Confirmed and not in Redis.
    created: list[Plan]
    #: Deleted, and back in Redis.
    deleted: list[Plan]
    #: In both, with another wish.
    changed: list[Plan]
    #: In both, with other addresses: the removal of what Redis has. They are in ``created`` too: two of them may have
    #: changed places.
    moved: list[Plan]


def differences(table: PeerTable, loaded: Loaded, but: Collection[str] = ()) -> Differences:
    """Compare table and Redis by public key, without the keys of ``but``, and without unusable and unknown peers.

    A delete of ``but`` stands all the same where another peer was confirmed one of its peer's addresses since.
    """
    left = {*but, *table.broken, *table.foreign, *loaded.broken}
    lost = Differences([], [], [], [])
    # Records are compared first: of a million peers nearly all are the same, and none of these is read.
    for raw in table.peers.raw_keys():
        record = loaded.peers.record(raw)
        if record == table.peers.record(raw) or (key := text_key(raw)) in left:
            continue
        ours = table.peers[key]
        # "existing": none of them is a new peer, so a gateway that drains takes them too.
        theirs = None if record is None else loaded.peers[key]
        if theirs is None or theirs.allowed_ips != ours.allowed_ips:
            lost.created.append(Plan("existing", key, None, ours))
            if theirs is not None:
                lost.moved.append(Plan("deleted", key, theirs, None))
        elif theirs != ours:
            lost.changed.append(Plan("existing", key, theirs, ours))
    given = {prefix for plan in lost.created if plan.after is not None for prefix in plan.after.allowed_ips}
    for raw in loaded.peers.raw_keys():
        if table.peers.record(raw) is not None:
            continue
        key = text_key(raw)
        if key not in left or (key in but and not given.isdisjoint(loaded.peers[key].allowed_ips)):
            lost.deleted.append(Plan("deleted", key, loaded.peers[key], None))
    return lost


def make_up_for(
    store: Store,
    lost: Lost,
    differing: Differences,
    commit: Callable[[str, str, Sequence[Plan]], Answer],
    until_answered: RetryUntilShutdown,
) -> None:
    """Make Redis equal to the table again, and raise an alarm that counts what was lost."""
    if not lost.incomplete:
        log.warning("gateway %s: %d outcomes were cancelled while Redis had lost them", store.gateway, lost.disputed)
        return
    # What gives addresses up comes first.
    failed = sum(
        restore_lost(store.gateway, plans, commit)
        for plans in (differing.deleted, differing.moved, differing.changed, differing.created)
    )
    put_back, removed = len(differing.created) + len(differing.changed), len(differing.deleted)
    left = f"; {failed} of these could not be, and follow Redis" if failed else ""
    _raise(
        store,
        f"Redis has lost {lost.outcomes} outcomes that are older than what the writer keeps: their answers are gone. "
        f"Creates lost: {put_back}, put back from the writer's memory; deletes lost: {removed}, carried out "
        f"again{left}",
        {"outcomes": lost.outcomes, "creates": put_back, "deletes": removed, "failed": failed},
        until_answered,
    )


def tell_at_start(store: Store, lost: Lost, done: Recovered, until_answered: RetryUntilShutdown) -> None:
    """Raise an alarm at a start: the writer that made the lost commits has died, and its table with it."""
    creates, deletes = len(done.kept), done.mended.get("missing", 0)
    begin = f"Redis has lost at least {lost.outcomes} outcomes that an earlier writer here had confirmed"
    if lost.unknown:
        begin = (
            f"Redis knows nothing of this gateway's earlier writers, which had confirmed at least {lost.unknown} "
            "outcomes: it is another Redis, or has lost its data"
        )
    _raise(
        store,
        f"{begin}. Creates lost: the device holds {creates} peers that Redis does not know, and keeps them; deletes "
        f"lost: at most {deletes}, the peers in Redis that the device did not hold",
        {"outcomes": lost.outcomes or lost.unknown, "creates": creates, "deletes_at_most": deletes},
        until_answered,
    )


def is_told(store: Store) -> bool:
    """Whether the alarm of an earlier loss stands: no person has looked yet at what was kept then."""
    return bool(store.redis.hexists(names.alarms_key(store.gateway), LOST_DATA))


def _raise(store: Store, message: str, detail: Mapping[str, int], until_answered: RetryUntilShutdown) -> None:
    now = until_answered(store.clock.now_ms) // 1000
    until_answered(lambda: raise_alarm(store.redis, store.gateway, LOST_DATA, message, now=now, detail=detail))
