"""The writer: one request after another from plan to commit. Single-threaded by declaration; owns table and device.

The way of a request, and what a crash between two steps leaves behind:
1. check the arguments, plan against the table       crash: nothing happened, the message comes again
   where in doubt (a delete; what is delivered again, cancelled or late), ask Redis whether it can still commit
2. apply the plan to the device                      crash: the start finds the device unlike Redis and mends it
3. commit: record, addresses, result, in one script  crash: the message comes again and finds the commit record
4. make the table equal to what was committed        crash: the table is built anew from Redis
5. tell events and monitors (Celery); the commit has acknowledged the message
Wherever a commit does not come back as made, ``_settle`` makes device and table equal to Redis for that one peer.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.tasks.errors import Fenced, KernelError, PeerlaneError, StorageError, TimedOut, WriterError
from peerlane.tasks.lane.quota import share_key
from peerlane.tasks.wire import outcome as results
from peerlane.workers import failpoints
from peerlane.workers.dataplane import DataPlane, DeviceSpec
from peerlane.workers.peers.drift import Unknown
from peerlane.workers.peers.handlers import PLANNERS, Decision, Ground
from peerlane.workers.peers.plan import Plan, draining
from peerlane.workers.peers.table import PeerTable, Policy
from peerlane.workers.store.store import Answer, Store
from peerlane.workers.writer.recovery import Progress, Recovered, recover, settling
from peerlane.workers.writer.retry import Patience, Stopping
from peerlane.workers.writer.startup_commits import adopt, reseal

log = logging.getLogger(__name__)

#: Seconds after which nobody can be sure any more that a request is still open: its caller may have cancelled.
SURE_FOR = 0.25
#: Milliseconds before its deadline from which on a request may be late by Redis' clock, which is read from afar.
NEARLY_LATE = 100

#: Peers of an undone request that are settled one by one; beyond it everything is read anew.
SETTLED_ONE_BY_ONE = 64


class _Stale(Exception):
    """The decision was made on a table that Redis has left behind; nothing was changed."""


class Writer:
    """Applies requests for one gateway. Built by ``peerlane.workers.gateway``; every method runs in one thread."""

    def __init__(
        self,
        policy: Policy,
        store: Store,
        plane: DataPlane,
        facts: Mapping[str, str] | None = None,
        *,
        unknown: Unknown = "remove",
        spec: DeviceSpec | None = None,
        fair_label: str | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """``facts`` is what results say of the gateway; ``spec`` lets a lost device be made again."""
        self.policy = policy
        self.store = store
        self.plane = plane
        self.facts = facts or {}
        self.table = PeerTable(policy)
        #: ``active`` or ``draining``, as the gateway's hash says; kept fresh by ``peerlane.workers.gateway``.
        self.state = "active"
        #: Why the device or the table may differ from Redis; None while they are known to agree.
        self.recovery_needed: str | None = _NOT_STARTED
        #: Set once a newer writer has been seen; from then on nothing is changed any more.
        self.fenced = False
        #: The request whose commit record is in Redis already, for the result backend.
        self.settled_request: str | None = None
        #: Since this writer began, for the heartbeat to tell: requests answered; peers created and deleted.
        self.answered = self.created = self.deleted = 0
        self._unknown: Unknown = unknown
        self._spec = spec
        self._fair_label = fair_label
        #: Where the request at hand counts in a share of the lane.
        self._share: str | None = None
        #: Of the message the request at hand came by, '' for none; and of the last one that a commit acknowledged.
        self._tag = self.acknowledged = ""
        #: Until when, on the monotonic clock, the request at hand is taken to be open without asking.
        self._sure_until = 0.0
        self._patiently = Patience(stopping)

    def recover(self, progress: Progress | None = None) -> Recovered:
        """Make the device equal to Redis and the table anew; makes the device first if it is gone.

        Raises:
            KernelError: the device could not be made, read or changed; ``recovery_needed`` stays.
        """
        self.recovery_needed = self.recovery_needed or "asked for"
        if self._spec is not None:
            self.plane.open(self._spec)
        loaded = self._patiently(self.store.load)
        done = recover(
            self.policy,
            loaded,
            self.plane,
            unknown=self._unknown,
            first_start=self.store.epoch == 1 and self.recovery_needed == _NOT_STARTED,
            seen=lambda: self._patiently(self.store.last_seen),
            progress=progress,
        )
        adopt(self.policy.gateway, done, self._commit_unasked)
        reseal(self.policy.gateway, done, loaded.outdated, self._commit_unasked)
        self.table = done.table
        self.state = self._patiently(self.store.state)
        self.recovery_needed = None
        return done

    def _commit_unasked(self, request_id: str, record: str, plans: Sequence[Plan]) -> Answer:
        answer = self._patiently(lambda: self.store.commit(request_id, 0, record, plans))
        if answer.verdict == "fenced":
            self.fenced = True
            self._refuse_if_fenced()
        return answer

    def create_peer(self, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``carry_out`` for names.CREATE_PEER."""
        return self.carry_out(names.CREATE_PEER, request_id, arguments)

    def delete_peer(self, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``carry_out`` for names.DELETE_PEER."""
        return self.carry_out(names.DELETE_PEER, request_id, arguments)

    def carry_out(
        self, task: str, request_id: str, arguments: Mapping[str, Any], *, doubtful: bool = False, tag: str = ""
    ) -> dict[str, Any]:
        """Carry a request out and commit; the committed result.

        ``doubtful``: it may have an outcome already, so Redis is asked before the device is touched. Whoever knows
        that it had none a moment ago spares the round trip: the commit asks too. ``tag`` is that of the message it
        came by, which the commit acknowledges; then ``acknowledged`` names it.

        Raises:
            PeerlaneError: the committed refusal, or Fenced.
        """
        self._refuse_if_fenced()
        self._sure_until = 0.0 if doubtful else time.monotonic() + SURE_FOR
        # The same message may come twice, with the same tag.
        self._share, self._tag, self.acknowledged = None, tag, ""
        if self._fair_label is not None and task == names.CREATE_PEER:
            self._share = share_key(self.policy.gateway, self._fair_label, arguments.get("labels"))
        try:
            for _ in range(2):
                # Where somebody changed Redis behind the writer's back: once more, on what is there now.
                with contextlib.suppress(_Stale):
                    return self._decide_and_carry_out(task, request_id, arguments)
            raise WriterError(_CHANGED)
        except (Fenced, Stopping):
            raise
        except PeerlaneError as error:
            raise self._commit_refusal(request_id, arguments, error) from None
        except Exception as error:
            # Unforeseen: the device may hold half of it. Nobody is told "created"; everything is read anew.
            log.exception("request %s failed in an unforeseen way", request_id)
            self.recovery_needed = "an unforeseen failure"
            unforeseen = WriterError(f"the writer failed with {type(error).__name__}; nothing was committed")
            raise self._commit_refusal(request_id, arguments, unforeseen) from None

    def _decide_and_carry_out(self, task: str, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self.recovery_needed is not None:
            self.recover()
        return self._carry_out(request_id, PLANNERS[task](self._ground(), arguments))

    def _ground(self) -> Ground:
        return Ground(
            table=self.table,
            now=self._patiently(self.store.clock.now_ms) // 1000,
            # What the heartbeat has heard is up to a second old: a gateway that was just resumed takes peers at once.
            state=self.state if self.state == "active" else self._patiently(self.store.state),
            facts=self.facts,
            device=self.plane.peers,
            staged=lambda token: self._patiently(lambda: self.store.staged(token)),
            sealing=self.store.sealing,
        )

    def _carry_out(self, request_id: str, decision: Decision) -> dict[str, Any]:
        deadline, outcome = decision.deadline, str(decision.result["outcome"])
        # No peer has access for a moment that nobody confirms: what was answered, cancelled or comes too late is told
        # so before the device is touched.
        late = 0 < deadline < self._patiently(self.store.clock.now_ms) + NEARLY_LATE
        doubtful = (late or time.monotonic() > self._sure_until) and (decision.changes or decision.reopen)
        if (decision.removes or doubtful) and (early := self._ask_first(request_id, decision)) is not None:
            return early
        try:
            if decision.reopen and self._spec is not None:
                self.plane.open(self._spec)
            failpoints.reach("before_apply", outcome)
            self.plane.apply(decision.changes)
            failpoints.reach("after_apply", outcome)
        except KernelError:
            self._settle(decision)
            raise
        record = results.encode(request_id, decision.result)
        failpoints.reach("before_commit", outcome)
        try:
            answer = self._commit(request_id, deadline, record, decision.plans)
        except ResponseError as error:
            # Out of memory, read-only, disk full: Redis refuses writes, so nothing is confirmed.
            self._settle(decision)
            raise StorageError(
                f"Redis refused to store the outcome ({_first_word(error)}); nothing was changed"
            ) from None
        failpoints.reach("after_commit", outcome)
        if answer.verdict == "duplicate" and answer.stored == record:
            log.info("request %s: an earlier try of this commit had reached Redis", request_id)
        elif answer.verdict != "committed":
            return self._not_committed(request_id, answer, decision, applied=bool(decision.changes))
        self._settled(request_id)
        for plan in decision.plans:
            if plan.before is plan.after:
                continue
            self.created += plan.outcome == "created"
            self.deleted += plan.outcome == "deleted"
            if plan.after is not None:
                self.table.put(plan.after)
            else:
                self.table.drop(plan.public_key)
        return dict(decision.result)

    def _ask_first(self, request_id: str, decision: Decision) -> dict[str, Any] | None:
        """Whether it can still commit. None: go on."""
        answer = self._patiently(lambda: self.store.check(request_id, decision.deadline))
        if answer.verdict == "open":
            return None
        if answer.verdict == "late":
            raise TimedOut("its deadline had passed before the gateway could commit it")
        if answer.verdict == "duplicate" and self._share is not None:
            # Asking changes nothing, so it would count on in its share of the lane; a commit leaves that.
            self._commit(request_id, decision.deadline, answer.stored)
        return self._not_committed(request_id, answer, decision, applied=False)

    def _not_committed(self, request_id: str, answer: Answer, decision: Decision, *, applied: bool) -> dict[str, Any]:
        if applied:
            self._settle(decision)
        if answer.verdict == "fenced":
            self.fenced = True
            self._refuse_if_fenced()
        if answer.verdict == "draining":
            self.state = "draining"
            raise draining(self.policy)
        if answer.verdict == "stale":
            self.recovery_needed = "Redis was changed by somebody else"
            raise _Stale
        self._settled(request_id)
        return results.decode(answer.stored)

    def _commit_refusal(self, request_id: str, arguments: Mapping[str, Any], refusal: PeerlaneError) -> PeerlaneError:
        """Store the refusal as the request's outcome; what is to be raised for it."""
        deadline = arguments.get("deadline")
        late_after = deadline if isinstance(deadline, int) and not isinstance(deadline, bool) and deadline > 0 else 0
        record = results.encode(request_id, refusal)
        try:
            answer = self._commit(request_id, min(late_after, 2**53), record)
        except ResponseError as error:
            log.warning("request %s: Redis refused to store its refusal (%s)", request_id, _first_word(error))
            self._settled(request_id)  # the caller's deadline settles it: nothing was changed
            return refusal
        if answer.verdict == "fenced":
            self.fenced = True
            return Fenced(_REPLACED)
        self._settled(request_id)
        if answer.verdict in ("duplicate", "expired") and answer.stored != record:
            try:
                results.decode(answer.stored)
            except PeerlaneError as stored:
                return stored
        return refusal

    def _commit(self, request_id: str, deadline: int, record: str, plans: Sequence[Plan] = ()) -> Answer:
        """Commit the request at hand. Raises redis.ResponseError where Redis takes no writes."""
        share, tag = self._share, self._tag
        answer = self._patiently(lambda: self.store.commit(request_id, deadline, record, plans, share=share, tag=tag))
        if answer.verdict in ("committed", "duplicate", "expired"):
            self.acknowledged = tag
        return answer

    def _settle(self, decision: Decision) -> None:
        """Make device and table equal to Redis for the decision's peers; where that fails, all is read anew."""
        if not decision.plans:
            return
        if len(decision.plans) > SETTLED_ONE_BY_ONE:
            self.recovery_needed = "a large request was undone"
            return
        for plan in decision.plans:
            try:
                truth = self._patiently(partial(self.store.peer, plan.public_key))
                self.plane.apply(settling(self.table, plan, truth))
            except (KernelError, StorageError, RedisError) as error:
                log.warning("peer %s could not be settled (%s); recovering", plan.public_key, type(error).__name__)
                self.recovery_needed = "a peer could not be settled"
                return
            if truth is None:
                self.table.drop(plan.public_key)
            elif self.table.peers.get(plan.public_key) != truth:
                self.recovery_needed = "Redis was changed by somebody else"

    def _settled(self, request_id: str) -> None:
        self.settled_request = request_id
        self.answered += 1

    def _refuse_if_fenced(self) -> None:
        if self.fenced:
            raise Fenced(_REPLACED)


_CHANGED = "what Redis holds changes under the writer; nothing was changed, ask again with another request id"
_NOT_STARTED = "not started"
_REPLACED = "a newer writer has taken this gateway over; this one stops"


def _first_word(error: ResponseError) -> str:
    """What kind of error it is (OutOfMemoryError, MISCONF …); its text may quote what was sent."""
    # redis-py takes the code off where it has a class for it.
    return str(error).split(" ", 1)[0][:32] if type(error) is ResponseError else type(error).__name__
