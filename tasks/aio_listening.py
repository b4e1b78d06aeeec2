"""Hear of many requests' outcomes in an asyncio program: all over one subscription connection."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from config import names
from config.settings import Settings, redis_tls

#: Connections for cancelling and reading results; waiting needs none of them.
CONNECTIONS = 8
#: How a subscription shows that its connection is lost; the last two where two tasks find it lost at one time.
_LOST = (RedisError, OSError, AttributeError, RuntimeError)


class ResultListener:
    """Waits for many results on one subscription connection. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        url, tls = settings.redis_url.get_secret_value(), redis_tls(settings)
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=1, socket_timeout=1.0, socket_connect_timeout=1.0, **tls
        )
        self.redis: Redis = Redis.from_pool(pool)  # it closes the pool with itself
        self._pubsub: PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        self._results: dict[str, asyncio.Future[str]] = {}
        self._confirmed: dict[str, asyncio.Future[None]] = {}
        self._subscribing = asyncio.Lock()
        self._url, self._tls = url, tls

    async def listen(self, request_id: str, within: float) -> asyncio.Future[str]:
        """Subscribe; once this returns, no result of the request can be missed. The future holds its commit record.

        Raises:
            redis.RedisError: Redis cannot be reached, for a second or for as long as ``within`` and a half more.
        """
        key = names.result_key(request_id)
        loop = asyncio.get_running_loop()
        found = self._results[key] = loop.create_future()
        confirmed = self._confirmed[key] = loop.create_future()
        pubsub: PubSub | None = None
        try:
            async with asyncio.timeout(max(within, 1.0) + 0.5):
                # One after the other: each of many first subscriptions would open a connection, and keep it.
                async with self._subscribing:
                    pubsub = self._pubsub = self._pubsub or self._connect()
                    await asyncio.wait_for(pubsub.subscribe(key), 1.0)
                if self._reader is None:
                    self._reader = loop.create_task(self._read())
                await asyncio.wait_for(confirmed, 1.0)
        except _LOST as error:
            self._results.pop(key, None)
            self._confirmed.pop(key, None)
            # A connection that has died without a word stays so: nothing ever comes from it, no error either.
            if pubsub is self._pubsub and (self._mending is None or self._mending.done()):
                self._mending = loop.create_task(self._reconnect())
            raise ConnectionError("Redis did not confirm the subscription") from error
        return found

    async def forget(self, request_id: str) -> None:
        """Stop waiting for a request."""
        key = names.result_key(request_id)
        self._results.pop(key, None)
        self._confirmed.pop(key, None)
        if self._pubsub is not None:
            # Where the connection is lost this would open another: nobody waits for that.
            with contextlib.suppress(*_LOST):
                async with asyncio.timeout(0.1):
                    await self._pubsub.unsubscribe(key)

    def _connect(self) -> PubSub:
        # The timeout is for connecting: a quiet subscription is no fault, and is read with a timeout of its own.
        client: Redis = Redis.from_url(self._url, socket_timeout=1.0, socket_connect_timeout=1.0, **self._tls)
        return client.pubsub()

    async def _read(self) -> None:
        while (pubsub := self._pubsub) is not None:
            try:
                message = cast(
                    "dict[str, Any] | None", await pubsub.get_message(ignore_subscribe_messages=False, timeout=1.0)
                )
            except (RedisError, OSError, AttributeError):
                if pubsub is self._pubsub:
                    await self._reconnect()
                continue
            except RuntimeError:  # not subscribed to anything at the moment
                await asyncio.sleep(0.01)
                continue
            if message is None:
                continue
            key = cast("bytes", message["channel"]).decode()
            if message["type"] == "subscribe":
                confirmed = self._confirmed.pop(key, None)
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)
            elif message["type"] == "message":
                self._resolve(key, cast("bytes", message["data"]))

    def _resolve(self, key: str, record: bytes) -> None:
        found = self._results.get(key)
        if found is not None and not found.done():
            found.set_result(record.decode(errors="replace"))

    async def _reconnect(self) -> None:
        """Subscribe anew; then look for what was published in between."""
        await asyncio.sleep(0.1)
        with contextlib.suppress(*_LOST):
            old, self._pubsub = self._pubsub, self._connect()
            if old is not None:
                await _let_go(old)
            waiting = list(self._results)
            if waiting:
                await self._pubsub.subscribe(*waiting)
                records = cast("list[bytes | None]", await self.redis.mget(waiting))
                for key, record in zip(waiting, records, strict=True):
                    if record is not None:
                        self._resolve(key, record)

    async def close(self) -> None:
        """Let go of the connections; whoever still waits gets cancelled."""
        pubsub, self._pubsub = self._pubsub, None
        for task in (self._reader, self._mending):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if pubsub is not None:
            await _let_go(pubsub)
        for found in self._results.values():
            found.cancel()
        # The pool was handed to the client, which therefore leaves it open.
        with contextlib.suppress(*_LOST):
            await self.redis.connection_pool.disconnect()


async def _let_go(pubsub: PubSub) -> None:
    """Close a subscription and whatever connection it was still making when it was given up."""
    with contextlib.suppress(*_LOST):
        await pubsub.aclose()
    with contextlib.suppress(*_LOST):
        await pubsub.connection_pool.disconnect()
