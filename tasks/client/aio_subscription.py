"""Hear of many requests' outcomes in an asyncio program: all over one subscription connection.

One task alone makes this connection, reads it and closes it; others hand it what is to be sent. redis-py's PubSub is
not used: whoever sends on it or reads it connects it anew, even one that was just closed, which then nobody closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from peerlane.config import names
from peerlane.config.redis_connections import noticing_async
from peerlane.config.redis_url import redis_tls, sentinels, server_url
from peerlane.config.settings import Settings
from peerlane.tasks.lane.redis_errors import UNSETTLED, unknown
from peerlane.tasks.wire.cancel import Cancel

#: Connections for cancelling and reading results; waiting needs none of them.
CONNECTIONS = 8
#: Seconds in which a subscription is confirmed.
CONFIRMED_WITHIN = 1.0
#: How a connection shows that it is lost; the last where it is closed under its reader.
_LOST = (RedisError, OSError, AttributeError)
#: Seconds before a lost connection is made anew.
_PAUSE = 0.1


class _AbruptTLS(SSLConnection):
    """Closed at once when it is disconnected: asyncio would wait half a minute for the goodbye of a silent server."""

    async def disconnect(self, *arguments: Any, **named: Any) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*arguments, **named)


class ResultListener:
    """Waits for many results on one subscription connection. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._pool = BlockingConnectionPool.from_url(
            server_url(settings),
            sentinels=sentinels(settings),
            max_connections=CONNECTIONS,
            timeout=1,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            **redis_tls(settings),
        )
        kind = self._pool.connection_class
        self._pool.connection_class = noticing_async(_AbruptTLS if kind is SSLConnection else kind)
        self.redis: Redis = Redis.from_pool(self._pool)
        self._serving: asyncio.Task[None] | None = None
        #: The subscription connection while it is up, and what is to be sent on it.
        self._connection: AbstractConnection | None = None
        self._outbox: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._results: dict[str, asyncio.Future[str]] = {}
        #: Of these, the ones whose subscription is not confirmed yet: their requests are still to be sent.
        self._confirmed: dict[str, asyncio.Future[None]] = {}
        self._wanted = asyncio.Event()

    async def listen(self, request_id: str, within: float) -> asyncio.Future[str]:
        """Subscribe; once this returns, no result of the request can be missed. The future holds its commit record.

        Raises:
            redis.RedisError, OSError: Redis cannot be reached; tried again for ``within`` seconds while it is silent.
        """
        key = names.result_key(request_id)
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        found = self._results[key] = loop.create_future()
        try:
            while True:
                try:
                    # The last try leaves time to ask for the outcome within the two seconds that a call may take more.
                    await self._subscribe(key, min(CONFIRMED_WITHIN, max(0.5, until - loop.time())))
                    return found
                except (RedisError, OSError) as error:
                    if not _silent(error) or loop.time() >= until:
                        raise
        except BaseException:
            self.forget(request_id)
            raise

    async def _subscribe(self, key: str, within: float) -> None:
        loop = asyncio.get_running_loop()
        confirmed = self._confirmed[key] = loop.create_future()
        if self._serving is None or self._serving.done():
            self._serving = loop.create_task(self._serve())
        self._wanted.set()
        asked = self._connection
        self._tell("SUBSCRIBE", key)
        try:
            async with asyncio.timeout(within):
                await confirmed
        except TimeoutError:
            # A connection that has died without a word stays so: nothing ever comes from it, no error either.
            if asked is not None and asked is self._connection:
                await asked.disconnect(nowait=True)
            raise
        finally:
            self._confirmed.pop(key, None)

    def forget(self, request_id: str) -> None:
        """Stop waiting for a request."""
        key = names.result_key(request_id)
        self._results.pop(key, None)
        if not self._results:
            self._wanted.clear()
        self._tell("UNSUBSCRIBE", key)

    def _tell(self, command: str, key: str) -> None:
        """Have this sent. While no connection is up nothing need be: the next begins with all that is waited for."""
        if self._connection is not None:
            self._outbox.put_nowait((command, key))

    async def _serve(self) -> None:
        """Own the subscription connection, and its successors while somebody waits."""
        while True:
            await self._wanted.wait()
            connection = self._pool.make_connection()
            try:
                await connection.connect()
                await self._attend(connection)
            except _LOST as error:
                # Who waits for the confirmation learns why there will be none; of a loss it need not know.
                if self._connection is None or isinstance(error, ResponseError):
                    self._refuse(error)
            finally:
                self._connection = None
                await connection.disconnect(nowait=True)
            await asyncio.sleep(_PAUSE)

    async def _attend(self, connection: AbstractConnection) -> None:
        """Subscribe to all that is waited for; then read, until the connection is lost."""
        missed = self._results.keys() - self._confirmed.keys()
        self._connection, self._outbox = connection, asyncio.Queue()
        for key in self._results:
            self._tell("SUBSCRIBE", key)
        sending = asyncio.create_task(self._send(connection))
        unsure = set(missed)
        try:
            while connection.is_connected:
                heard = cast(
                    "list[bytes | int] | None",
                    await connection.read_response(timeout=1.0, disconnect_on_error=False, push_request=True),
                )
                match heard:
                    case [b"subscribe", bytes(channel), int()]:
                        key = channel.decode()
                        if (confirmed := self._confirmed.get(key)) is not None and not confirmed.done():
                            confirmed.set_result(None)
                        if key in unsure:
                            unsure.discard(key)
                            if not unsure:
                                await self._catch_up(missed)
                    case [b"message", bytes(channel), bytes(record)]:
                        self._resolve(channel.decode(), record)
                    case _:
                        pass
        finally:
            await end([sending])

    async def _send(self, connection: AbstractConnection) -> None:
        """Send what is in the outbox, all that has come together at once. Where that fails redis-py disconnects."""
        while True:
            batch = [await self._outbox.get()]
            while not self._outbox.empty():
                batch.append(self._outbox.get_nowait())
            await connection.send_packed_command(connection.pack_commands(batch), check_health=False)

    async def _catch_up(self, keys: Iterable[str]) -> None:
        """Look for what was published while no connection was up."""
        waiting = [key for key in keys if key in self._results]
        if waiting:
            records = cast("list[bytes | None]", await self.redis.mget(waiting))
            for key, record in zip(waiting, records, strict=True):
                if record is not None:
                    self._resolve(key, record)

    def _resolve(self, key: str, record: bytes) -> None:
        found = self._results.get(key)
        if found is not None and not found.done():
            found.set_result(record.decode(errors="replace"))

    def _refuse(self, error: Exception) -> None:
        told = error if isinstance(error, (RedisError, OSError)) else ConnectionError(type(error).__name__)
        for confirmed in self._confirmed.values():
            if not confirmed.done():
                confirmed.set_exception(told)

    async def cancel(self, cancel: Cancel) -> str:
        """Make sure that a request has an outcome; the record that decides it.

        Raises:
            redis.ResponseError: Redis stores no tombstone, and has no record of the request.
            redis.RedisError, OSError: Redis cannot be reached.
        """
        try:
            before = cast(
                "bytes | None", await self.redis.set(cancel.key, cancel.tombstone, nx=True, get=True, ex=cancel.life)
            )
        except ResponseError:
            record = cancel.decide(cast("bytes | None", await self.redis.get(cancel.key)), written=False)
            if record is None:
                raise
            return record
        return cast("str", cancel.decide(before, written=True))

    async def settle(self, cancel: Cancel, ends: float) -> str:
        """As ``cancel``, tried again until ``ends`` on the loop's clock; at least one try is made.

        Raises:
            OutcomeUnknown: Redis could not be reached, or takes no writes and has no record.
        """
        loop = asyncio.get_running_loop()
        ends = max(ends, loop.time() + 1.0)  # this process may have stood still
        while True:
            try:
                async with asyncio.timeout_at(ends):
                    record = await self.cancel(cancel)
                break
            except (RedisError, OSError) as error:
                if loop.time() >= ends - 1.0:
                    raise unknown(error, UNSETTLED, cancel.request_id) from error
                await asyncio.sleep(0.05)
        if record == cancel.tombstone:
            with contextlib.suppress(RedisError, OSError):
                await self.redis.publish(cancel.key, record)
        return record

    async def close(self) -> None:
        """Close every connection. Nobody may be waiting any more."""
        serving, self._serving = self._serving, None
        try:
            if serving is not None:
                await end([serving])
        finally:
            # The pool was handed to the client, which therefore leaves it open.
            with contextlib.suppress(*_LOST):
                await self._pool.disconnect()


def _silent(error: BaseException) -> bool:
    """Whether Redis gave no answer at all; redis-py tells that on a unix socket as the cause of another error."""
    return any(isinstance(one, (TimeoutError, RedisTimeoutError)) for one in (error, error.__cause__))


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end; what they raise is nobody's any more.

    Once is not enough: on Python 3.11 ``asyncio.wait_for``, by which redis-py sends, forgets that it was cancelled
    where what it waits for has just come.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=0.1)
        for task in done:
            if not task.cancelled():
                task.exception()
