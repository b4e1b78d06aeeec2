"""Peer table, device and Redis of one gateway, and how a writer makes them agree: at a start and after failures.

Redis is right. Where it is not known what the other two hold, ``recovery_needed`` says why, and all is read anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from redis.exceptions import RedisError

from peerlane.tasks.errors import Fenced, KernelError, StorageError
from peerlane.tasks.redis.hash_pages import LARGE_PAGE
from peerlane.workers.dataplane import DataPlane, DeviceSpec
from peerlane.workers.host import garbage
from peerlane.workers.host.pulse import LONG, PULSE
from peerlane.workers.peers.drift import Unknown
from peerlane.workers.peers.plan import Plan, take_out
from peerlane.workers.peers.table import Loaded, PeerTable, Policy
from peerlane.workers.request.request import Measurements
from peerlane.workers.start import loss
from peerlane.workers.start.recovery import Progress, Recovered, recover, settling
from peerlane.workers.start.startup_commits import adopt, reseal
from peerlane.workers.start.stray_addresses import free_strays
from peerlane.workers.store.journal import Lost
from peerlane.workers.store.procedures import Answer
from peerlane.workers.store.retry import RetryUntilShutdown
from peerlane.workers.store.store import Store

log = logging.getLogger(__name__)

#: Peers of an undone request that are settled one by one; beyond it everything is read anew.
SETTLED_ONE_BY_ONE = 64
#: Why everything is read anew where a commit was refused: addresses may be assigned that no peer has.
CHANGED = "Redis was changed by somebody else"


class Agreement:
    """What a writer holds of its gateway. Every method runs in the writer's thread."""

    def __init__(
        self,
        policy: Policy,
        store: Store,
        plane: DataPlane,
        *,
        unknown: Unknown = "remove",
        spec: DeviceSpec | None = None,
        shutdown_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """``spec`` lets a lost device be made again."""
        self.policy = policy
        self.store = store
        self.plane = plane
        self.table = PeerTable(policy)
        #: ``active`` or ``draining``, as the gateway's hash says; kept fresh by ``peerlane.workers.gateway``.
        self.state = "active"
        self._recovery_needed: str | None = _NOT_STARTED
        #: Set once a newer writer has been seen; from then on nothing is changed any more.
        self.fenced = False
        #: Peers created and deleted since this writer began, for the heartbeat to tell.
        self.created = self.deleted = 0
        self.measurements = Measurements()
        #: How many had been created when they were put aside (``garbage``).
        self._put_aside = 0
        self.until_answered = RetryUntilShutdown(shutdown_requested)
        self.spec = spec
        #: Plans whose creates are in the table and not committed yet.
        self.uncommitted: Sequence[Plan] = ()
        #: The plans that were applied to the device last: where they were not committed, a recovery undoes them.
        self.applied: Sequence[Plan] = ()
        self._unknown: Unknown = unknown

    @property
    def recovery_needed(self) -> str | None:
        """Why the device or the table may differ from Redis; None while they are known to agree."""
        if self._recovery_needed is None and self.store.sequence.lost:
            self._recovery_needed = "Redis has lost data"
        return self._recovery_needed

    @recovery_needed.setter
    def recovery_needed(self, why: str | None) -> None:
        self._recovery_needed = why

    def recover(
        self,
        progress: Progress | None = None,
        loading: Progress | None = None,
        in_hand: Collection[str] = (),
    ) -> Recovered:
        """Make the device equal to Redis and rebuild the table; create the device first if it is gone.

        ``loading`` hears how many records are read. ``in_hand`` are keys that an earlier writer was about to create.
        Peers may still be coming then: see ``filling``.

        Raises:
            KernelError: the device could not be made, read or changed; ``recovery_needed`` stays.
        """
        with garbage.loading():
            return self._recover(progress, loading, in_hand)

    def _recover(self, progress: Progress | None, loading: Progress | None, in_hand: Collection[str]) -> Recovered:
        began = time.monotonic()
        PULSE.turn(LONG)
        progress, loading = progress or _turn, loading or _turn
        self.recovery_needed = self.recovery_needed or "asked for"
        if self.spec is not None:
            self.plane.open(self.spec)
        starting = self.recovery_needed == _NOT_STARTED
        loaded = self.until_answered(lambda: self.store.load(loading, page=LARGE_PAGE))
        lost, self.store.sequence.lost = self.store.sequence.lost, Lost()
        try:
            done = self._follow(loaded, lost, starting=starting, progress=progress, loading=loading, in_hand=in_hand)
        except BaseException:
            self.store.sequence.lost.add(lost)  # for the next recovery to make up for
            raise
        if lost.incomplete:
            self.until_answered(self.store.sequence.made_up_for)
        self.table, self.uncommitted, self.applied = done.table, (), ()
        self.state = self.until_answered(self.store.state)
        self.recovery_needed = None
        self.measurements.recovered(began)
        return done

    def _follow(
        self,
        loaded: Loaded,
        lost: Lost,
        *,
        starting: bool,
        progress: Progress,
        loading: Progress,
        in_hand: Collection[str],
    ) -> Recovered:
        """Make the device equal to Redis, once Redis has again what it has lost."""
        if lost and not starting:
            differing = loss.differences(self.table, loaded, lost.keys)
            loss.make_up_for(self.store, lost, differing, self._commit_at_startup, self.until_answered)
            loaded = self.until_answered(lambda: self.store.load(loading, page=LARGE_PAGE))
        unsure = starting and lost.incomplete
        begun = {plan.public_key for plan in self.applied if plan.before is None and plan.after is not None}
        done = recover(
            self.policy,
            loaded,
            self.plane,
            unknown=self._unknown,
            first_start=starting and not self.until_answered(self.store.has_served),
            lost_data=unsure or (starting and self.until_answered(lambda: loss.is_told(self.store))),
            in_hand=begun if unsure else begun.union(in_hand),
            begun=in_hand if unsure else (),
            kept_before=self.table.foreign,
            seen=lambda of: self.until_answered(lambda: self.store.last_seen(of)),
            progress=progress,
        )
        suspected = self.recovery_needed == CHANGED
        done = free_strays(self.store, done, self._commit_at_startup, self.until_answered, suspected=suspected)
        done = adopt(self.policy.gateway, done, self._commit_at_startup)
        reseal(self.policy.gateway, done, loaded.outdated, self._commit_at_startup)
        if starting and lost.incomplete:
            loss.tell_at_start(self.store, lost, done, self.until_answered)
        return done

    def _commit_at_startup(self, request_id: str, record: str, plans: Sequence[Plan]) -> Answer:
        PULSE.turn(LONG)
        # An adopted peer is on the device already, so a drain, which refuses new peers, does not matter.
        answer = self.until_answered(lambda: self.store.commit(request_id, 0, record, plans, drains=False))
        if answer.verdict == "fenced":
            self.fenced = True
            self.refuse_if_fenced()
        return answer

    def enter(self, plans: Sequence[Plan], *, planned: bool = False) -> None:
        """Make the table equal to what was committed. ``planned``: the creates are in it already."""
        self.uncommitted = ()
        for plan in plans:
            if plan.before is plan.after:
                continue
            self.created += plan.outcome == "created"
            self.deleted += plan.outcome == "deleted"
            if plan.after is None:
                self.table.drop(plan.public_key)
            elif not planned:
                self.table.put(plan.after, plan.record)
        if self.created - self._put_aside >= garbage.EVERY:
            self._put_aside = self.created
            garbage.put_aside()

    def take_out_uncommitted(self) -> None:
        """Take creates out of the table that are not committed."""
        take_out(self.table, self.uncommitted)
        self.uncommitted = ()

    def settle(self, plans: Sequence[Plan]) -> None:
        """Make device and table equal to Redis for these peers; if that fails, everything is read again."""
        self.take_out_uncommitted()
        if not plans:
            return
        if len(plans) > SETTLED_ONE_BY_ONE:
            self.recovery_needed = "a large request was undone"
            return
        try:
            stored = self.until_answered(lambda: self.store.peers([plan.public_key for plan in plans]))
            truths = {plan.public_key: plan.before for plan in plans if not plan.stored}
            truths |= {key: peer for key, peer in stored.items() if peer is not None or key not in truths}
            changes = [change for plan in plans for change in settling(self.table, plan, truths[plan.public_key])]
            self.plane.apply(changes)
            self.table.coming.made(changes)
        except (KernelError, StorageError, RedisError) as error:
            log.warning("%d peers could not be settled (%s); recovering", len(plans), type(error).__name__)
            self.recovery_needed = "a peer could not be settled"
            return
        for key, peer in stored.items():
            if peer is None:
                if truths[key] is None:
                    self.table.drop(key)
            elif self.table.peers.get(key) != peer:
                self.recovery_needed = CHANGED

    def refuse_if_fenced(self) -> None:
        """Raises Fenced where a newer writer has taken over."""
        if self.fenced:
            raise Fenced(_REPLACED)


def _turn(_done: int, _total: int) -> None:
    """Tell the watchdog that a recovery makes progress."""
    PULSE.turn(LONG)


_NOT_STARTED = "not started"
_REPLACED = "a newer writer has taken this gateway over; this one stops"
