"""Peers for callers that name no gateway: the live, undrained one of a region or with some labels with most room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypedDict, Unpack

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.client.aio_gateway import AsyncGateway
from peerlane.tasks.client.gateway import Gateway, gateways
from peerlane.tasks.errors import (
    Draining,
    PeerlaneError,
    PoolExhausted,
    StorageError,
    TimedOut,
    Unavailable,
)
from peerlane.tasks.lane import tasks
from peerlane.tasks.lane.request import Timeout, seconds_of
from peerlane.tasks.redis.errors import reaching
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wire.model import DeletePeer, Peer, PeerResult, parse

#: Refusals after which another gateway is asked: definite, and no fault of the wish. Not TimedOut: the caller's time
#: is up. Not OutcomeUnknown: the peer may be there, and asking elsewhere could make it twice.
RETRY_ELSEWHERE = (Unavailable, Draining, PoolExhausted)
#: Gateways named in a refusal.
TOLD = 50


class Wish(TypedDict, total=False):
    """What ``Gateway.create_peer`` takes beyond the key, but for a request id, which is of one gateway."""

    allowed_ips: Sequence[str] | None
    preshared_key: str | None
    keepalive: int
    ttl: float | timedelta | None
    labels: Mapping[str, str] | None
    pinned: bool
    bulk: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to be asked, in order, and why the others are not."""

    candidates: tuple[GatewayInfo, ...]
    #: Those of the region and the labels that take no peers now, each with the reason.
    passed: Mapping[str, str]
    #: Those that do not match, each with the reason: near misses (of the region, with another label) come first.
    elsewhere: Mapping[str, str]
    #: Whether the peer is on the one candidate already, so that no other may be asked.
    bound: bool = False


def matches(one: GatewayInfo, region: str | None, where: Mapping[str, str]) -> str | None:
    """None where the gateway is of the region and has the labels; else in what it is another."""
    if region is not None and one.region != region:
        return f"its region is {one.region}" if one.region else "it has no region"
    wrong = [name for name, value in where.items() if one.labels.get(name) != value]
    return f"its label {wrong[0]} is {one.labels.get(wrong[0], 'not set')}" if wrong else None


def choose(fleet: Iterable[GatewayInfo], region: str | None = None, where: Mapping[str, str] | None = None) -> Choice:
    """The matching gateways that take peers: most room first, then fewest waiting, then by name. Pure.

    A full one is asked last instead of never: what is known of its room is a second old.
    """
    candidates: list[GatewayInfo] = []
    passed: dict[str, str] = {}
    elsewhere: list[tuple[bool, str, str]] = []
    for one in fleet:
        if reason := matches(one, region, where or {}):
            elsewhere.append((region is not None and one.region != region, one.name, reason))
        elif one.state != "active":
            passed[one.name] = f"it is {one.state}"
        else:
            candidates.append(one)
    candidates.sort(key=lambda one: (-one.room, one.waiting, one.name))
    return Choice(tuple(candidates), passed, {name: reason for _, name, reason in sorted(elsewhere)})


