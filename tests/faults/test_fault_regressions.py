"""Defects that fault runs have found, each as the smallest case that shows it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest
from calls import create_in_lane
from faultproxy import FaultProxy
from gateways import GatewayProcess, MakeClient, MakeGateway, close
from keys import some_key
from loops import run_and_leave_nothing
from servers import RedisServer
from waiting import PATIENCE, Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.client.aio_gateway import AsyncGateway
from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError, TimedOut
from peerlane.tasks.lane.result import settle
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire import commit_record


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """The writer's way to Redis."""
    with FaultProxy(str(redis_server.socket)) as proxy:
        yield proxy


@pytest.fixture
def linked(gateway: MakeGateway, link: FaultProxy) -> GatewayProcess:
    """A gateway behind the proxy."""
    linked = gateway(start=False)
    linked.start(redis_url=link.url)
    return linked


class TestAWriterWhoseAcknowledgementIsLost:
    def test_takes_the_next_request_all_the_same(
        self, linked: GatewayProcess, link: FaultProxy, client: MakeClient, redis_server: RedisServer
    ) -> None:
        api = client(linked.name, redis=redis_server)
        link.reset_mid_reply(to=b"\r\nZREM\r\n")
        # A request is acknowledged by its commit; a message that is none, by itself.
        app = PeerlaneApp(read(redis_url=redis_server.url))
        app.send_task("no.such.task", queue=names.lane_queue(linked.name))
        close(app)
        eventually(lambda: "could not be acknowledged" in linked.log, "the lost acknowledgement")
        assert api.create_peer(some_key(), timeout=PATIENCE).outcome == "created"


@dataclass(frozen=True)
class Waiting:
    """One request that waits, and who may ask for it again."""

    site: GatewayProcess
    api: Gateway
    key: str
    request: str


