"""The client for asyncio: thousands of requests awaited at once over one pub/sub connection.

Celery has no asyncio client, and a thread for each wait does not reach thousands. Requests are sent by Celery itself,
from one thread; results come in over one subscription connection; cancelling goes over a small pool of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from typing import Any, Self, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from config import names
from config.celery_app import PeerlaneApp
from config.settings import Settings, redis_tls
from tasks import definitions, results
from tasks.awaiting import GRACE
from tasks.client import Gateway, GatewayInfo, create_arguments
from tasks.connection import reason
from tasks.errors import OutcomeUnknown, TimedOut
from tasks.lanes import TOMBSTONE_MARGIN
from tasks.model import Peer, PeerResult

#: Connections for cancelling and reading results; waiting needs none of them.
CONNECTIONS = 8
#: Peers handed from the reading thread at a time.
PAGE = 500
#: How a subscription shows that its connection is lost; the last two where two tasks find it lost at one time.
_LOST = (RedisError, OSError, AttributeError, RuntimeError)
#: Seconds beyond a caller's timeout for which its turn to be sent is waited for.
_SENT_WITHIN = 0.3


def _loop_time(moment: float) -> float:
    """A moment of the monotonic clock on the running loop's."""
    return asyncio.get_running_loop().time() + moment - time.monotonic()


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


class AsyncGateway:
    """One gateway, seen from an asyncio program. Use it as a context manager, within one event loop.

    Every call raises what the calls of ``tasks.client.Gateway`` raise.
    """

    def __init__(self, name: str, *, app: PeerlaneApp | None = None, timeout: float | None = None) -> None:
        self.name = name
        self._app = app or definitions.app
        self._timeout = timeout
        self._sync = Gateway(name, app=self._app, timeout=timeout)
        self._create = definitions.task_of(self._app, names.CREATE_PEER)
        self._delete = definitions.task_of(self._app, names.DELETE_PEER)
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"peerlane-{name}")
        self._listener: ResultListener | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the thread and the connections."""
        self._sender.shutdown(wait=False, cancel_futures=True)
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    async def create_peer(
        self,
        public_key: str,
        *,
        allowed_ips: Sequence[str] | None = None,
        preshared_key: str | None = None,
        keepalive: int = 0,
        ttl: float | timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        pinned: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - cancelling is more than giving up the wait
        request_id: str | None = None,
        bulk: bool = False,
    ) -> PeerResult:
        """As Gateway.create_peer."""
        wish = create_arguments(public_key, allowed_ips, preshared_key, keepalive, ttl, labels, pinned)
        return await self._ask(self._create, wish, timeout, request_id, bulk=bulk)

    async def delete_peer(
        self,
        public_key: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        request_id: str | None = None,
        bulk: bool = False,
    ) -> PeerResult:
        """As Gateway.delete_peer."""
        return await self._ask(self._delete, {"public_key": public_key}, timeout, request_id, bulk=bulk)

    async def info(self) -> GatewayInfo:
        """As Gateway.info."""
        return await self._in_thread(self._sync.info)

    async def peer(self, public_key: str) -> Peer | None:
        """As Gateway.peer."""
        return await self._in_thread(self._sync.peer, public_key)

    async def peers(self) -> AsyncIterator[Peer]:
        """As Gateway.peers."""
        source = self._sync.peers()

        def page() -> list[Peer]:
            return list(islice(source, PAGE))

        while found := await self._in_thread(page):
            for peer in found:
                yield peer

    async def _in_thread(self, act: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._sender, act, *arguments)

    async def _ask(
        self,
        task: definitions.LaneTask,
        arguments: dict[str, Any],
        timeout: float | None,  # noqa: ASYNC109 - as above
        request_id: str | None,
        *,
        bulk: bool,
    ) -> PeerResult:
        within = timeout or self._timeout or self._app.settings.timeout
        began = time.monotonic()
        identity = request_id or names.request_id(self.name, str(uuid.uuid4()))
        if self._listener is None:
            self._listener = ResultListener(self._app.settings)
        listener = self._listener
        found: asyncio.Future[str] | None = None
        while found is None:
            try:
                found = await listener.listen(identity, within)
            except (RedisError, OSError) as error:
                # A connection that has died without a word was replaced just now: that is worth another try.
                if not isinstance(error.__cause__, TimeoutError) or time.monotonic() >= began + within:
                    raise OutcomeUnknown(
                        f"Redis could not be reached ({reason(error)}); nothing was sent", identity
                    ) from error
        sending = self._in_thread(
            lambda: task.apply_async(
                kwargs={"gateway": self.name, **arguments}, task_id=identity, expires=within, bulk=bulk
            )
        )
        try:
            with contextlib.suppress(TimeoutError):
                # Others may be sent first. What is sent after its caller has gone finds the tombstone.
                async with asyncio.timeout_at(_loop_time(began + within + _SENT_WITHIN)):
                    await sending
                if request_id is not None and (stored := await self._stored(listener, identity)) is not None:
                    return PeerResult.model_validate(results.decode(stored))
                async with asyncio.timeout_at(_loop_time(began + within)):
                    record = await asyncio.shield(found)
                return PeerResult.model_validate(results.decode(record))
            return await self._settle(listener, identity, within, _loop_time(began + within + GRACE + 0.8))
        finally:
            await listener.forget(identity)

    async def _stored(self, listener: ResultListener, request_id: str) -> str | None:
        """The outcome of an earlier try with the same request id."""
        try:
            record = cast("bytes | None", await listener.redis.get(names.result_key(request_id)))
        except (RedisError, OSError):
            return None
        return None if record is None else record.decode(errors="replace")

    async def _settle(self, listener: ResultListener, request_id: str, within: float, ends: float) -> PeerResult:
        """The time is up: the request's outcome, or from now on none. ``ends`` is on the loop's clock."""
        # This process may have stood still: one try is always made.
        ends = max(ends, _loop_time(time.monotonic() + 1.0))
        stone, key = results.tombstone(request_id), names.result_key(request_id)
        # A deadline of a timeout is at most ten minutes, and so is a request's life in the queue.
        life = max(self._app.settings.result_ttl, int(within) + TOMBSTONE_MARGIN)
        while True:
            try:
                async with asyncio.timeout_at(ends):
                    before = cast("bytes | None", await listener.redis.set(key, stone, nx=True, get=True, ex=life))
                break
            except (RedisError, OSError, TimeoutError) as error:
                if asyncio.get_running_loop().time() >= ends - 1.0:
                    raise OutcomeUnknown(
                        "Redis could not be reached: whether the request took effect is unknown; "
                        "ask again with the same id",
                        request_id,
                    ) from error
                await asyncio.sleep(0.05)
        if before is None:
            with contextlib.suppress(RedisError, OSError):
                await listener.redis.publish(key, stone)
        try:
            return PeerResult.model_validate(results.decode(before or stone))
        except TimedOut:
            raise TimedOut(
                f"no outcome within {within:g} s: the request was cancelled and will never take effect"
            ) from None