class Fleet:
    """All gateways, seen from an API host. Threads may share it."""

    def __init__(self, app: PeerlaneApp | None = None, *, timeout: Timeout | None = None) -> None:
        self._app = app or tasks.app
        self._timeout = timeout

    def gateways(self) -> list[GatewayInfo]:
        """Every registered gateway, by name. Raises OutcomeUnknown where Redis cannot be reached."""
        return gateways(self._app)

    def create_peer(
        self,
        public_key: str,
        *,
        region: str | None = None,
        where: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
        **wish: Unpack[Wish],
    ) -> PeerResult:
        """Create a peer on the best gateway of ``region`` whose labels include ``where``; the result names it.

        A gateway that refuses because it is down, drained or full is passed over for the next. Any other refusal is
        the answer. So is a TimedOut, for the caller's time is up, and an OutcomeUnknown: the peer may be there, and
        asking elsewhere could make it twice. ``timeout`` is for all gateways together.

        Asked again, the same key stays where it is: a matching gateway that has it is the only one asked, also while
        it is down or drained; delete the peer there, or let it expire, to let it move. Two calls with one key at the
        same moment do not see each other: keep a key to one caller.

        Raises:
            Unavailable: no gateway can take it; names each and why.
            PeerlaneError: as Gateway.create_peer.
        """
        turns = self.turns(public_key, region, where, timeout)
        for gateway, left in turns:
            try:
                return Gateway(gateway, app=self._app).create_peer(public_key, timeout=left, **wish)
            except RETRY_ELSEWHERE as refusal:
                turns.refused(gateway, refusal)
        raise turns.nobody()

    def turns(
        self, public_key: str, region: str | None, where: Mapping[str, str] | None, timeout: Timeout | None = None
    ) -> Placement:
        """Who is to be asked for this key, in order.

        Raises:
            Invalid: not a public key.
            OutcomeUnknown: Redis could not be reached; nothing was sent.
        """
        within = seconds_of(timeout, self._timeout, self._app.settings.timeout)
        fleet = self.gateways()
        choice = choose(fleet, region, where)
        matching = [one for one in fleet if matches(one, region, where or {}) is None]
        if holders := self._holders(public_key, [one.name for one in matching]):
            choice = Choice(tuple(one for one in matching if one.name == holders[0]), {}, {}, bound=True)
        parts = [f"region {region}"] if region else []
        parts += [f"{name}={value}" for name, value in (where or {}).items()]
        return Placement(choice, within, " with " + ", ".join(parts) if parts else "")

    def _holders(self, public_key: str, among: Sequence[str]) -> list[str]:
        """The gateways of ``among`` that have this peer; where its time is up, it is as good as gone."""
        if not among:
            return []
        parse(DeletePeer, {"gateway": among[0], "public_key": public_key})
        pipe = lanes_of(self._app).redis.pipeline(transaction=False)
        for name in among:
            pipe.hget(names.peers_key(name), public_key)
        pipe.time()
        with reaching("nothing was sent"):
            *found, (now, _) = pipe.execute()
        return [name for name, record in zip(among, found, strict=True) if record and _binds(public_key, record, now)]


def _binds(public_key: str, record: bytes, now: int) -> bool:
    """Whether a peer's record holds it where it is; ``now`` is in seconds on Redis' clock."""
    try:
        peer = Peer.from_record(public_key, record)
    except (ValueError, StorageError):
        return True  # nobody knows what it is: its gateway is to say so
    return peer.pinned or peer.expires_at is None or peer.expires_at > now


class AsyncFleet:
    """All gateways, seen from an asyncio program. Use it as a context manager, within one event loop."""

    def __init__(self, app: PeerlaneApp | None = None, *, timeout: Timeout | None = None) -> None:
        self._app = app or tasks.app
        self._timeout = timeout
        self._sync = Fleet(self._app)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="peerlane-fleet")
        self._clients: dict[str, AsyncGateway] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the threads and close the connections; whoever still waits gets cancelled."""
        self._closed = True
        self._reader.shutdown(wait=False, cancel_futures=True)
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
        if self._closed:
            raise RuntimeError("this fleet is closed")
        turns = await asyncio.get_running_loop().run_in_executor(
            self._reader, self._sync.turns, public_key, region, where, self._timeout if timeout is None else timeout
        )
        for gateway, left in turns:
            if self._closed:  # meanwhile: a client made now would be closed by nobody
                raise asyncio.CancelledError
            if (client := self._clients.get(gateway)) is None:
                client = self._clients[gateway] = AsyncGateway(gateway, app=self._app)
            try:
                return await client.create_peer(public_key, timeout=left, **wish)
            except RETRY_ELSEWHERE as refusal:
                turns.refused(gateway, refusal)
        raise turns.nobody()


class Placement:
    """The candidates of one request, one after the other while time is left, and why each did not take the peer."""

    def __init__(self, choice: Choice, within: float, asked_for: str = "") -> None:
        self._choice = choice
        self._asked_for = asked_for
        self._within = within
        self._until = time.monotonic() + within
        self._reasons = dict(choice.passed)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        for one in self._choice.candidates:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimedOut(f"no gateway has taken the peer within {self._within:g} s: {self._told()}")
            yield one.name, left

    def refused(self, gateway: str, refusal: PeerlaneError) -> None:
        """``gateway`` has refused; on to the next, unless the peer is bound to this one: then the refusal is raised."""
        if self._choice.bound:
            raise refusal
        self._reasons[gateway] = refusal.message

    def nobody(self) -> PeerlaneError:
        """What to raise once all have refused."""
        if not self._reasons and not self._choice.elsewhere:
            return Unavailable("no gateway is registered; `peerlane gateway run NAME` starts one")
        return Unavailable(f"no gateway{self._asked_for} takes the peer: {self._told()}", 5.0)

    def _told(self) -> str:
        """Why each was not chosen; those of another region or other labels come last, near misses before the rest."""
        told = [*sorted(self._reasons.items()), *self._choice.elsewhere.items()]
        more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
        return "; ".join(f"{name}: {reason}" for name, reason in told[:TOLD]) + more
