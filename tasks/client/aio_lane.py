"""Asks one gateway's writer from an asyncio program: admits, sends, awaits and cancels requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission import list_quota, quota
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.client.aio_cancel import Canceller
from peerlane.tasks.client.aio_connections import end
from peerlane.tasks.client.aio_subscription import ResultListener, Waiter
from peerlane.tasks.client.aio_waits import Deadlines
from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError
from peerlane.tasks.lane.ask import watched
from peerlane.tasks.lane.request import Request
from peerlane.tasks.lane.result import GRACE
from peerlane.tasks.lane.tasks import LaneTask
from peerlane.tasks.redis.errors import SEND_ERRORS, is_refused, is_silent, may_not_send, unknown
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.cancel import Cancel, result_of, timed_out

#: Seconds beyond a caller's timeout for which its turn to be sent by Celery is waited for.
_SENT_WITHIN = 0.3
#: Requests that are counted in their shares in one round trip.
JOINED_AT_ONCE = 64


class _Joining(NamedTuple):
    """A request that is to be counted in a share of its lane."""

    share: str
    request: Request
    lane: LaneState
    #: Is done when it is counted; holds the refusal where its share is used up.
    counted: asyncio.Future[bool]


class AsyncLane:
    """The requests of one event loop to one gateway."""

    def __init__(self, app: PeerlaneApp, gateway: str) -> None:
        self._gateway = gateway
        self._lanes = lanes_of(app)
        self._result_ttl = app.settings.result_ttl
        self._listener = ResultListener(app.settings, gateway, self._pushed)
        self._canceller = Canceller(self._listener.redis)
        self._deadlines = Deadlines(self._listener.loop)
        #: The calls that wait for a look at the lane, in their order, and for which queue.
        self._queued: list[tuple[asyncio.Future[bool], bool]] = []
        self._looking: asyncio.Task[None] | None = None
        #: The admitted requests that are to be counted in a share of the lane, and what counts them.
        self._joining: list[_Joining] = []
        self._counting: asyncio.Task[None] | None = None
        #: When Redis has last answered to either, on the loop's clock.
        self._answered_at = 0.0
        #: The thread in which Celery sends, if a receiver is connected to its signals.
        self._sender: ThreadPoolExecutor | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop in which it can be used."""
        return self._listener.loop

    async def ask(self, task: LaneTask, request: Request) -> dict[str, Any]:
        """Wait for the outcome of a request, at most its ``within`` seconds plus two.

        Raises:
            PeerlaneError: it was refused or cancelled, or its outcome is unknown.
        """
        until = self.loop.time() + request.within
        given = bool(request.id)
        request.id = request.id or self._listener.new_id()
        try:
            if not self._listener.up:
                await self._listener.ready(until)
            await self._admit(request, until)
        except (RedisError, OSError) as error:
            if self.loop.time() >= until:
                # Redis was silent all the time, or this process stood still: one try tells which.
                with contextlib.suppress(OutcomeUnknown):
                    return await self._settled(request, 0.0)
            raise unknown(error, "nothing was sent", request.id) from error
        by_celery = watched()
        message = "" if by_celery else request.message()
        waiter = self._listener.expect(request.id, given=given, queue=request.queue, message=message)
        try:
            if by_celery:
                await self._publish(task, request, until)
            return commit_record.decode(await self._deadlines.by(until, waiter.record), request.wish)
        except PeerlaneError:
            raise
        except TimeoutError:
            return await self._given_up(request, waiter, until)
        except SEND_ERRORS as error:
            return await self._not_sent(request, error)
        except BaseException:
            # Another call with the same id may still wait for it: then it stays.
            if self._listener.forget(waiter):
                await self._canceller.withdraw(self._cancel(request))
            raise
        finally:
            self._listener.forget(waiter)

    async def _given_up(self, request: Request, waiter: Waiter, until: float) -> dict[str, Any]:
        if not self._listener.forget(waiter):
            why = "another call in this program waits for the same request; ask again with the same id"
            raise OutcomeUnknown(f"no outcome within {request.within:g} s; {why}", request.id)
        return await self._settled(request, until + GRACE + 0.8)

    async def _settled(self, request: Request, ends: float) -> dict[str, Any]:
        """After the timeout: the request's outcome, or its cancel. ``ends`` is on the loop's clock."""
        record = await self._canceller.settle(self._cancel(request), ends)
        return result_of(record, timed_out(request.within), request.wish)

    async def _not_sent(self, request: Request, error: BaseException) -> dict[str, Any]:
        """Settle a request whose sending failed; it may have arrived."""
        if is_refused(error):
            with contextlib.suppress(OutcomeUnknown):
                await self._canceller.settle(self._cancel(request), 0.0)
            raise may_not_send() from error
        return commit_record.decode(await self._canceller.settle(self._cancel(request), 0.0), request.wish)

    def _cancel(self, request: Request) -> Cancel:
        # No request outlives its caller: the deadline is at most the timeout ahead.
        return Cancel.of(request.id, result_ttl=self._result_ttl, seconds_left=request.within)

    async def _publish(self, task: LaneTask, request: Request, until: float) -> None:
        """Have Celery send it, in a thread. If it is sent after its caller has gone, it finds the tombstone."""
        self._sender = self._sender or ThreadPoolExecutor(1, thread_name_prefix=f"peerlane-{self._gateway}-send")
        sending = self.loop.run_in_executor(self._sender, task.publish, request)
        async with asyncio.timeout_at(until + _SENT_WITHIN):
            await sending

    def _pushed(self, queue: str, length: int) -> None:
        self._lanes.pushed(self._gateway, length, bulk=queue == names.bulk_queue(self._gateway))

    async def _admit(self, request: Request, until: float) -> None:
        """As tasks.lane.request.admit, without blocking the loop while Redis answers."""
        lanes, bulk, create, within = self._lanes, request.bulk, request.creates, request.within
        admitted = None
        if not self._queued:
            admitted = lanes.believed(self._gateway, bulk=bulk, create=create, within=within)
        if admitted is None:
            await self._look(request, until)
            admitted = lanes.admit(self._gateway, bulk=bulk, create=create, within=within)
        lane = admitted.lane
        if (share := request.enter(admitted)) is not None:
            counted = self.loop.create_future()
            self._joining.append(_Joining(share, request, lane, counted))
            if self._counting is None or self._counting.done():
                self._counting = self.loop.create_task(self._count())
            await self._turn(request, until, counted)
        elif request.listed and lane.facts.get("fair_label"):
            joined = partial(list_quota.join, lanes, lane, request.id, request.arguments, deadline=request.deadline)
            await self.loop.run_in_executor(None, joined)

    async def _look(self, request: Request, until: float) -> None:
        """Wait for a look at the lane that has room for this request; one look admits a limited number.

        Raises:
            redis.RedisError, OSError: Redis cannot be reached, or there was none ``until`` then.
            TimedOut: there was none, and the request's id is new.
        """
        while True:
            turn = self.loop.create_future()
            self._queued.append((turn, request.bulk))
            if self._looking is None or self._looking.done():
                self._looking = self.loop.create_task(self._see())
            try:
                await self._turn(request, until, turn)
                return
            except (RedisError, OSError) as error:
                if not is_silent(error) or self.loop.time() >= until:
                    raise

    async def _turn(self, request: Request, until: float, turn: asyncio.Future[bool]) -> None:
        """Wait for a request's turn to go on, as ``Deadlines.by``.

        Raises:
            TimedOut: it has not come ``until`` then though Redis answers, and nothing was sent under the request's id.
        """
        began = self.loop.time()
        try:
            await self._deadlines.by(until, turn)
        except TimeoutError:
            if request.given or self._answered_at < began:
                raise
            raise timed_out(request.within) from None

    async def _count(self) -> None:
        """Count requests in their shares, and refuse those whose share is used up: all that wait in one round trip."""
        while self._joining:
            batch, self._joining = self._joining[:JOINED_AT_ONCE], self._joining[JOINED_AT_ONCE:]
            batch = [joining for joining in batch if not joining.counted.done()]  # else its caller has ended
            try:
                pipe = self._listener.redis.pipeline(transaction=True)
                for share, request, _, _ in batch:
                    quota.count(pipe, share, request.id, now=request.sent_at, deadline=request.deadline)
                answers = iter(await pipe.execute())
                self._answered_at = self.loop.time()
                verdicts = [
                    quota.verdict(lane, request.labels or {}, list(islice(answers, 4))) for _, request, lane, _ in batch
                ]
                for (share, request, _, _), refusal in zip(batch, verdicts, strict=True):
                    if refusal is not None:
                        pipe.zrem(share, request.id)
                await pipe.execute()
            except (RedisError, OSError) as error:
                verdicts = [error] * len(batch)
            for joining, refusal in zip(batch, verdicts, strict=True):
                if joining.counted.done():
                    continue
                if refusal is None:
                    joining.counted.set_result(True)
                else:
                    joining.counted.set_exception(refusal)

    async def _see(self) -> None:
        """Look at the lane, and again while requests wait for it."""
        while self._queued:
            try:
                pipe = self._listener.redis.pipeline(transaction=False)
                self._lanes.ask_of(self._gateway, pipe)
                asked = time.monotonic()
                self._lanes.answered(self._gateway, await pipe.execute(), asked)
                self._answered_at = self.loop.time()
            except (RedisError, OSError) as error:
                queued, self._queued = self._queued, []
                for turn, _ in queued:
                    if not turn.done():
                        turn.set_exception(error)
                continue
            left = [self._lanes.may_pass(self._gateway, bulk=bulk) for bulk in (False, True)]
            queued, self._queued = self._queued, []
            for turn, bulk in queued:
                if turn.done():
                    continue  # its caller has ended
                if left[bulk] > 0:
                    left[bulk] -= 1
                    turn.set_result(True)
                else:
                    self._queued.append((turn, bulk))

    async def close(self) -> None:
        """Send the requested cancels; then close all connections. No call may be waiting any more."""
        if self._sender is not None:
            self._sender.shutdown(wait=False, cancel_futures=True)
        await end(task for task in (self._looking, self._counting) if task is not None)
        self._deadlines.close()
        await self._canceller.close()
        await self._listener.close()
