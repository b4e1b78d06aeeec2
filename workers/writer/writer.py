"""The writer carries out requests from plan to commit. It runs in one thread, and owns peer table and device.

The steps of a request, and what a crash between two steps leaves behind:
1. check the arguments, plan against the table       crash: nothing happened, the message comes again
   where in doubt (a delete; what is delivered again, cancelled or late), ask Redis whether it can still commit
2. apply the plan to the device                      crash: the start finds the device unlike Redis and mends it
3. commit: record, addresses, result, in one script  crash: the message comes again and finds the commit record
4. make the table equal to what was committed        crash: the table is built anew from Redis
5. tell events and monitors (Celery); the commit has acknowledged the message
If a commit is refused, ``settle`` makes device and table equal to Redis for that peer.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.tasks.admission.list_quota import members
from peerlane.tasks.admission.quota import share_key
from peerlane.tasks.errors import Fenced, KernelError, PeerlaneError, StorageError, TimedOut, WriterError
from peerlane.workers import failpoints
from peerlane.workers.dataplane import DataPlane, DeviceSpec
from peerlane.workers.peers.drift import Unknown
from peerlane.workers.peers.handlers import decide
from peerlane.workers.peers.plan import Decision, Plan, PlanningContext, draining
from peerlane.workers.peers.table import Policy
from peerlane.workers.request.request import Delivery, Outcome, Pace, Request, error_code
from peerlane.workers.store.procedures import Answer
from peerlane.workers.store.store import Store
from peerlane.workers.writer.agreement import CHANGED, Agreement
from peerlane.workers.writer.apply_list import apply_others

log = logging.getLogger(__name__)

#: Seconds since delivery after which Redis is asked whether a request was cancelled, before the device is touched.
SURE_FOR = 0.25
#: Milliseconds before its deadline from which on a request may be late by Redis' clock, which is read from afar.
NEARLY_LATE = 100


class _Stale(Exception):
    """The decision was made on a table that is no longer equal to Redis; nothing was changed."""


class Writer(Agreement):
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
        shutdown_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """``facts`` is what results say of the gateway; ``spec`` lets a lost device be made again."""
        super().__init__(policy, store, plane, unknown=unknown, spec=spec, shutdown_requested=shutdown_requested)
        self.facts = facts or {}
        #: Requests answered and refused since this writer began, for the heartbeat to tell.
        self.answered = self.refused = 0
        self.pace = Pace()
        self._fair_label = fair_label

    def carry_out(self, task: str, delivery: Delivery, arguments: Mapping[str, Any]) -> Outcome:
        """Carry a request out and commit; returns its outcome, which may be a refusal.

        Raises:
            Fenced: a newer writer has taken over; nothing was changed.
            ShutdownRequested: the worker is to stop, and Redis is away; the request is still open.
        """
        self.refuse_if_fenced()
        request = self.request(task, delivery, arguments)
        return self.count(request, self._outcome(request))

    def _outcome(self, request: Request) -> Outcome:
        try:
            for _ in range(2):
                # Another program has changed Redis: plan once more, on what is there now.
                with contextlib.suppress(_Stale):
                    return self._carry_out(request)
            return self._commit_refusal(request, WriterError(_CHANGED))
        except Fenced:
            raise
        except PeerlaneError as error:
            return self._commit_refusal(request, error)
        except Exception as error:
            # Unforeseen: the device may hold half of it. No caller gets "created"; everything is read anew.
            log.exception("request %s failed in an unforeseen way", request.id)
            self.recovery_needed = "an unforeseen failure"
            unforeseen = WriterError(f"the writer failed with {type(error).__name__}; nothing was committed")
            return self._commit_refusal(request, unforeseen)

    @property
    def has_shares(self) -> bool:
        """Whether requests count in shares of the lane."""
        return self._fair_label is not None

    def request(self, task: str, delivery: Delivery, arguments: Mapping[str, Any]) -> Request:
        """The request, with its share of the lane."""
        label = self._fair_label
        share = share_key(self.policy.gateway, label, arguments.get("labels")) if label else None
        return Request(task, delivery, arguments, share if task == names.CREATE_PEER else None)

    def _carry_out(self, request: Request) -> Outcome:
        if self.recovery_needed is not None:
            self.recover()
        try:
            return self._carry_out_decision(request, self.decide(request))
        finally:
            self.take_out_uncommitted()

    def decide(self, request: Request, refused: Mapping[int, PeerlaneError] | None = None) -> Decision:
        """Decide a request. ``refused`` are the wishes of a list, by index, that the device has just refused."""
        context = self.planning_context()
        decision = decide(request.task, replace(context, refused=refused) if refused else context, request.arguments)
        self.uncommitted = decision.plans if decision.entered else ()
        return decision

    def _carry_out_decision(self, request: Request, decision: Decision) -> Outcome:
        if self._doubtful(request, decision) and (known := self._ask_first(request, decision)) is not None:
            return known
        try:
            self.apply(request, decision)
        except KernelError as error:
            decision = apply_others(self, request, decision, error)
        answer = self._commit_decision(request, decision)
        if answer is None:
            log.info("request %s: an earlier try of this commit had reached Redis", request.id)
        elif answer.verdict != "committed":
            return self._not_committed(request, answer, decision, applied=bool(decision.changes))
        self.enter(decision.plans, planned=decision.entered)
        return Outcome(dict(decision.result), acknowledged=True)

    def planning_context(self) -> PlanningContext:
        return PlanningContext(
            table=self.table,
            now_ms=self.until_answered(self.store.clock.now_ms),
            # What the heartbeat has heard is up to a second old: a gateway that was just resumed takes peers at once.
            state=self.state if self.state == "active" else self.until_answered(self.store.state),
            facts=self.facts,
            device=self.plane.peers,
            staged=lambda token: self.until_answered(lambda: self.store.staged(token)),
            cipher=self.store.cipher,
        )

    def _doubtful(self, request: Request, decision: Decision) -> bool:
        """Whether to ask Redis before the device is touched.

        No peer has access for a moment that nobody confirms: what was answered, cancelled or comes too late is told
        so first. Whoever had no outcome a moment ago is spared the round trip: the commit asks too.
        """
        if decision.removes:
            return True
        late = 0 < decision.deadline < self.until_answered(self.store.clock.now_ms) + NEARLY_LATE
        return (late or request.delivery.in_doubt(SURE_FOR)) and bool(decision.changes or decision.reopen)

    def _ask_first(self, request: Request, decision: Decision) -> Outcome | None:
        """The outcome of a request that can no longer commit; None if it still can."""
        answer = self.until_answered(lambda: self.store.check(request.id, decision.deadline))
        if answer.verdict == "open":
            return None
        if answer.verdict == "late":
            raise TimedOut("its deadline had passed before the gateway could commit it")
        if answer.verdict == "duplicate" and (request.share is not None or self.shares_of_list(request)):
            # Asking changes nothing, so it would count on in its share of the lane; a commit leaves that.
            answer = self._commit(request, decision.deadline, answer.stored)
            return self._not_committed(request, answer, decision, applied=False)
        begun = any(plan.public_key in self.table.begun for plan in decision.plans)
        return self._not_committed(request, answer, decision, applied=begun, acknowledged=False)

    def apply(self, request: Request, decision: Decision) -> None:
        """Apply a decision to the device. Raises KernelError if the device refuses; what was begun is undone."""
        outcome = str(decision.result["outcome"])
        try:
            if decision.reopen and self.spec is not None:
                self.plane.open(self.spec)
            failpoints.reach("before_apply", outcome)
            request.times.planned = time.monotonic()
            self.applied = decision.plans
            self.plane.apply(decision.changes)
            self.table.coming.made(decision.changes)
            request.times.applied = time.monotonic()
            failpoints.reach("after_apply", outcome)
        except KernelError:
            self.settle(decision.plans)
            raise

    def _commit_decision(self, request: Request, decision: Decision) -> Answer | None:
        """The commit's answer; None if an earlier try of this very commit had reached Redis."""
        outcome = str(decision.result["outcome"])
        record = request.record(decision.result)
        failpoints.reach("before_commit", outcome)
        try:
            answer = self._commit(request, decision.deadline, record, decision.plans)
        except ResponseError as error:
            # Out of memory, read-only, disk full: Redis refuses writes, so nothing is confirmed.
            self.settle(decision.plans)
            raise StorageError(
                f"Redis refused to store the outcome ({error_code(error)}); nothing was changed"
            ) from None
        failpoints.reach("after_commit", outcome)
        return None if answer.verdict == "duplicate" and answer.stored == record else answer

    def _not_committed(
        self, request: Request, answer: Answer, decision: Decision, *, applied: bool, acknowledged: bool = True
    ) -> Outcome:
        """``acknowledged``: the answer is a commit's, which acknowledges what has an outcome."""
        if applied:
            self.settle(decision.plans)
        if answer.verdict == "fenced":
            self.fenced = True
            self.refuse_if_fenced()
        if answer.verdict == "draining":
            self.state = "draining"
            if decision.indexes:
                raise _Stale  # wishes of a list that exist already are still answered
            raise draining(self.policy)
        if answer.verdict == "stale":
            self.recovery_needed = CHANGED
            raise _Stale
        return Outcome(request.recorded(answer.stored), acknowledged=acknowledged)

    def _commit_refusal(self, request: Request, refusal: PeerlaneError) -> Outcome:
        """Store the refusal as the request's outcome.

        Raises:
            Fenced: a newer writer has taken over.
        """
        deadline = request.arguments.get("deadline")
        late_after = deadline if isinstance(deadline, int) and not isinstance(deadline, bool) and deadline > 0 else 0
        record = request.record(refusal)
        request.times.planned = request.times.planned or time.monotonic()
        try:
            answer = self._commit(request, min(late_after, 2**53), record)
        except ResponseError as error:
            log.warning("request %s: Redis refused to store its refusal (%s)", request.id, error_code(error))
            return Outcome(refusal)  # the caller's deadline settles it: nothing was changed
        if answer.verdict == "fenced":
            self.fenced = True
            self.refuse_if_fenced()
        stored = request.recorded(answer.stored) if answer.verdict in ("duplicate", "expired") else refusal
        outcome = stored if isinstance(stored, PeerlaneError) else refusal
        return Outcome(outcome, acknowledged=answer.settles)

    def _commit(self, request: Request, deadline: int, record: str, plans: Sequence[Plan] = ()) -> Answer:
        """Raises redis.ResponseError where Redis takes no writes."""
        share, tag = request.share, request.delivery.tag
        answer = self.until_answered(
            lambda: self.store.commit(request.id, deadline, record, plans, share=share, tag=tag)
        )
        if answer.settles and (shares := self.shares_of_list(request)):
            # Not in the step of the commit: what is left there is forgotten soon after the request's deadline.
            with contextlib.suppress(RedisError):
                self.store.leave_shares(shares)
        return answer

    def shares_of_list(self, request: Request) -> list[tuple[str, str]]:
        """For each wish of a list: the key of its share, and its member there."""
        if self._fair_label is None or request.task != names.CREATE_PEERS:
            return []
        return members(self.policy.gateway, self._fair_label, request.id, request.arguments)

    def count(self, request: Request, outcome: Outcome) -> Outcome:
        """Count a request that has its outcome."""
        self.answered += 1
        self.measurements.answered(request, outcome, self.store.clock.at(request.delivery.taken_at))
        self.refused += isinstance(outcome.result, PeerlaneError)
        return outcome


_CHANGED = "what Redis holds changes under the writer; nothing was changed, ask again with another request id"
