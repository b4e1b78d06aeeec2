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

from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp
from peerlane.tasks.client.aio_subscription import ResultListener, end
from peerlane.tasks.client.call_metrics import counted
from peerlane.tasks.client.gateway import Gateway, create_arguments
from peerlane.tasks.errors import OutcomeUnknown
from peerlane.tasks.lane import tasks as definitions
from peerlane.tasks.lane.drain import Switched
from peerlane.tasks.lane.gateway_info import GatewayInfo
from peerlane.tasks.lane.redis_errors import unknown
from peerlane.tasks.lane.result import GRACE, LaneResult
from peerlane.tasks.wire import outcome
from peerlane.tasks.wire.activity import PeerActivity
from peerlane.tasks.wire.cancel import Cancel, result_of, timed_out
from peerlane.tasks.wire.model import Peer, PeerResult

#: Peers handed from the reading thread at a time.
PAGE = 500
#: Seconds beyond a caller's timeout for which its turn to be sent is waited for.
_SENT_WITHIN = 0.3


def _loop_time(moment: float) -> float:
    """A moment of the monotonic clock on the running loop's."""
    return asyncio.get_running_loop().time() + moment - time.monotonic()


class AsyncGateway:
    """One gateway, seen from an asyncio program. Use it as a context manager, within one event loop.

    Every call raises what the calls of ``peerlane.tasks.client.gateway.Gateway`` raise.
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
        self._asks: set[asyncio.Task[PeerResult]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the thread and close the connections; whoever still waits gets cancelled."""
        self._closed = True
        self._sender.shutdown(wait=False, cancel_futures=True)
        try:
            await end(self._asks)  # before the connections that they use
        finally:
            listener, self._listener = self._listener, None
            if listener is not None:
                await listener.close()

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
        with counted(self.name):
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
        with counted(self.name):
            return await self._ask(self._delete, {"public_key": public_key}, timeout, request_id, bulk=bulk)

    async def drain(self) -> Switched:
        """As Gateway.drain."""
        return await self._in_thread(self._sync.drain)

    async def resume(self) -> Switched:
        """As Gateway.resume."""
        return await self._in_thread(self._sync.resume)

    async def info(self) -> GatewayInfo:
        """As Gateway.info."""
        return await self._in_thread(self._sync.info)

    async def peer(self, public_key: str) -> Peer | None:
        """As Gateway.peer."""
        return await self._in_thread(self._sync.peer, public_key)

    async def activity(self, public_key: str) -> PeerActivity | None:
        """As Gateway.activity."""
        return await self._in_thread(self._sync.activity, public_key)

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
        if self._closed:
            raise RuntimeError(f"this client of {self.name} is closed")
        # A task of its own: closing can end it, wherever it is, and wait for its end.
        asking = asyncio.create_task(self._outcome(task, arguments, timeout, request_id, bulk=bulk))
        self._asks.add(asking)
        asking.add_done_callback(self._ended)
        return await asking

    def _ended(self, asking: asyncio.Task[PeerResult]) -> None:
        self._asks.discard(asking)
        if not asking.cancelled():
            asking.exception()  # a caller that was cancelled at this moment does not ask for it

    async def _outcome(
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
        try:
            found = await listener.listen(identity, within)
        except (RedisError, OSError) as error:
            if time.monotonic() >= began + within:
                # Redis was silent all the time, or this process stood still: one try tells which.
                with contextlib.suppress(OutcomeUnknown):
                    return await self._settle(listener, identity, within, 0.0)
            raise unknown(error, "nothing was sent", identity) from error
        sending = self._in_thread(
            lambda: task.apply_async(
                kwargs={"gateway": self.name, **arguments}, task_id=identity, expires=within, bulk=bulk
            )
        )
        wish = ""
        try:
            with contextlib.suppress(TimeoutError):
                # Others may be sent first. What is sent after its caller has gone finds the tombstone.
                async with asyncio.timeout_at(_loop_time(began + within + _SENT_WITHIN)):
                    wish = cast("LaneResult", await sending).wish
                if request_id is not None and (stored := await self._stored(listener, identity)) is not None:
                    return PeerResult.model_validate(outcome.decode(stored, wish))
                async with asyncio.timeout_at(_loop_time(began + within)):
                    record = await asyncio.shield(found)
                return PeerResult.model_validate(outcome.decode(record, wish))
            return await self._settle(listener, identity, within, _loop_time(began + within + GRACE + 0.8), wish)
        finally:
            listener.forget(identity)

    async def _stored(self, listener: ResultListener, request_id: str) -> str | None:
        """The outcome of an earlier try with the same request id."""
        try:
            record = cast("bytes | None", await listener.redis.get(names.result_key(request_id)))
        except (RedisError, OSError):
            return None
        return None if record is None else record.decode(errors="replace")

    async def _settle(
        self, listener: ResultListener, request_id: str, within: float, ends: float, wish: str = ""
    ) -> PeerResult:
        """The time is up: the request's outcome, or from now on none. ``ends`` is on the loop's clock."""
        # Nothing is sent after its caller has gone: the deadline is at most the timeout ahead.
        cancel = Cancel.of(request_id, result_ttl=self._app.settings.result_ttl, seconds_left=within)
        record = await listener.settle(cancel, ends)
        return PeerResult.model_validate(result_of(record, timed_out(within), wish))