def took(act: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what came of it: a result, or the error's class."""
    watch = Stopwatch()
    try:
        outcome = act()
    except PeerlaneError as error:
        outcome = type(error)
    return watch.seconds, outcome


class TestManyThreadsWhoseRedisFallsSilent:
    """Celery's result consumer made each wait for all that came before it."""

    @pytest.mark.parametrize("known", [True, False], ids=["after-a-call", "at-the-first-call"])
    def test_each_learn_as_soon_as_one_alone_would(
        self, gateway: MakeGateway, link: FaultProxy, client: MakeClient, *, known: bool
    ) -> None:
        site = gateway()
        api = client(site.name, redis_url=link.url)
        keys = [some_key() for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            if known:
                list(threads.map(api.delete_peer, keys))
            link.half_open()
            alone, _ = took(partial(api.create_peer, keys[0], timeout=0.5))
            calls = [threads.submit(took, partial(api.create_peer, key, timeout=0.5)) for key in keys]
            ends = [call.result() for call in calls]
        assert {outcome for _, outcome in ends} == {OutcomeUnknown}
        # One after the other they would take eight times as long as one alone, which takes a second or two.
        assert max(seconds for seconds, _ in ends) < 3 + 2 * alone

    def test_go_on_once_redis_can_be_reached_again(
        self, gateway: MakeGateway, link: FaultProxy, client: MakeClient
    ) -> None:
        api = client(gateway().name, redis_url=link.url)
        api.create_peer(some_key())
        link.half_open()
        with pytest.raises(OutcomeUnknown):
            api.create_peer(some_key(), timeout=0.5)
        link.mend()
        assert api.create_peer(some_key()).outcome == "created"


class TestASubscriptionThatDiedWithoutAWordWhileItWasKept:
    def test_is_replaced_by_one_that_is_sound(self, link: FaultProxy) -> None:
        app = PeerlaneApp(read(redis_url=link.url))
        listeners = lanes_of(app).listeners
        listeners.listen(names.request_id("iad", "one")).close()
        link.silence()
        with listeners.listen(names.request_id("iad", "two")):
            assert link.accepted == 2
        close(app)


class TestACallerWhoseConnectionDiedWithoutAWordWhileItWaited:
    def test_is_not_told_later_that_redis_cannot_be_reached(
        self, gateway: MakeGateway, link: FaultProxy, client: MakeClient
    ) -> None:
        site = gateway()
        api = client(site.name, redis_url=link.url)
        site.pause(alive=True)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(took, partial(api.create_peer, some_key(), timeout=1))
            eventually(lambda: link.accepted >= 2, "the request on its way")
            link.half_open()
            waiting.result()
        link.mend()
        site.resume()
        assert api.create_peer(some_key(), timeout=PATIENCE).outcome == "created"


class TestACallerWhoseRedisRestarts:
    def test_gets_the_outcome_if_it_comes_within_the_timeout(
        self, gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, pushes: list[str]
    ) -> None:
        site = gateway(redis=own_redis)
        api = client(site, redis=own_redis)
        api.create_peer(some_key())
        with create_in_lane(site, api, pushes) as waiting:
            own_redis.kill()
            own_redis.start()
            site.resume()
            assert waiting.result().outcome == "created"


class TestACallerWhoseRedisTakesNoWrites:
    """No tombstone can be stored: only that would keep an earlier try of the same request from taking effect."""

    @pytest.fixture
    def waiting(self, gateway: MakeGateway, client: MakeClient, own_redis: RedisServer) -> Iterator[Waiting]:
        """A request in the lane of a writer that stands still, whose first caller has died with time left."""
        site = gateway(redis=own_redis)
        api, key, request = client(site, redis=own_redis), some_key(), names.request_id(site.name, "one")
        site.may_show_tracebacks = True  # Celery's own, where memory is full when it notes a message down
        site.pause(alive=True)
        task_of(app_of(api), names.CREATE_PEER).apply_async(
            kwargs={"gateway": site.name, "public_key": key}, task_id=request, expires=60
        )
        yield Waiting(site, api, key, request)
        site.resume()

    def test_is_not_told_that_it_timed_out_while_the_request_may_yet_be_carried_out(
        self, waiting: Waiting, own_redis: RedisServer
    ) -> None:
        before = waiting.site.look().waiting  # Redis may have handed the first one to the writer
        with ThreadPoolExecutor(1) as thread:
            again = thread.submit(waiting.api.create_peer, waiting.key, timeout=2, request_id=waiting.request)
            eventually(lambda: waiting.site.look().waiting > before, "the second try in the lane")
            own_redis.redis.config_set("maxmemory", "1")
            with pytest.raises(OutcomeUnknown):
                again.result()
        own_redis.redis.config_set("maxmemory", "0")
        waiting.site.resume()
        asked = waiting.api.create_peer(waiting.key, timeout=PATIENCE, request_id=waiting.request)
        assert asked.outcome == "created"

    def test_learns_of_an_outcome_that_was_stored_before(self, waiting: Waiting, own_redis: RedisServer) -> None:
        lanes, api = lanes_of(app_of(waiting.api)), waiting.api
        waiting.site.resume()
        assert api.create_peer(waiting.key, timeout=PATIENCE, request_id=waiting.request).outcome == "created"
        own_redis.redis.config_set("maxmemory", "1")
        record = settle(lanes, waiting.request, 0, until=time.monotonic())
        own_redis.redis.config_set("maxmemory", "0")
        assert record is not None
        assert commit_record.decode(record)["outcome"] == "created"


class TestAnAsyncioProgramWhoseRedisFallsSilent:
    @pytest.fixture
    def api(self, gateway: MakeGateway, link: FaultProxy, client: MakeClient) -> Gateway:
        return client(gateway().name, redis_url=link.url)

    def test_learns_of_every_call_in_time_however_many_there_are(self, api: Gateway, link: FaultProxy) -> None:
        async def calls(gateway: AsyncGateway, count: int, within: float = 0.5) -> list[tuple[float, object]]:
            async def create_one() -> tuple[float, object]:
                watch = Stopwatch()
                try:
                    outcome: object = (await gateway.create_peer(some_key(), timeout=within)).outcome
                except PeerlaneError as error:
                    outcome = type(error)
                return watch.seconds, outcome

            return list(await asyncio.gather(*(create_one() for _ in range(count))))

        async def program() -> tuple[float, list[tuple[float, object]], list[tuple[float, object]]]:
            async with AsyncGateway(api.name, app=app_of(api)) as gateway:
                await calls(gateway, 4)
                link.half_open()
                [(alone, _)] = await calls(gateway, 1)
                silent = await calls(gateway, 40)
                link.mend()
                for _ in range(20):  # its connections notice one by one
                    if (await calls(gateway, 1))[0][1] == "created":
                        break
                return alone, silent, await calls(gateway, 4, PATIENCE)

        alone, silent, after = run_and_leave_nothing(program)
        assert {outcome for _, outcome in silent} <= {OutcomeUnknown, TimedOut}
        # Side by side: one after the other on eight connections they would take five times as long as one alone.
        assert max(seconds for seconds, _ in silent) < 4 * alone
        assert {outcome for _, outcome in after} == {"created"}
        assert threading.active_count() < 20


class TestAnAsyncioProgramThatDidNotGetToRun:
    def test_learns_the_truth_when_it_runs_again_though_its_time_is_long_up(
        self, gateway: MakeGateway, client: MakeClient
    ) -> None:
        site = gateway()
        api = client(site)

        async def program() -> None:
            async with AsyncGateway(api.name, app=app_of(api)) as lane:
                await lane.create_peer(some_key())
                site.pause(alive=True)
                waiting = asyncio.create_task(lane.create_peer(some_key(), timeout=0.5))
                await asyncio.sleep(0.2)
                time.sleep(3)  # noqa: ASYNC251 - as a machine without a free processor does
                with pytest.raises(TimedOut):
                    await waiting

        run_and_leave_nothing(program)
        site.resume()


def app_of(api: Gateway) -> PeerlaneApp:
    return api._app  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its connections are closed by the fixture


class TestARedisThatHasLostItsLastSecond:
    """For up to two seconds the writer does not know: what it answers meanwhile must be true all the same."""

    def test_is_never_said_to_hold_a_peer_that_it_has_forgotten(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        site, key = gateway(), some_key()
        api = client(site)
        (four, six) = api.create_peer(key).allowed_ips
        redis_server.redis.hdel(names.peers_key(site.name), key)
        redis_server.redis.hdel(names.addresses_key(site.name), four, six)
        assert api.create_peer(key, timeout=PATIENCE).outcome == "created"
        assert api.peer(key) is not None

    def test_is_never_said_to_lack_a_peer_that_it_holds_again(
        self, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        site, key = gateway(), some_key()
        api, peers, addresses = client(site), names.peers_key(site.name), names.addresses_key(site.name)
        api.create_peer(key)
        record, owners = redis_server.redis.hget(peers, key), redis_server.redis.hgetall(addresses)
        api.delete_peer(key)
        redis_server.redis.hset(peers, key, str(record))
        redis_server.redis.hset(addresses, mapping={str(prefix): str(owner) for prefix, owner in owners.items()})
        assert api.delete_peer(key, timeout=PATIENCE).outcome == "deleted"
        assert api.peer(key) is None
