"""Too much for a lane: it is refused at once and says when to come back, and no tenant takes the lane for itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close
from keys import some_key
from servers import RedisServer
from waiting import PATIENCE, Stopwatch, eventually
from writer_alone import WriterAlone

from peerlane import AsyncGateway, Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import TimedOut, Unavailable
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.lane.tasks import task_of
from peerlane.workers.request.request import Pace

CAP = 40


class Caller:
    """An API process: sends and does not wait."""

    def __init__(self, gateway: GatewayProcess, app: PeerlaneApp) -> None:
        self.app, self._gateway = app, gateway
        self._create = task_of(app, names.CREATE_PEER)
        self._delete = task_of(app, names.DELETE_PEER)

    def send(self, labels: Mapping[str, str] | None = None, **options: Any) -> LaneResult:
        kwargs: dict[str, Any] = {"gateway": self._gateway.name, "public_key": some_key()}
        options.setdefault("expires", 60)
        return self._create.apply_async(kwargs=kwargs | ({"labels": dict(labels)} if labels else {}), **options)

    def send_delete(self) -> LaneResult:
        return self._delete.apply_async(kwargs={"gateway": self._gateway.name, "public_key": some_key()}, expires=60)

    def send_until_refused(self, labels: Mapping[str, str] | None = None, **options: Any) -> tuple[int, Unavailable]:
        """How many were taken before the first refusal, and that refusal."""
        for count in range(10 * CAP):
            try:
                self.send(labels, **options).forget()
            except Unavailable as refusal:
                return count, refusal
        raise AssertionError("nothing was refused")


@pytest.fixture
def callers(settings: MakeSettings) -> Any:
    made: list[PeerlaneApp] = []

    def make(gateway: GatewayProcess) -> Caller:
        made.append(PeerlaneApp(settings(redis_url=gateway.settings["redis_url"])))
        return Caller(gateway, made[-1])

    yield make
    for app in made:
        close(app)


def shares(server: RedisServer, gateway: GatewayProcess) -> dict[str, list[str]]:
    """The requests that count in the gateway's shares, by key."""
    redis: Any = server.redis
    return {key: redis.zrange(key, 0, -1) for key in redis.scan_iter(names.share_key(gateway.name, "*"))}


def counted(server: RedisServer, gateway: GatewayProcess) -> int:
    """Requests that count in any share of the gateway's lane."""
    return sum(len(members) for members in shares(server, gateway).values())


def test_beyond_the_cap_a_caller_is_refused_at_once_and_told_when_to_come_back(
    gateway: MakeGateway, callers: Any
) -> None:
    site = gateway(lane_cap=CAP)
    caller = callers(site)
    site.pause(alive=True)
    taken, _ = caller.send_until_refused()
    watch = Stopwatch()
    with pytest.raises(Unavailable, match=rf"the lane of {site.name} is full: 4\d requests wait") as refusal:
        caller.send()
    assert watch.seconds < 10, "a full lane is no reason to wait until it expires"
    assert 5.0 <= (refusal.value.retry_after or 0) <= 10.0, "not the same for all"
    assert taken in {CAP, CAP + 1}, "one may be in the writer's hands"
    site.resume()
    eventually(lambda: site.look().waiting == 0, "the lane being empty")
    assert caller.send().get(timeout=PATIENCE)["outcome"] == "created"


@pytest.mark.parametrize(
    ("facts", "least"),
    [
        ({"heartbeat": "0"}, 5.0),
        ({"idle_ms": "9000", "idle_may_ms": "5000"}, 5.0),
        ({"phase": "recovering"}, 2.0),
        ({"lane_cap": "1"}, 5.0),
    ],
    ids=["down", "stuck", "recovering", "full"],
)
def test_callers_that_are_refused_at_one_moment_are_not_told_one_moment_to_come_back(
    facts: dict[str, str], least: float
) -> None:
    raw = {name.encode(): value.encode() for name, value in ({"heartbeat": "1000"} | facts).items()}
    lane = LaneState.of("iad", raw, 1, 0, now=1000)
    pauses = {refusal.retry_after for _ in range(50) if (refusal := lane.refusal(waiting=1, create=True))}
    assert len(pauses) > 10
    assert all(pause is not None and least <= pause <= 2 * least for pause in pauses)


def test_a_full_bulk_queue_leaves_the_interactive_one_open(gateway: MakeGateway, callers: Any) -> None:
    site = gateway(lane_cap=CAP)
    caller = callers(site)
    site.pause(alive=True)
    caller.send_until_refused(bulk=True)
    interactive = caller.send()
    site.resume()
    assert interactive.get(timeout=PATIENCE)["outcome"] == "created"


