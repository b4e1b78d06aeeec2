"""The writer: one request after another from plan to commit. Single-threaded by declaration; owns table and device.

The way of a request, and what a crash between two steps leaves behind:
1. check the arguments, plan against the table       crash: nothing happened, the message comes again
2. apply the plan to the device                      crash: the start finds the device unlike Redis and mends it
3. commit: record, addresses, result, in one script  crash: the message comes again and finds the commit record
4. make the table equal to what was committed        crash: the table is built anew from Redis
5. acknowledge the message (Celery)
Wherever a commit does not come back as made, ``_settle`` makes device and table equal to Redis for that one peer.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks import results
from tasks.errors import Fenced, KernelError, PeerlaneError, Refused, StorageError, TimedOut, WriterError
from tasks.model import CreatePeer, DeletePeer, Peer, parse
from workers.dataplane import AddRoute, Change, DataPlane, RemovePeer, RemoveRoute
from workers.plan import PeerTable, Plan, Policy, as_set_peer, draining, plan_create, plan_delete
from workers.recover import Progress, Recovered, recover
from workers.store import Answer, Store

log = logging.getLogger(__name__)

#: Redis is away: ask again. (BusyLoadingError and the like are ConnectionErrors.)
AWAY = (RedisConnectionError, RedisTimeoutError)

_T = TypeVar("_T")


class Stopping(BaseException):
    """The worker is told to stop while the writer waits for Redis. Not an error: nothing may catch and store it."""


@dataclass(frozen=True, slots=True)
class Describe:
    """What a result says of the gateway itself."""

    public_key: str
    endpoint: str


class Writer:
    """Applies requests for one gateway. Built by ``workers.gateway``; every method runs in one thread."""

    def __init__(
        self,
        policy: Policy,
        store: Store,
        plane: DataPlane,
        describe: Describe,
        *,
        unknown: Literal["remove", "keep", "adopt"] = "remove",
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.policy = policy
        self.store = store
        self.plane = plane
        self.describe = describe
        self.table = PeerTable(policy)
        #: ``active`` or ``draining``, as the gateway's hash says; kept fresh by ``workers.lane``.
        self.state = "active"
        #: Why the device or the table may differ from Redis; None while they are known to agree.
        self.recovery_needed: str | None = "not started"
        #: Set once a newer writer has been seen; from then on nothing is changed any more.
        self.fenced = False
        #: The request whose commit record is in Redis already, for the result backend.
        self.settled_request: str | None = None
        self._unknown: Literal["remove", "keep", "adopt"] = unknown
        self._stopping = stopping

    def recover(self, progress: Progress | None = None) -> Recovered:
        """Make the device equal to Redis and the table anew.

        Raises:
            KernelError: the device could not be read or changed; ``recovery_needed`` stays.
        """
        loaded = self._patiently(self.store.load)
        done = recover(self.policy, loaded, self.plane, unknown=self._unknown, progress=progress)
        self.table = done.table
        self.state = self._patiently(self.store.state)
        self.recovery_needed = None
        return done

    def create_peer(self, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Create a peer and commit; the committed result.

        Raises:
            PeerlaneError: the committed refusal, or Fenced.
        """

        def plan() -> tuple[Plan, int]:
            wish = parse(CreatePeer, arguments)
            now = self._patiently(self.store.clock.now_ms) // 1000
            return plan_create(self.table, wish, now=now, state=self.state), wish.deadline or 0

        return self._request(request_id, arguments, plan)

    def delete_peer(self, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Delete a peer and commit; the committed result.

        Raises:
            PeerlaneError: the committed refusal, or Fenced.
        """

        def plan() -> tuple[Plan, int]:
            wish = parse(DeletePeer, arguments)
            return plan_delete(self.table, wish), wish.deadline or 0

        return self._request(request_id, arguments, plan)

    def _request(
        self, request_id: str, arguments: Mapping[str, Any], make_plan: Callable[[], tuple[Plan, int]]
    ) -> dict[str, Any]:
        self._refuse_if_fenced()
        try:
            if self.recovery_needed is not None:
                self.recover()
            return self._carry_out(request_id, *make_plan())
        except Refused as refusal:
            raise self._commit_refusal(request_id, arguments, refusal) from None
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

    def _carry_out(self, request_id: str, plan: Plan, deadline: int) -> dict[str, Any]:
        if plan.after is None and plan.before is not None:
            # Undoing a removal would cost the peer its session: ask before the act, not only at the commit.
            asked = self._patiently(lambda: self.store.check(request_id, deadline))
            if asked.verdict == "late":
                raise TimedOut("its deadline had passed before the gateway could commit it")
            if asked.verdict != "open":
                return self._not_committed(request_id, asked, plan, applied=False)
        try:
            self.plane.apply(plan.changes)
        except KernelError:
            self._settle(plan)
            raise
        outcome = self._result(plan)
        record = results.encode(request_id, outcome)
        try:
            answer = self._patiently(lambda: self.store.commit(request_id, deadline, record, [plan]))
        except ResponseError as error:
            # Out of memory, read-only, disk full: Redis refuses writes, so nothing is confirmed.
            self._settle(plan)
            raise StorageError(f"Redis refused to store the peer ({_first_word(error)}); nothing was changed") from None
        if answer.verdict == "duplicate" and answer.stored == record:
            log.info("request %s: an earlier try of this commit had reached Redis", request_id)
        elif answer.verdict != "committed":
            return self._not_committed(request_id, answer, plan, applied=bool(plan.changes))
        self.settled_request = request_id
        if plan.before is not plan.after:
            if plan.after is not None:
                self.table.put(plan.after)
            else:
                self.table.drop(plan.public_key)
        return outcome

    def _not_committed(self, request_id: str, answer: Answer, plan: Plan, *, applied: bool) -> dict[str, Any]:
        if applied:
            self._settle(plan)
        if answer.verdict == "fenced":
            self.fenced = True
            self._refuse_if_fenced()
        if answer.verdict == "draining":
            self.state = "draining"
            raise draining(self.policy)
        if answer.verdict == "stale":
            # Somebody changed Redis behind the writer's back: read everything, then say so; asking again will do.
            self.recovery_needed = "Redis was changed by somebody else"
            raise WriterError("what Redis holds had changed under the writer; nothing was changed, ask again")
        self.settled_request = request_id
        return results.decode(answer.stored)

    def _commit_refusal(self, request_id: str, arguments: Mapping[str, Any], refusal: PeerlaneError) -> PeerlaneError:
        """Store the refusal as the request's outcome; what is to be raised for it."""
        deadline = arguments.get("deadline")
        late_after = deadline if isinstance(deadline, int) and not isinstance(deadline, bool) and deadline > 0 else 0
        record = results.encode(request_id, refusal)
        try:
            answer = self._patiently(lambda: self.store.commit(request_id, min(late_after, 2**53), record))
        except ResponseError as error:
            log.warning("request %s: Redis refused to store its refusal (%s)", request_id, _first_word(error))
            self.settled_request = request_id  # the caller's deadline settles it: nothing was changed
            return refusal
        if answer.verdict == "fenced":
            self.fenced = True
            return Fenced(_REPLACED)
        self.settled_request = request_id
        if answer.verdict in ("duplicate", "expired") and answer.stored != record:
            try:
                results.decode(answer.stored)
            except PeerlaneError as stored:
                return stored
        return refusal

    def _settle(self, plan: Plan) -> None:
        """Make device and table equal to Redis for the plan's peer; where that fails, everything is read anew."""
        try:
            truth = self._patiently(lambda: self.store.peer(plan.public_key))
            self.plane.apply(self._towards(plan, truth))
        except (KernelError, StorageError, RedisError) as error:
            log.warning("peer %s could not be settled (%s); recovering", plan.public_key, type(error).__name__)
            self.recovery_needed = "a peer could not be settled"
            return
        if truth is None:
            self.table.drop(plan.public_key)
        elif self.table.peers.get(plan.public_key) != truth:
            self.recovery_needed = "Redis was changed by somebody else"

    def _towards(self, plan: Plan, truth: Peer | None) -> list[Change]:
        prefixes = {p for peer in (plan.before, plan.after) if peer is not None for p in peer.allowed_ips}
        routed = {p for p in prefixes if self.table.needs_route(p)}
        wanted = {p for p in truth.allowed_ips if self.table.needs_route(p)} if truth else set[Any]()
        changes: list[Change] = [RemoveRoute(prefix) for prefix in sorted(routed - wanted)]
        changes.append(as_set_peer(truth) if truth else RemovePeer(plan.public_key))
        return [*changes, *(AddRoute(prefix) for prefix in sorted(wanted))]

    def _result(self, plan: Plan) -> dict[str, Any]:
        peer = plan.after or plan.before
        found: dict[str, Any] = {"outcome": plan.outcome, "gateway": self.policy.gateway}
        found |= peer.public() if peer is not None else {"public_key": plan.public_key}
        if plan.after is not None:
            found |= {"gateway_public_key": self.describe.public_key, "endpoint": self.describe.endpoint}
        return found

    def _refuse_if_fenced(self) -> None:
        if self.fenced:
            raise Fenced(_REPLACED)

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask Redis until it answers: its outages are waited out, here, where nothing else could be done anyway.

        Raises:
            Stopping: the worker is told to stop.
        """
        wait = 0.05
        while True:
            try:
                return ask()
            except AWAY as error:
                if self._stopping():
                    raise Stopping from None
                log.warning("Redis is away (%s); asking again", type(error).__name__)
                time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing
                wait = min(wait * 2, 1.0)


_REPLACED = "a newer writer has taken this gateway over; this one stops"


def _first_word(error: Exception) -> str:
    """The error's code (OOM, MISCONF, READONLY …); its text may quote what was sent."""
    return str(error).split(" ", 1)[0][:32]
