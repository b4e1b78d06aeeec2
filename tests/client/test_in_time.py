"""Callers are back in their time: where Redis is silent, where many ask at once, and where a fleet is read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from faultproxy import FaultProxy
from gateways import MakeClient, MakeGateway, MakeSettings, close, new_name
from keys import some_key
from loops import run_and_leave_nothing
from servers import RedisServer
from waiting import PATIENCE, Stopwatch

from peerlane import AsyncFleet, AsyncGateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError, TimedOut


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(str(redis_server.socket)) as proxy:
        yield proxy


@pytest.fixture
def linked_app(link: FaultProxy, settings: MakeSettings) -> Iterator[PeerlaneApp]:
    """A client's app that reaches Redis by the link."""
    app = PeerlaneApp(settings(redis_url=link.url))
    yield app
    close(app)


async def end_of(call: Any) -> tuple[object, float]:
    """What a call ends in, and after how many seconds."""
    watch = Stopwatch()
    try:
        return (await call).outcome, watch.seconds
    except PeerlaneError as error:
        return type(error), watch.seconds


@pytest.mark.parametrize("known", [True, False], ids=["after-a-call", "at-the-first-call"])
def test_a_redis_that_is_silent_for_less_than_the_timeout_costs_a_thread_nothing(
    own_redis: RedisServer, gateway: MakeGateway, client: MakeClient, *, known: bool
) -> None:
    api = client(gateway(redis=own_redis), redis=own_redis)
    if known:
        api.create_peer(some_key())
    own_redis.pause()
    timer = threading.Timer(2.5, own_redis.resume)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(api.create_peer, some_key(), timeout=PATIENCE) for _ in range(4)]
        timer.start()
        assert {call.result().outcome for call in asked} == {"created"}
    timer.join()


@contextlib.contextmanager
def dropping() -> Generator[int]:
    """A port of this host whose packets are dropped: nobody takes the connections that wait there."""
    with socket.socket() as server, contextlib.ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)  # noqa: FBT003 - the library's own
            one.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@pytest.mark.parametrize("with_id", [False, True], ids=["new", "with-an-id"])
def test_a_caller_whose_packets_are_dropped_is_back_in_time(client: MakeClient, *, with_id: bool) -> None:
    with dropping() as port:
        api = client("iad", redis_url=f"redis://127.0.0.1:{port}/0")
        watch = Stopwatch()
        with pytest.raises(OutcomeUnknown, match="nothing was sent"):
            api.create_peer(some_key(), timeout=0.5, request_id="iad.chosen" if with_id else None)
        assert watch.seconds < 15, "the kernel alone would try for two minutes"


def test_callers_of_a_burst_do_not_queue_for_longer_than_their_timeout(
    gateway: MakeGateway, link: FaultProxy, linked_app: PeerlaneApp
) -> None:
    site = gateway(lane_cap=16)  # one look lets an eighth of it pass

    async def burst() -> list[tuple[object, float]]:
        async with AsyncGateway(site.name, app=linked_app) as lane:
            await lane.create_peer(some_key(), timeout=PATIENCE)
            link.latency = 0.1
            return await asyncio.gather(*(end_of(lane.create_peer(some_key(), timeout=1)) for _ in range(200)))

    ends = run_and_leave_nothing(burst)
    assert {end for end, _ in ends} <= {"created", TimedOut, OutcomeUnknown}
    assert [end for end, _ in ends].count(TimedOut) > 100, "nothing was sent for them"
    # With a look for every two of them they would be at it for twenty seconds.
    assert max(seconds for _, seconds in ends) < 10


def test_an_asyncio_fleet_tells_all_its_callers_together_that_redis_is_silent(
    gateway: MakeGateway, link: FaultProxy, linked_app: PeerlaneApp
) -> None:
    region = new_name()
    gateway(region=region)

    async def ask() -> list[tuple[object, float]]:
        async with AsyncFleet(linked_app) as fleet:
            assert (await fleet.create_peer(some_key(), region=region, timeout=PATIENCE)).outcome == "created"
            link.half_open()
            calls = (end_of(fleet.create_peer(some_key(), region=region, timeout=0.5)) for _ in range(40))
            return await asyncio.gather(*calls)

    ends = run_and_leave_nothing(ask)
    assert {end for end, _ in ends} <= {OutcomeUnknown, TimedOut}
    # One after the other they would take forty seconds.
    assert max(seconds for _, seconds in ends) < 10


def reads(server: RedisServer) -> int:
    """How often the names of all gateways were read."""
    stats = cast("dict[str, dict[str, int]]", server.redis.info("commandstats"))
    return stats.get("cmdstat_smembers", {"calls": 0})["calls"]


def test_an_asyncio_fleet_is_read_once_for_all_that_ask_at_once(
    own_redis: RedisServer, gateway: MakeGateway, settings: MakeSettings, request: pytest.FixtureRequest
) -> None:
    site = gateway(redis=own_redis, region="eu")
    app = PeerlaneApp(settings(redis_url=own_redis.url))
    request.addfinalizer(lambda: close(app))
    keys = [some_key() for _ in range(60)]

    async def ask(fleet: AsyncFleet, **how: Any) -> list[tuple[object, str]]:
        results = await asyncio.gather(*(fleet.create_peer(key, **how) for key in keys))
        return [(result.outcome, result.gateway) for result in results]

    async def program() -> int:
        async with AsyncFleet(app) as fleet:
            before = reads(own_redis)
            assert await ask(fleet, region="eu", timeout=PATIENCE) == [("created", site.name)] * 60
            assert await ask(fleet, timeout=PATIENCE) == [("existing", site.name)] * 60
            return reads(own_redis) - before

    assert run_and_leave_nothing(program) < 20


def test_of_an_asyncio_fleets_callers_one_with_a_bad_wish_is_told_alone(
    gateway: MakeGateway, linked_app: PeerlaneApp
) -> None:
    region = new_name()
    gateway(region=region)

    async def ask() -> list[object]:
        async with AsyncFleet(linked_app) as fleet:
            asked: list[Callable[[], Any]] = [
                lambda: fleet.create_peer(some_key(), region=region),
                lambda: fleet.create_peer("no key", region=region),
                lambda: fleet.create_peer(some_key(), region=region, where=cast("Any", ["tier=a"])),
                lambda: fleet.create_peer(some_key(), region=f"no-{region}"),
                lambda: fleet.create_peer(some_key(), region=region),
            ]
            return await asyncio.gather(*(call() for call in asked), return_exceptions=True)

    first, no_key, no_mapping, no_gateway, last = run_and_leave_nothing(ask)
    assert [getattr(end, "outcome", None) for end in (first, last)] == ["created"] * 2
    assert [type(end).__name__ for end in (no_key, no_mapping, no_gateway)] == [
        "Invalid",
        "AttributeError",
        "Unavailable",
    ]


def test_a_burst_of_creates_that_count_in_a_share_needs_few_connections(
    gateway: MakeGateway, link: FaultProxy, linked_app: PeerlaneApp
) -> None:
    site = gateway(fair_label="tenant", fair_share=1.0)

    async def burst() -> list[tuple[object, float]]:
        async with AsyncGateway(site.name, app=linked_app) as lane:
            await lane.create_peer(some_key(), timeout=PATIENCE)
            link.latency = 0.05
            calls = (lane.create_peer(some_key(), labels={"tenant": "a"}, timeout=PATIENCE) for _ in range(400))
            return await asyncio.gather(*(end_of(call) for call in calls))

    assert {end for end, _ in run_and_leave_nothing(burst)} == {"created"}
