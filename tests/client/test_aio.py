"""The asyncio client: given up wherever it is, it leaves no connection; what it missed it catches up with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from faultproxy import FaultProxy
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close, new_name
from keys import some_key
from loops import run_and_leave_nothing
from servers import RedisServer
from waiting import PATIENCE, Stopwatch, eventually

from peerlane import AsyncFleet, AsyncGateway, Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import Draining, OutcomeUnknown, PeerlaneError, TimedOut, Unavailable
from peerlane.tasks.wire.model import PeerResult

#: Seconds after which a program gives up: while it connects, is subscribed, waits, asks for the last word.
MOMENTS = (0.0, 0.05, 0.6, 1.05, 1.6)


@dataclass(frozen=True)
class Site:
    """A gateway, and a way to Redis that falls silent without a word."""

    name: str
    app: PeerlaneApp
    silence: Callable[[], None]
    mend: Callable[[], None]

    def answers(self) -> bool:
        try:
            return Gateway(self.name, app=self.app).create_peer(some_key(), timeout=3).outcome == "created"
        except PeerlaneError:
            return False


@pytest.fixture
def make_app(settings: MakeSettings) -> Iterator[Callable[..., PeerlaneApp]]:
    """Makes apps, and closes their connections after the test."""
    made: list[PeerlaneApp] = []

    def make(**overrides: Any) -> PeerlaneApp:
        made.append(PeerlaneApp(settings(**overrides)))
        return made[-1]

    yield make
    for app in made:
        close(app)


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """The program's way to Redis."""
    with FaultProxy(str(redis_server.socket)) as proxy:
        yield proxy


@pytest.fixture(params=["redis-is-stopped", "its-host-is-gone"])
def site(request: pytest.FixtureRequest, gateway: MakeGateway, make_app: Callable[..., PeerlaneApp]) -> Site:
    if request.param == "redis-is-stopped":
        server: RedisServer = request.getfixturevalue("own_redis")
        return Site(gateway(redis=server).name, make_app(redis_url=server.url), server.pause, server.resume)
    link: FaultProxy = request.getfixturevalue("link")
    return Site(gateway().name, make_app(redis_url=link.url), link.half_open, link.mend)


# What it leaves


@pytest.mark.parametrize("known", [True, False], ids=["after-a-call", "at-the-first-call"])
def test_a_program_that_gives_up_while_redis_is_silent_leaves_no_connection(site: Site, *, known: bool) -> None:
    async def give_up(moment: float) -> list[Any]:
        async with AsyncGateway(site.name, app=site.app) as lane:
            if known:
                await lane.create_peer(some_key(), timeout=PATIENCE)
            asked = [asyncio.create_task(lane.create_peer(some_key(), timeout=0.5)) for _ in range(4)]
            await asyncio.sleep(0)
            site.silence()
            asked += [asyncio.create_task(lane.create_peer(some_key(), timeout=0.5)) for _ in range(4)]
            await asyncio.sleep(moment)
            for task in asked[::2]:
                task.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    for moment in MOMENTS:
        eventually(site.answers, "a peer to be created")
        ends = run_and_leave_nothing(lambda moment=moment: give_up(moment))
        site.mend()
        assert {type(end) for end in ends} & {asyncio.CancelledError, OutcomeUnknown}


def test_a_program_whose_subscription_is_being_made_anew_leaves_no_connection(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp], link: FaultProxy
) -> None:
    site, app = gateway(), make_app(redis_url=link.url)

    async def lose_it(moment: float) -> object:
        async with AsyncGateway(site.name, app=app) as lane:
            await lane.create_peer(some_key(), timeout=PATIENCE)
            waiting = asyncio.create_task(lane.create_peer(some_key(), timeout=PATIENCE))
            site.pause(alive=True)
            link.half_open()
            link.reset()
            await asyncio.sleep(moment)
        return await _end_of(waiting)

    for moment in (0.05, 0.12, 0.5, 1.15):
        end = run_and_leave_nothing(lambda moment=moment: lose_it(moment))
        assert isinstance(end, asyncio.CancelledError)
        link.mend()
        site.resume()


async def with_a_call(site: GatewayProcess, app: PeerlaneApp) -> tuple[AsyncGateway, asyncio.Task[PeerResult]]:
    """A client, and a call of it that waits for a writer that stands still."""
    lane = AsyncGateway(site.name, app=app)
    await lane.create_peer(some_key(), timeout=PATIENCE)
    site.pause(alive=True)
    calling = asyncio.create_task(lane.create_peer(some_key(), timeout=PATIENCE))
    await asyncio.sleep(0.2)
    return lane, calling


