"""Cancels requests of an asyncio program: all that are cancelled at the same moment go in one round trip."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.tasks.redis.errors import UNSETTLED, unknown
from peerlane.tasks.wire.cancel import Cancel

#: Cancels in one round trip.
AT_ONCE = 256
#: Seconds for a try.
_TRY = 1.0
#: Seconds between two looks at whether this program stands still.
_LOOK_EVERY = 0.1

_Asked = tuple[Cancel, "asyncio.Future[str]"]


class Canceller:
    """Sends cancels for one event loop. A requested cancel is sent even if its caller ends."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: list[_Asked] = []
        self._sending: asyncio.Task[None] | None = None
        #: Seconds for which the event loop did not run while cancels were sent, and when it is looked at next.
        self._stood_still = 0.0
        self._looking: asyncio.TimerHandle | None = None

    def cancel(self, cancel: Cancel) -> asyncio.Future[str]:
        """Cancel a request; returns a future of the record that decides it.

        It holds redis.ResponseError where Redis stores no tombstone and has no record, and any other redis.RedisError
        or OSError where Redis cannot be reached.
        """
        loop = asyncio.get_running_loop()
        decided = loop.create_future()
        self._asked.append((cancel, decided))
        if self._sending is None or self._sending.done():
            self._sending = loop.create_task(self._send())
        if self._looking is None:
            self._look_after(loop)
        return decided

    def _look_after(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + _LOOK_EVERY
        self._looking = loop.call_at(due, self._look, loop, due)

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._stood_still += loop.time() - due
        self._looking = None
        if self._sending is not None and not self._sending.done():
            self._look_after(loop)

    async def settle(self, cancel: Cancel, ends: float) -> str:
        """As ``cancel``, with retries until ``ends`` on the loop's clock; at least one try is made.

        The time for which the event loop stands still does not count: a try then ends although its answer is there.

        Raises:
            OutcomeUnknown: Redis could not be reached, or takes no writes and has no record.
        """
        loop = asyncio.get_running_loop()
        ends = max(ends, loop.time() + _TRY) - self._stood_still
        while True:
            try:
                async with asyncio.timeout_at(ends + self._stood_still):
                    return await self.cancel(cancel)
            except (RedisError, OSError) as error:
                if loop.time() >= ends + self._stood_still - _TRY:
                    raise unknown(error, UNSETTLED, cancel.request_id) from error
                await asyncio.sleep(0.05)

    async def withdraw(self, cancel: Cancel) -> None:
        """Cancel a request whose caller stops waiting: one try, for which the caller need not wait."""
        decided = self.cancel(cancel)
        await asyncio.wait([decided], timeout=_TRY)
        if decided.done() and not decided.cancelled():
            decided.exception()  # there is no caller to tell

    async def _send(self) -> None:
        while self._asked:
            batch, self._asked = self._asked[:AT_ONCE], self._asked[AT_ONCE:]
            try:
                await self._decide(batch)
            except asyncio.CancelledError:
                # The program ends, and its cancels have to be made all the same.
                await self._decide([*batch, *self._asked])
                raise

    async def _decide(self, batch: Sequence[_Asked]) -> None:
        written: list[Cancel] = []
        try:
            pipe = self._redis.pipeline(transaction=False)
            for cancel, _ in batch:
                pipe.set(cancel.key, cancel.tombstone, nx=True, get=True, ex=cancel.life)
            answers = await pipe.execute(raise_on_error=False)
            refused = [asked for asked, answer in zip(batch, answers, strict=True) if isinstance(answer, ResponseError)]
            stored = await self._stored([cancel for cancel, _ in refused])
            for (cancel, decided), answer in zip(batch, answers, strict=True):
                if isinstance(answer, ResponseError):
                    _tell(decided, cancel.decide(stored.get(cancel.key), written=False) or answer)
                    continue
                if answer is None:
                    written.append(cancel)
                _tell(decided, cast("str", cancel.decide(answer, written=True)))
            if written:
                with contextlib.suppress(RedisError, OSError):
                    await self._publish(written)
        except (RedisError, OSError) as error:
            for _, decided in batch:
                _tell(decided, error)

    async def _stored(self, cancels: Sequence[Cancel]) -> dict[str, bytes | None]:
        """The stored records of requests whose tombstones Redis has refused."""
        if not cancels:
            return {}
        keys = [cancel.key for cancel in cancels]
        return dict(zip(keys, cast("list[bytes | None]", await self._redis.mget(keys)), strict=True))

    async def _publish(self, cancels: Sequence[Cancel]) -> None:
        """Publish tombstones, for other callers that wait for the same requests."""
        pipe = self._redis.pipeline(transaction=False)
        for cancel in cancels:
            for channel in names.result_channels(cancel.key):
                pipe.publish(channel, cancel.tombstone)
        await pipe.execute(raise_on_error=False)

    async def close(self) -> None:
        """Return when all requested cancels are sent or have failed."""
        if self._looking is not None:
            self._looking.cancel()
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=2 * _TRY)
            if not self._sending.done():
                self._sending.cancel()
                await asyncio.wait([self._sending], timeout=2 * _TRY)


def _tell(decided: asyncio.Future[str], outcome: str | Exception) -> None:
    if decided.done():
        return  # its caller has ended
    if isinstance(outcome, str):
        decided.set_result(outcome)
    else:
        decided.set_exception(outcome)
