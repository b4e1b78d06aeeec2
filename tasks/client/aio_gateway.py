"""The client for asyncio: thousands of requests awaited at once over one connection.

Celery has no asyncio client, and a thread for each wait does not scale to thousands. If a call ends early, by a timeout
around it or because its task is cancelled, its request is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from typing import Any, Self

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.drain import Switched
from peerlane.tasks.client.aio_lane import AsyncLane
from peerlane.tasks.client.aio_lists import ask_slices
from peerlane.tasks.client.aio_waits import Calls
from peerlane.tasks.client.gateway import Gateway, create_arguments
from peerlane.tasks.lane import tasks
from peerlane.tasks.lane.request import Timeout, checked, seconds_of
from peerlane.tasks.lane.slices import PeerAnswer, PeerWish, Slice, cut, new_list_id
from peerlane.tasks.lane.telemetry import counted
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.activity import PeerActivity
from peerlane.tasks.wire.model import PeerResult, peer_result
from peerlane.tasks.wire.psk_cipher import cipher_of
from peerlane.tasks.wire.stored_peer import Peer

#: Peers handed from the reading thread at a time.
PAGE = 500


class AsyncGateway:
    """One gateway, seen from an asyncio program. Use it as a context manager, within one event loop.

    Every call raises what the calls of ``peerlane.tasks.client.gateway.Gateway`` raise.
    """

    def __init__(self, name: str, *, app: PeerlaneApp | None = None, timeout: Timeout | None = None) -> None:
        self.name = name
        self._app = app or tasks.app
        self._timeout = timeout
        self._sync = Gateway(name, app=self._app, timeout=timeout)
        self._create = tasks.task_of(self._app, names.CREATE_PEER)
        self._delete = tasks.task_of(self._app, names.DELETE_PEER)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"peerlane-{name}")
        self._lane: AsyncLane | None = None
        self._calls = Calls()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the threads and close the connections. Calls that still wait are cancelled, and their requests too."""
        self._closed = True
        self._reader.shutdown(wait=False, cancel_futures=True)
        try:
            await self._calls.end()  # before the connections that they use
        finally:
            lane, self._lane = self._lane, None
            if lane is not None:
                await lane.close()

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
        timeout: Timeout | None = None,  # noqa: ASYNC109 - cancelling is more than giving up the wait
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
        timeout: Timeout | None = None,  # noqa: ASYNC109 - as above
        request_id: str | None = None,
        bulk: bool = False,
    ) -> PeerResult:
        """As Gateway.delete_peer."""
        with counted(self.name):
            return await self._ask(self._delete, {"public_key": public_key}, timeout, request_id, bulk=bulk)

    async def create_peers(
        self,
        wishes: Iterable[PeerWish] | Iterable[Mapping[str, Any]],
        *,
        timeout: Timeout | None = None,  # noqa: ASYNC109 - as above
        request_id: str | None = None,
    ) -> list[PeerAnswer]:
        """As Gateway.create_peers."""
        with counted(self.name):
            return await self._ask_list(names.CREATE_PEERS, wishes, timeout, request_id)

    async def delete_peers(
        self,
        public_keys: Iterable[str],
        *,
        timeout: Timeout | None = None,  # noqa: ASYNC109 - as above
        request_id: str | None = None,
    ) -> list[PeerAnswer]:
        """As Gateway.delete_peers."""
        with counted(self.name):
            return await self._ask_list(names.DELETE_PEERS, public_keys, timeout, request_id)

    async def _ask_list(
        self,
        name: str,
        wishes: Iterable[object],
        timeout: Timeout | None,  # noqa: ASYNC109 - as above
        request_id: str | None,
    ) -> list[PeerAnswer]:
        task = tasks.task_of(self._app, name)

        async def ask(part: Slice) -> Mapping[str, Any]:
            return await self._ask_for(task, part.arguments, timeout, part.request_id, bulk=True)

        return await ask_slices(ask, cut(name, self.name, wishes, new_list_id(self.name, request_id)))

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

        while peers := await self._in_thread(page):
            for peer in peers:
                yield peer

    async def _in_thread(self, act: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._reader, act, *arguments)

    async def _ask(
        self,
        task: tasks.LaneTask,
        arguments: dict[str, Any],
        timeout: Timeout | None,  # noqa: ASYNC109 - as above
        request_id: str | None,
        *,
        bulk: bool,
    ) -> PeerResult:
        return peer_result(await self._ask_for(task, arguments, timeout, request_id, bulk=bulk))

    async def _ask_for(
        self,
        task: tasks.LaneTask,
        arguments: dict[str, Any],
        timeout: Timeout | None,  # noqa: ASYNC109 - as above
        request_id: str | None,
        *,
        bulk: bool,
    ) -> dict[str, Any]:
        if self._closed:
            raise RuntimeError(f"this client of {self.name} is closed")
        call = self._calls.enter()
        try:
            return await self._outcome(task, arguments, timeout, request_id, bulk=bulk)
        finally:
            self._calls.leave(call)

    async def _outcome(
        self,
        task: tasks.LaneTask,
        arguments: dict[str, Any],
        timeout: Timeout | None,  # noqa: ASYNC109 - as above
        request_id: str | None,
        *,
        bulk: bool,
    ) -> dict[str, Any]:
        within = seconds_of(timeout, self._timeout, self._app.settings.timeout)
        if self._lane is None or self._lane.loop is not asyncio.get_running_loop():
            self._lane = AsyncLane(self._app, self.name)
        request = checked(
            task.name,
            task.model,
            {"gateway": self.name, **arguments},
            cipher=lambda: cipher_of(self._app.settings),
            within=within,
            request_id=request_id,
            bulk=bulk,
        )
        return await self._lane.ask(task, request)