def test_closing_ends_every_wait_and_a_closed_client_opens_nothing(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp]
) -> None:
    site, app = gateway(), make_app()

    async def close_it() -> None:
        lane, waiting = await with_a_call(site, app)
        await lane.close()
        assert isinstance(await _end_of(waiting), asyncio.CancelledError)
        with pytest.raises(RuntimeError, match="closed"):
            await lane.create_peer(some_key())
        await lane.close()

    run_and_leave_nothing(close_it)
    site.resume()


def test_closing_cancels_calls_and_not_their_callers(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp]
) -> None:
    site, app = gateway(), make_app()

    async def close_it() -> list[str]:
        lane = AsyncGateway(site.name, app=app)
        await lane.create_peer(some_key(), timeout=PATIENCE)
        site.pause(alive=True)

        async def caller() -> str:
            with pytest.raises(asyncio.CancelledError):
                await lane.create_peer(some_key(), timeout=PATIENCE)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            async with asyncio.timeout(PATIENCE):
                await asyncio.sleep(0.01)
            return "went on"

        callers = [asyncio.create_task(caller()) for _ in range(3)]
        await asyncio.sleep(0.1)
        await lane.close()
        return await asyncio.gather(*callers)

    assert run_and_leave_nothing(close_it) == ["went on"] * 3
    site.resume()


def test_a_caller_that_is_cancelled_while_its_client_is_closed_is_cancelled(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp]
) -> None:
    site, app = gateway(), make_app()

    async def close_it() -> bool:
        lane, calling = await with_a_call(site, app)
        closing = asyncio.create_task(lane.close())
        await asyncio.sleep(0)
        calling.cancel()
        await closing
        await asyncio.wait([calling])
        return calling.cancelled() and calling.cancelling() == 1

    assert run_and_leave_nothing(close_it)
    site.resume()


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.3])
def test_a_fleet_that_is_closed_under_its_callers_leaves_no_connection(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp], moment: float
) -> None:
    region = new_name()
    site, app = gateway(region=region), make_app()

    async def close_it() -> list[Any]:
        fleet = AsyncFleet(app)
        site.pause(alive=True)
        asked = [asyncio.create_task(fleet.create_peer(some_key(), region=region, timeout=60)) for _ in range(20)]
        await asyncio.sleep(moment)
        await fleet.close()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(RuntimeError, match="closed"):
            await fleet.create_peer(some_key(), region=region)
        return ends

    ends = run_and_leave_nothing(close_it)
    site.resume()
    assert {type(end) for end in ends} <= {asyncio.CancelledError, RuntimeError}


async def _end_of(task: asyncio.Task[Any]) -> Any:
    return (await asyncio.gather(task, return_exceptions=True))[0]


# What it hears


def test_an_outcome_that_came_while_the_subscription_was_lost_is_caught_up_with(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp], link: FaultProxy, redis_server: RedisServer
) -> None:
    site, app = gateway(), make_app(redis_url=link.url)
    request_id = names.request_id(site.name, new_name())

    async def miss_it() -> str:
        async with AsyncGateway(site.name, app=app) as lane:
            await lane.create_peer(some_key(), timeout=PATIENCE)
            await asyncio.to_thread(site.hold)
            waiting = asyncio.create_task(lane.create_peer(some_key(), timeout=60, request_id=request_id))
            await asyncio.to_thread(eventually, lambda: site.look().waiting == 1, "the request in the lane")
            link.cut()
            site.resume()
            key = names.result_key(request_id)
            await asyncio.to_thread(eventually, lambda: redis_server.redis.exists(key), "the request's commit")
            link.mend()
            return (await waiting).outcome

    watch = Stopwatch()
    assert run_and_leave_nothing(miss_it) == "created"
    assert watch.seconds < 30  # its timeout would have told it too


def test_outcomes_are_not_written_out_for_a_debug_log(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp], caplog: pytest.LogCaptureFixture
) -> None:
    site, app = gateway(), make_app()

    async def ask() -> str:
        async with AsyncGateway(site.name, app=app) as lane:
            return (await lane.create_peer(some_key(), timeout=PATIENCE)).outcome

    with caplog.at_level("DEBUG", logger="push_response"):
        assert run_and_leave_nothing(ask) == "created"
    assert [record.name for record in caplog.records if "task_id" in record.getMessage()] == []


