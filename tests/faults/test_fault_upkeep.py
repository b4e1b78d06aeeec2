"""Defects of sweeps that fault runs have found, each as the smallest case that shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from device_views import EmptyDevice
from expiry import await_expiry
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from observers import Observer, ending
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin import maintenance as upkeep
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import PeerResult
from peerlane.tasks.wire.upkeep import ReconcileGateway, SweepGateway
from peerlane.workers import failpoints
from peerlane.workers.peers.table import Policy
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep import sweeper as sweeping
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.reconciler import Reconciler
from peerlane.workers.upkeep.sweep_policy import Limits
from peerlane.workers.upkeep.sweeper import Sweeper
from peerlane.workers.upkeep.writer_requests import WriterRequests


@pytest.fixture
def site(gateway: MakeGateway) -> GatewayProcess:
    return gateway()


def expired(api: Gateway, redis_server: RedisServer) -> PeerResult:
    """A new peer, once it has expired, by the writer's clock too: read from afar, it may be a little behind."""
    made = api.create_peer(some_key(), ttl=1)
    await_expiry(redis_server, made.expires_at)
    return made


def test_a_sweep_that_stood_still_after_its_decision_looks_again_before_it_removes(
    site: GatewayProcess,
    client: MakeClient,
    app: PeerlaneApp,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = client(site)
    key = expired(api, redis_server).public_key
    redis = Redis(unix_socket_path=str(redis_server.socket))

    def stand_still(point: str) -> None:
        time.sleep(0.3 if point == "after_decision" else 0)

    monkeypatch.setattr(sweeping, "FRESH", 0.2)
    monkeypatch.setattr(failpoints, "reach", stand_still)
    made = Sweeper(
        redis=redis,
        gateway=api.name,
        limits=Limits(),
        clock=ClockMonitor(redis, site.name),
        counted=None,
        errands=WriterRequests(app, api.name),
    )
    report = made.sweep(SweepGateway(gateway=api.name), lambda _: True)
    assert (report["stale"], report["removed"]) == ({"expired": 1}, {})
    assert api.peer(key) is not None
    redis.close()


class TestAnObserverWhoseWriterStandsStill:
    @pytest.fixture
    def observer(self, site: GatewayProcess, client: MakeClient, redis_server: RedisServer) -> Iterator[Observer]:
        """With something to sweep."""
        with ending(observer := Observer(site)):
            expired(client(site), redis_server)
            site.pause(alive=True)
            yield observer
        site.resume()

    def test_gives_signs_of_life_until_the_sweep_goes_on(
        self, observer: Observer, site: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer
    ) -> None:
        asked = redis_server.redis.time()[0] * 1000
        with ThreadPoolExecutor(1) as thread:
            sweep = thread.submit(upkeep.sweep, app, site.name, timeout=PATIENCE)
            key = names.observer_key(observer.name)
            eventually(lambda: int(redis_server.redis.hget(key, "heartbeat") or 0) > asked + 5_000, "signs of life")
            assert observer.report("sweep")["outcome"] == "running"
            site.resume()
            assert sweep.result()["removed"] == {"expired": 1}

    def test_stops_once_nobody_waits_for_the_sweep(
        self, observer: Observer, site: GatewayProcess, app: PeerlaneApp
    ) -> None:
        with pytest.raises(TimedOut):
            upkeep.sweep(app, site.name, timeout=2)
        eventually(lambda: observer.report("sweep").get("stopped"), "the sweep's end")


def test_a_reconciliation_whose_writer_stands_still_stops_once_nobody_waits_for_it(
    site: GatewayProcess, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    client(site).create_peer(some_key())
    redis = Redis(unix_socket_path=str(redis_server.socket))
    pools = tuple(map(Prefix.parse, ("10.8.0.0/16", "fd00:8::/64")))
    reconciler = Reconciler(
        store=Store(redis, site.name, result_ttl=60),
        policy=Policy(gateway=site.name, public_key="", pools=pools),
        unknown="remove",
        view=EmptyDevice(pools, site.look().facts["public_key"]),
        clock=ClockMonitor(redis, site.name),
        errands=WriterRequests(app, site.name),
    )
    states: list[dict[str, object]] = []

    def go_on(state: dict[str, object]) -> bool:
        states.append(state)
        return False

    site.pause(alive=True)
    report = reconciler.reconcile(ReconcileGateway(gateway=site.name), go_on)
    site.resume()
    assert (report["found"], report["mended"], report["stopped"]["code"]) == ({"missing": 1}, {}, "timed_out")
    assert [state for state in states if state] == [{"mended": 0, "of": 1}]
    redis.close()


class TestAPeerWhoseTimeIsUp:
    """No sweep has come by yet, and none is to take away what was told to exist."""

    @pytest.fixture
    def site(self, gateway: MakeGateway) -> GatewayProcess:
        return gateway(serves=("10.77.0.0/16",))

    @pytest.fixture
    def over(self, site: GatewayProcess, client: MakeClient, redis_server: RedisServer) -> tuple[Gateway, PeerResult]:
        """One that has expired."""
        api = client(site)
        return api, expired(api, redis_server)

    def test_is_made_anew_for_who_asks_again(self, over: tuple[Gateway, PeerResult]) -> None:
        api, made = over
        again = api.create_peer(made.public_key, ttl=1)
        assert (again.outcome, again.allowed_ips) == ("created", made.allowed_ips)
        assert (again.expires_at or 0) > (made.expires_at or 0)

    def test_is_made_anew_with_whatever_is_asked_for(self, over: tuple[Gateway, PeerResult]) -> None:
        api, made = over
        prefixes = (*made.allowed_ips, "10.77.0.0/28")
        again = api.create_peer(made.public_key, allowed_ips=prefixes, pinned=True)
        assert (again.outcome, set(again.allowed_ips), again.expires_at) == ("created", set(prefixes), None)
        assert api.create_peer(made.public_key, allowed_ips=prefixes, pinned=True).outcome == "existing"

    def test_is_not_taken_by_a_sweep_that_was_decided_before(
        self, over: tuple[Gateway, PeerResult], app: PeerlaneApp
    ) -> None:
        api, made = over
        api.create_peer(made.public_key)
        victim = {"public_key": made.public_key, "reason": "expired", "created_at": made.created_at}
        sweep = task_of(app, names.REMOVE_PEERS).apply_async(kwargs={"gateway": api.name, "victims": [victim]})
        assert sweep.get(timeout=PATIENCE)["kept"] == {made.public_key: "created anew since"}
        assert api.peer(made.public_key) is not None
