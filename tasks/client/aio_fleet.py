"""AsyncFleet: ``Fleet`` for asyncio programs, with one AsyncGateway for each gateway that is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any, Self, TypeVar, Unpack

from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.client.aio_connections import end
from peerlane.tasks.client.aio_gateway import AsyncGateway
from peerlane.tasks.client.fleet import Fleet, Wish
from peerlane.tasks.client.placement import RETRY_ELSEWHERE, Placement, Placing
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.lane import tasks
from peerlane.tasks.lane.request import Timeout, seconds_of
from peerlane.tasks.lane.slices import PeerAnswer, PeerWish
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wire.model import PeerResult

#: Threads that read what the fleet looks like.
READERS = 4

_CLOSED = "this fleet is closed"
_T = TypeVar("_T")
#: A call's request, and a future of the gateways to ask for it.
_Placing = tuple[Placing, "asyncio.Future[Placement]"]


class AsyncFleet:
    """All gateways, seen from an asyncio program. Use it as a context manager, within one event loop."""

    def __init__(self, app: PeerlaneApp | None = None, *, timeout: Timeout | None = None) -> None:
        self._app = app or tasks.app
        self._timeout = timeout
        self._sync = Fleet(self._app)
        # A long list that is being placed keeps no other call waiting.
        self._reader = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="peerlane-fleet")
        #: The calls whose gateways are to be chosen, and what chooses them.
        self._placings: list[_Placing] = []
        self._choosing: asyncio.Task[None] | None = None
        self._clients: dict[str, AsyncGateway] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the threads and close the connections. Calls that still wait are cancelled."""
        self._closed = True
        self._reader.shutdown(wait=False, cancel_futures=True)
        for _, chosen in self._placings:
            chosen.cancel()
        if self._choosing is not None:
            await end([self._choosing])
        clients, self._clients = list(self._clients.values()), {}
        await asyncio.gather(*(client.close() for client in clients))

    async def gateways(self) -> list[GatewayInfo]:
        """As Fleet.gateways."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._sync.gateways)

    async def create_peer(
        self,
        public_key: str,
        *,
        region: str | None = None,
        where: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,  # noqa: ASYNC109 - cancelling is more than giving up the wait
        **wish: Unpack[Wish],
    ) -> PeerResult:
        """As Fleet.create_peer."""
        turns = await self._turns(public_key, region, where, timeout)
        for gateway, left in turns:
            try:
                return await self._client(gateway).create_peer(public_key, timeout=left, **wish)
            except RETRY_ELSEWHERE as refusal:
                turns.refused(gateway, refusal)
        raise turns.no_gateway()

    async def create_peers(
        self,
        wishes: Iterable[PeerWish] | Iterable[Mapping[str, Any]],
        *,
        region: str | None = None,
        where: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,  # noqa: ASYNC109 - as above
    ) -> list[PeerAnswer]:
        """As Fleet.create_peers."""
        listed, within = list(wishes), self._timeout if timeout is None else timeout
        placement = await self._in_thread(self._sync.place_list, listed, region, where)
        while asked := placement.next_round():

            async def ask(gateway: str, places: Sequence[int]) -> list[PeerAnswer]:
                chosen = [listed[place] for place in places]
                return await self._client(gateway).create_peers(chosen, timeout=within)

            for (gateway, places), answers in zip(asked.items(), await _side_by_side(ask, asked), strict=True):
                placement.heard(gateway, places, answers)
        return placement.answers

    async def delete_peers(
        self,
        public_keys: Iterable[str],
        *,
        region: str | None = None,
        where: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,  # noqa: ASYNC109 - as above
    ) -> list[PeerAnswer]:
        """As Fleet.delete_peers."""
        listed, within = list(public_keys), self._timeout if timeout is None else timeout
        removal, no_gateway = await self._in_thread(self._sync.find_list, listed, region, where)

        async def ask(gateway: str, places: Sequence[int]) -> list[PeerAnswer]:
            return await self._client(gateway).delete_peers([listed[place] for place in places], timeout=within)

        answered = await _side_by_side(ask, removal.round)
        for (gateway, places), answers in zip(removal.round.items(), answered, strict=True):
            removal.heard(gateway, places, answers)
        return removal.answers(no_gateway)

    async def _turns(
        self,
        public_key: str,
        region: str | None,
        where: Mapping[str, str] | None,
        timeout: Timeout | None,  # noqa: ASYNC109 - as above
    ) -> Placement:
        """As Fleet.turns, within the caller's time. Those of all calls that wait are read together."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        within = seconds_of(timeout, self._timeout, self._app.settings.timeout)
        loop = asyncio.get_running_loop()
        chosen: asyncio.Future[Placement] = loop.create_future()
        self._placings.append((Placing(public_key, region, where, within, time.monotonic() + within), chosen))
        if self._choosing is None or self._choosing.done():
            self._choosing = loop.create_task(self._choose())
        try:
            async with asyncio.timeout(within):
                return await chosen
        except TimeoutError:
            raise TimedOut(f"no gateway was chosen within {within:g} s; nothing was sent") from None

    async def _choose(self) -> None:
        while waiting := [placing for placing in self._placings if not placing[1].done()]:
            self._placings = []
            try:
                outcomes = await self._in_thread(self._sync.turns_of, [placing for placing, _ in waiting])
            except asyncio.CancelledError:
                for _, chosen in waiting:
                    chosen.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - each caller gets it
                outcomes = [copy(error) for _ in waiting]
            for (_, chosen), outcome in zip(waiting, outcomes, strict=True):
                if chosen.done():
                    continue  # its caller has ended
                if isinstance(outcome, Exception):
                    chosen.set_exception(outcome)
                else:
                    chosen.set_result(outcome)

    def _client(self, gateway: str) -> AsyncGateway:
        if self._closed:  # meanwhile: a client made now would never be closed
            raise asyncio.CancelledError
        if (client := self._clients.get(gateway)) is None:
            client = self._clients[gateway] = AsyncGateway(gateway, app=self._app)
        return client

    async def _in_thread(self, act: Callable[..., _T], *arguments: Any) -> _T:
        if self._closed:
            raise RuntimeError(_CLOSED)
        return await asyncio.get_running_loop().run_in_executor(self._reader, act, *arguments)


async def _side_by_side(
    ask: Callable[[str, Sequence[int]], Coroutine[Any, Any, list[PeerAnswer]]], asked: Mapping[str, Sequence[int]]
) -> list[list[PeerAnswer]]:
    """The answers of all gateways, in order; if one call fails, the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(gateway, places)) for gateway, places in asked.items()]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