@pytest.mark.slow("stands still eleven times, each time until every timeout has passed")
def test_a_program_that_stood_still_learns_what_became_of_its_request(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp]
) -> None:
    site, app = gateway(), make_app()

    async def stand_still(steps: int) -> object:
        async with AsyncGateway(site.name, app=app) as lane:
            asking = asyncio.create_task(lane.create_peer(some_key(), timeout=0.3))
            for _ in range(steps):
                await asyncio.sleep(0)
            time.sleep(1.5)  # noqa: ASYNC251 - as if the process had been stopped: every timeout passes
            return await _end_of(asking)

    for steps in range(1, 12):
        end = run_and_leave_nothing(lambda steps=steps: stand_still(steps))
        assert isinstance(end, (PeerResult, TimedOut)), end


def test_a_program_that_stands_still_while_it_cancels_learns_the_truth(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp], link: FaultProxy
) -> None:
    site = gateway()
    app = make_app(redis_url=link.url)

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncGateway(site.name, app=app) as iad:
            await iad.create_peer(some_key(), timeout=PATIENCE)
            site.hold()
            link.latency = 0.1  # the cancel's answer is on its way while nothing runs, and comes before that ends
            asking = asyncio.create_task(iad.create_peer(some_key(), timeout=0.5))
            loop.call_later(0.6, time.sleep, 1.5)
            with pytest.raises(TimedOut):
                await asking

    asyncio.run(ask())
    site.resume()


def test_callers_that_are_cancelled_cost_the_others_no_connection(
    gateway: MakeGateway, make_app: Callable[..., PeerlaneApp], link: FaultProxy
) -> None:
    site, app = gateway(), make_app(redis_url=link.url)

    async def cancel_some() -> tuple[int, set[str]]:
        async with AsyncGateway(site.name, app=app) as lane:
            await lane.create_peer(some_key(), timeout=PATIENCE)
            before = link.accepted
            asked = [asyncio.create_task(lane.create_peer(some_key(), timeout=PATIENCE)) for _ in range(200)]
            for task in asked[::2]:
                await asyncio.sleep(0)
                task.cancel()
            kept = await asyncio.gather(*asked[1::2])
            return link.accepted - before, {result.outcome for result in kept}

    connections, outcomes = run_and_leave_nothing(cancel_some)
    assert connections <= 1, "the cancels go out on one, all together"
    assert outcomes == {"created"}


def test_a_redis_that_stands_still_for_less_than_the_timeout_costs_nothing(site: Site) -> None:
    async def outlast_it() -> str:
        async with AsyncGateway(site.name, app=site.app) as lane:
            await lane.create_peer(some_key(), timeout=PATIENCE)
            site.silence()
            waiting = asyncio.create_task(lane.create_peer(some_key(), timeout=PATIENCE))
            await asyncio.sleep(2.5)
            site.mend()
            return (await waiting).outcome

    assert run_and_leave_nothing(outlast_it) == "created"


def test_a_user_who_may_not_listen_is_told_so_at_once(
    own_redis: RedisServer, make_app: Callable[..., PeerlaneApp]
) -> None:
    own_redis.redis.execute_command("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "+@all", "resetchannels")
    app = make_app(redis_url=f"unix://deaf:secret@{own_redis.socket}")

    async def ask() -> None:
        async with AsyncGateway("iad", app=app) as lane:
            await lane.create_peer(some_key(), timeout=60)

    watch = Stopwatch()
    with pytest.raises(OutcomeUnknown, match="may not do that"):
        run_and_leave_nothing(ask)
    assert watch.seconds < 30


# What it can do


def test_it_drains_and_resumes_a_gateway(
    gateway: MakeGateway, client: MakeClient, make_app: Callable[..., PeerlaneApp]
) -> None:
    site, app = gateway(), make_app()

    async def drain_it() -> None:
        async with AsyncGateway(site.name, app=app) as lane:
            drained = await lane.drain()
            assert (drained.gateway, drained.before, drained.after) == (site.name, "active", "draining")
            with pytest.raises(Draining):
                await lane.create_peer(some_key())
            assert (await lane.drain()).before == "draining"
            resumed = await lane.resume()
            assert (resumed.before, resumed.after) == ("draining", "active")
            assert (await lane.create_peer(some_key())).outcome == "created"

    run_and_leave_nothing(drain_it)
    assert client(site).info().state == "active"


def test_it_drains_no_gateway_into_being(redis_server: RedisServer, make_app: Callable[..., PeerlaneApp]) -> None:
    name, app = new_name(), make_app()

    async def drain_it() -> None:
        async with AsyncGateway(name, app=app) as lane:
            with pytest.raises(Unavailable, match="no gateway"):
                await lane.drain()

    run_and_leave_nothing(drain_it)
    assert not redis_server.redis.exists(names.gateway_key(name))