def test_a_burst_from_many_processes_stops_near_the_cap(gateway: MakeGateway, callers: Any) -> None:
    cap, count = 400, 4
    site = gateway(lane_cap=cap)
    together = [callers(site) for _ in range(count)]
    site.pause(alive=True)
    for caller in together:
        lanes_of(caller.app).check(site.name)  # each believes for a second from now that the lane is empty
    threads = [threading.Thread(target=caller.send_until_refused) for caller in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert cap <= site.look().waiting <= cap * 1.1
    site.resume()
    eventually(lambda: site.look().waiting == 0, "the lane being empty")


def test_one_tenant_floods_and_anothers_create_is_served(
    gateway: MakeGateway, callers: Any, redis_server: RedisServer
) -> None:
    site = gateway(lane_cap=CAP, fair_label="tenant", fair_share=0.5)
    loud, quiet = callers(site), callers(site)
    site.pause(alive=True)
    taken, refusal = loud.send_until_refused({"tenant": "loud", "job": "1"})
    assert taken == CAP // 2
    assert str(refusal) == f"the share of tenant=loud in the lane of {site.name} is used up"
    assert refusal.retry_after is not None
    with pytest.raises(Unavailable, match="tenant=loud"):
        quiet.send({"tenant": "loud", "job": "2"})  # the share is the tenant's, not the process'
    served = quiet.send({"tenant": "quiet"})
    site.resume()
    assert served.get(timeout=PATIENCE)["labels"] == {"tenant": "quiet"}
    eventually(lambda: counted(redis_server, site) == 0, "every share being free again")
    assert loud.send({"tenant": "loud"}).get(timeout=PATIENCE)["outcome"] == "created"


def test_requests_without_the_label_share_one_share_and_deletes_are_not_counted(
    gateway: MakeGateway, callers: Any
) -> None:
    site = gateway(lane_cap=CAP, fair_label="tenant", fair_share=0.1)
    caller = callers(site)
    site.pause(alive=True)
    taken, refusal = caller.send_until_refused({"job": "1"})
    assert taken == CAP // 10
    assert "requests without the label tenant" in str(refusal)
    gone = caller.send_delete()
    site.resume()
    assert gone.get(timeout=PATIENCE)["outcome"] == "absent"


def test_a_refused_create_leaves_its_share_too(gateway: MakeGateway, callers: Any, redis_server: RedisServer) -> None:
    site = gateway(lane_cap=CAP, fair_label="tenant")
    caller = callers(site)
    key = some_key()
    create = task_of(caller.app, names.CREATE_PEER)
    for ips in (["10.8.0.7"], ["10.8.0.8"], ["10.8.0.8"]):  # created; a conflict, twice
        kwargs = {"gateway": site.name, "public_key": key, "allowed_ips": ips, "labels": {"tenant": "a"}}
        create.apply_async(kwargs=kwargs, expires=PATIENCE).get(timeout=PATIENCE, propagate=False)
    assert counted(redis_server, site) == 0


def test_what_was_lost_on_its_way_leaves_its_share_after_its_deadline(
    gateway: MakeGateway, callers: Any, redis_server: RedisServer
) -> None:
    site = gateway(lane_cap=CAP, fair_label="tenant", fair_share=0.1)
    caller = callers(site)
    site.pause(alive=True)
    caller.send_until_refused({"tenant": "a"})
    redis = redis_server.redis
    assert redis.delete(names.lane_queue(site.name)) == 1, "the messages are gone, and nobody will commit them"
    site.resume()
    ((key, members),) = shares(redis_server, site).items()
    for member in members:
        redis.zincrby(key, -120_000, member)  # two minutes later
    assert caller.send({"tenant": "a"}).get(timeout=PATIENCE)["outcome"] == "created"
    assert counted(redis_server, site) <= 1, "one may have been in the writer's hands"


def test_what_waited_beyond_its_deadline_is_told_so_and_leaves_its_share(
    gateway: MakeGateway, client: MakeClient, callers: Any, redis_server: RedisServer
) -> None:
    site = gateway(fair_label="tenant")
    caller = callers(site)
    client(site).create_peer(some_key())
    site.pause(alive=True)
    late = [caller.send({"tenant": "a"}, expires=0.2) for _ in range(3)]
    with pytest.raises(TimedOut):
        late[0].get(timeout=0.3)
    site.resume()
    for result in late[1:]:
        with pytest.raises(TimedOut):
            result.get(timeout=PATIENCE)
    eventually(lambda: counted(redis_server, site) == 0, "what came too late leaving its share")
    assert client(site).create_peer(some_key()).outcome == "created"


class TestALaneWhoseWriterTellsItsPace:
    """Its writer stands still: what it has told of its pace stays."""

    WAITING = 150

    @pytest.fixture
    def held_lane(self, gateway: MakeGateway, callers: Any, redis_server: RedisServer) -> tuple[GatewayProcess, Caller]:
        site = gateway()
        caller = callers(site)
        site.hold()
        for _ in range(self.WAITING):
            caller.send().forget()
        self.tell(redis_server, site, pace=50.0)
        return site, caller

    @staticmethod
    def tell(server: RedisServer, site: GatewayProcess, **paces: float) -> None:
        server.redis.hset(names.gateway_key(site.name), mapping={name: f"{pace:.1f}" for name, pace in paces.items()})

    def test_refuses_at_once_who_would_wait_too_long_and_takes_who_has_the_time(
        self, held_lane: tuple[GatewayProcess, Caller]
    ) -> None:
        site, caller = held_lane
        lanes_of(caller.app).look(site.name)
        watch = Stopwatch()
        for ask in (Gateway(site.name, app=caller.app).create_peer, _in_asyncio(site, caller.app)):
            with pytest.raises(Unavailable, match=r"15\d requests wait at .*, about 3\.\d s: too long") as refusal:
                ask(some_key(), timeout=2)
            assert refusal.value.retry_after is not None
            assert 0 < refusal.value.retry_after < 10
        assert watch.seconds < 2, "the timeout was not waited for"
        assert site.look().waiting == self.WAITING, "and nothing was sent"
        kept = caller.send(expires=60)
        site.resume()
        assert kept.get(timeout=PATIENCE)["outcome"] == "created"

    def test_never_refuses_a_delete_for_that(self, held_lane: tuple[GatewayProcess, Caller]) -> None:
        site, caller = held_lane
        lanes_of(caller.app).look(site.name)
        with pytest.raises(TimedOut):
            Gateway(site.name, app=caller.app).delete_peer(some_key(), timeout=1.5)
        assert site.look().waiting == self.WAITING + 1
        site.resume()

    def test_asks_bulk_requests_to_wait_for_both_queues(
        self, held_lane: tuple[GatewayProcess, Caller], redis_server: RedisServer
    ) -> None:
        site, caller = held_lane
        self.tell(redis_server, site, pace=1_000.0, pace_bulk=10.0)
        for _ in range(65):
            caller.send(bulk=True).forget()
        lanes_of(caller.app).look(site.name)
        with pytest.raises(Unavailable, match="too long"):
            Gateway(site.name, app=caller.app).create_peer(some_key(), timeout=2, bulk=True)
        with pytest.raises(TimedOut):
            Gateway(site.name, app=caller.app).create_peer(some_key(), timeout=0.5)  # interactive: it was sent
        site.resume()

    def test_refuses_nobody_while_few_wait_whatever_it_tells(
        self, gateway: MakeGateway, callers: Any, redis_server: RedisServer
    ) -> None:
        site = gateway()
        caller = callers(site)
        for _ in range(20):
            self.tell(redis_server, site, pace=0.1, pace_bulk=0.1)
            lanes_of(caller.app).look(site.name)
            assert Gateway(site.name, app=caller.app).create_peer(some_key(), timeout=PATIENCE).outcome == "created"


def _in_asyncio(site: GatewayProcess, app: PeerlaneApp) -> Callable[..., Any]:
    async def ask(key: str, within: float) -> Any:
        async with AsyncGateway(site.name, app=app) as lane:
            return await lane.create_peer(key, timeout=within)

    def run(key: str, *, timeout: float) -> Any:
        return asyncio.run(ask(key, timeout))

    return run


def test_a_writer_that_had_much_to_do_tells_its_pace(gateway: MakeGateway, callers: Any) -> None:
    site = gateway()
    caller = callers(site)
    site.hold()
    sent = [caller.send() for _ in range(300)]
    site.resume()
    assert sent[-1].get(timeout=60)["outcome"] == "created"
    caller.send().get(timeout=60)
    assert eventually(lambda: site.look().pace(bulk=False), "the pace being told") > 1


class TestAPace:
    def test_is_that_of_full_groups_one_after_the_other(self) -> None:
        pace = Pace()
        for step in range(100):
            pace.taken(64, bulk=False, full=True, now=step * 0.032)
        assert pace.heartbeat_fields() == {"pace": "2000.0"}

    def test_falls_and_rises_with_them(self) -> None:
        pace, now = Pace(), 0.0
        for took in (0.032,) * 50 + (0.64,) * 50:
            pace.taken(64, bulk=True, full=True, now=now)
            now += took
        assert 100 <= float(pace.heartbeat_fields()["pace_bulk"]) < 110
        for _ in range(400):
            pace.taken(64, bulk=True, full=True, now=now)
            now += 0.032
        assert float(pace.heartbeat_fields()["pace_bulk"]) > 1_900

    def test_is_not_lowered_by_idleness(self) -> None:
        pace = Pace()
        for now in (0.0, 0.032, 0.064):
            pace.taken(64, bulk=False, full=True, now=now)
        for now in (10.0, 20.0, 30.0):
            pace.taken(1, bulk=False, full=False, now=now)
        assert float(pace.heartbeat_fields()["pace"]) > 1_000

    def test_of_a_lane_that_stood_still_once_is_not_next_to_nothing(self) -> None:
        pace = Pace()
        for now in (0.0, 0.032, 0.064, 60.0):
            pace.taken(64, bulk=False, full=True, now=now)
        assert float(pace.heartbeat_fields()["pace"]) > 1_000


def test_what_waited_beyond_its_deadline_does_not_touch_the_device(redis_server: RedisServer, tmp_path: Path) -> None:
    bench = WriterAlone(redis_server, tmp_path)
    try:
        bench.create()
        bench.plane.made.clear()
        with pytest.raises(TimedOut):
            bench.create(deadline=bench.writer.store.clock.now_ms() - 1)
        assert bench.plane.made == []
    finally:
        bench.close()
