"""A gateway's observer in a process of its own, beside a real writer: what it sweeps, refuses, lists and leaves alone.

On the memory data plane, where there are no counters to read: what counters decide is in test_sweep.py, and on a real
device in test_kernel_lifecycle.py.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from expiry import CLOCKS_DIFFER, await_expiry
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close
from keys import key_number, some_key
from observers import Observer, ending
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin import maintenance as upkeep
from peerlane.tasks.errors import PeerlaneError, TimedOut, Unavailable
from peerlane.tasks.status.alarms import raise_alarm, read_alarms
from peerlane.tasks.wire.commit_record import decode
from peerlane.tasks.wire.upkeep import SweepGateway
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.schedule_watchdog import ScheduleWatchdog
from peerlane.workers.upkeep.sweep_policy import Limits
from peerlane.workers.upkeep.sweeper import Sweeper
from peerlane.workers.upkeep.writer_requests import WriterRequests


def fill(peers: Gateway, count: int, **wish: Any) -> list[str]:
    """That many new peers."""
    made = [some_key() for _ in range(count)]
    for key in made:
        peers.create_peer(key, **wish)
    return made


def there(peers: Gateway) -> set[str]:
    return {peer.public_key for peer in peers.peers()}


def expire(redis_server: RedisServer, gateway: GatewayProcess, *keys: str) -> None:
    """Have the peers' time be up, as if they had been made long ago with a short one. Before the writer starts."""
    for key in keys:
        record = json.loads(redis_server.redis.hget(names.peers_key(gateway.name), key) or "{}")
        record |= {"ttl": 60, "expires_at": record["created_at"] - 10_000}
        redis_server.redis.hset(names.peers_key(gateway.name), key, json.dumps(record))


def await_last_expiry(redis_server: RedisServer, peers: Gateway) -> None:
    """Return once every peer that has a time has run out of it."""
    await_expiry(redis_server, max(peer.expires_at or 0 for peer in peers.peers()))


def sweep_when_expired(app: PeerlaneApp, name: str, count: int, **options: Any) -> dict[str, Any]:
    """Sweep, once that many peers have expired, and the writer's clock says so, too."""
    eventually(
        lambda: upkeep.sweep(app, name, dry_run=True, timeout=PATIENCE / 2)["stale"].get("expired") == count,
        f"{count} expired peers",
    )
    time.sleep(CLOCKS_DIFFER)
    return upkeep.sweep(app, name, timeout=PATIENCE / 2, **options)


def test_a_sweep_removes_exactly_the_expired_peers(gateway: MakeGateway, client: MakeClient, app: PeerlaneApp) -> None:
    writer = gateway()
    peers = client(writer)
    with ending(observer := Observer(writer)):
        staying = {*fill(peers, 20), *fill(peers, 20, ttl=3600), *fill(peers, 1, pinned=True)}
        fill(peers, 40, ttl=1)
        report = sweep_when_expired(app, writer.name, 40)
        assert report["outcome"] == "swept"
        assert (report["peers"], report["removed"], report["kept"]) == (81, {"expired": 40}, {})
        assert there(peers) == staying
        assert upkeep.sweep(app, writer.name, timeout=PATIENCE / 2)["stale"] == {}
        assert observer.report("sweep")["outcome"] == "swept"


def test_peers_that_expired_while_the_writer_was_down_go_when_it_is_back(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
) -> None:
    writer = gateway()
    peers = client(writer)
    staying, going = fill(peers, 5), fill(peers, 5)
    writer.stop()
    expire(redis_server, writer, *going)
    with ending(Observer(writer)):
        watch = Stopwatch()
        writer.start()
        eventually(lambda: there(peers) == set(staying), "the expired peers to go")
        assert watch.seconds < PATIENCE


def test_without_a_writer_a_sweep_removes_nothing_and_says_so(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
) -> None:
    writer = gateway()
    peers = client(writer)
    expire_these = fill(peers, 3)
    writer.stop()
    expire(redis_server, writer, *expire_these)
    with ending(Observer(writer)):
        report = upkeep.sweep(app, writer.name, timeout=PATIENCE / 2)
        assert report["removed"] == {}
        assert report["stopped"]["code"] == "unavailable"
        assert there(peers) == set(expire_these)


def test_a_sweep_of_most_peers_is_refused_with_an_alarm_until_it_is_forced(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    writer = gateway()
    peers = client(writer)
    staying = set(fill(peers, 10))
    fill(peers, 60, ttl=1)
    await_last_expiry(redis_server, peers)
    with ending(observer := Observer(writer)):
        report = sweep_when_expired(app, writer.name, 60)
        assert report["outcome"] == "refused"
        assert report["refusal"]["kind"] == "sweep"
        assert report["removed"] == {}
        assert len(there(peers)) == 70
        (alarm,) = observer.alarms().values()
        assert alarm["detail"] == {"peers": 70, "stale": {"expired": 60}}
        assert "ALARM sweep" in observer.log

        assert upkeep.sweep(app, writer.name, timeout=PATIENCE / 2)["outcome"] == "refused"
        assert observer.alarms()["sweep"]["since"] == alarm["since"]

        assert upkeep.sweep(app, writer.name, force=True, timeout=PATIENCE / 2)["removed"] == {"expired": 60}
        assert there(peers) == staying
        assert observer.alarms() == {}


def test_a_flood_whose_time_is_up_all_at_once_goes_without_an_alarm(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp
) -> None:
    writer = gateway()
    peers = client(writer)
    with ending(observer := Observer(writer)):
        fill(peers, 60, ttl=2)
        assert sweep_when_expired(app, writer.name, 60)["removed"] == {"expired": 60}
        assert observer.alarms() == {}


def test_an_alarm_ends_with_its_cause(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    writer = gateway()
    peers = client(writer)
    stale = fill(peers, 60, ttl=1)
    await_last_expiry(redis_server, peers)
    with ending(observer := Observer(writer)):
        assert sweep_when_expired(app, writer.name, 60)["outcome"] == "refused"
        for key in stale[:20]:
            peers.delete_peer(key)
        assert upkeep.sweep(app, writer.name, timeout=PATIENCE / 2)["removed"] == {"expired": 40}
        assert observer.alarms() == {}


def test_a_dry_run_lists_what_would_go_and_why_and_removes_nothing(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp
) -> None:
    writer = gateway()
    peers = client(writer)
    fill(peers, 3)
    with ending(observer := Observer(writer)):
        (going,) = fill(peers, 1, ttl=1)
        eventually(
            lambda: upkeep.sweep(app, writer.name, dry_run=True, timeout=PATIENCE / 2)["victims"], "an expired peer"
        )
        report = upkeep.sweep(app, writer.name, dry_run=True, timeout=PATIENCE / 2)
        peer = peers.peer(going)
        assert peer is not None
        assert report["outcome"] == "listed"
        assert report["unlisted"] == 0
        assert report["victims"] == [
            {"public_key": going, "reason": "expired", "created_at": peer.created_at, "since": peer.expires_at}
        ]
        assert len(there(peers)) == 4
        assert observer.alarms() == {}


def test_a_record_that_is_damaged_or_from_the_future_is_never_swept(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
) -> None:
    writer = gateway()
    peers = client(writer)
    fill(peers, 3)
    future = {"v": 99, "allowed_ips": ["10.8.77.1/32"], "expires_at": 1, "created_at": 1}
    odd: dict[Any, Any] = {
        key_number(1): json.dumps(future),
        key_number(2): '{"v": 1, "expires_at": 1',
        key_number(3): "[]",
    }
    redis_server.redis.hset(names.peers_key(writer.name), mapping=odd)
    with ending(Observer(writer)):
        assert upkeep.sweep(app, writer.name, force=True, timeout=PATIENCE / 2)["stale"] == {}
        assert odd.keys() <= set(redis_server.redis.hkeys(names.peers_key(writer.name)))


def test_a_time_slot_is_taken_care_of_once(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
) -> None:
    writer = gateway()
    client(writer)
    with ending(Observer(writer, sweep_every=60)):

        def ask(slot: int, token: str) -> dict[str, Any]:
            request = names.request_id(writer.name, token)
            app.send_task(names.SWEEP, kwargs={"gateway": writer.name, "slot": slot}, task_id=request)
            key = names.result_key(request)
            return decode(str(eventually(lambda: redis_server.redis.get(key), f"the result of {token}")))

        now = int(time.time() // 60)
        assert ask(now, "first")["outcome"] == "swept"
        assert ask(now, "second") == {
            "outcome": "skipped",
            "gateway": writer.name,
            "note": "its time slot was taken care of",
        }
        assert ask(now - 1, "late-but-not-too-late")["outcome"] == "swept"
        assert ask(now - 60, "an-hour-late")["note"] == "its time slot is long over"
        assert ask(now + 60, "from-the-future")["note"] == "its time slot is long over"


def test_the_alarm_that_no_beat_runs_goes_with_its_first_request(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
) -> None:
    writer = gateway()
    client(writer)
    with ending(observer := Observer(writer)):
        raise_alarm(
            connection := Redis.from_url(redis_server.url), writer.name, ScheduleWatchdog.KIND, "nobody asks", now=1
        )
        connection.close()
        upkeep.sweep(app, writer.name, timeout=PATIENCE / 2)
        assert ScheduleWatchdog.KIND in observer.alarms(), "an operator is no beat"
        slot = int(redis_server.redis.time()[0]) // 60
        request = names.request_id(writer.name, "as-beat-asks")
        app.send_task(names.SWEEP, kwargs={"gateway": writer.name, "slot": slot}, task_id=request)
        eventually(lambda: observer.alarms() == {}, "the alarm to go")


def test_a_slot_is_carried_out_also_by_an_observer_that_was_told_another_interval(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
) -> None:
    writer = gateway(sweep_every=5)
    client(writer)
    with ending(Observer(writer, sweep_every=60)):
        request = names.request_id(writer.name, "as-beat-counts")
        slot = int(redis_server.redis.time()[0]) // 5
        app.send_task(names.SWEEP, kwargs={"gateway": writer.name, "slot": slot}, task_id=request)
        key = names.result_key(request)
        assert decode(str(eventually(lambda: redis_server.redis.get(key), "its result")))["outcome"] == "swept"


def test_a_request_whose_caller_has_left_is_not_carried_out(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
) -> None:
    writer = gateway()
    peers = client(writer)
    with ending(observer := Observer(writer)):
        fill(peers, 2, ttl=1)
        observer.pause()
        with pytest.raises(TimedOut, match="told to stop"):
            upkeep.sweep(app, writer.name, timeout=1)
        observer.resume()
        eventually(lambda: redis_server.redis.llen(names.observer_queue(writer.name)) == 0, "the request to be taken")
        assert upkeep.reconcile(app, writer.name, timeout=PATIENCE / 2)["outcome"] == "skipped"
        assert len(there(peers)) == 2


def test_without_an_observer_an_operator_is_told_at_once(gateway: MakeGateway, app: PeerlaneApp) -> None:
    writer = gateway()
    watch = Stopwatch()
    with pytest.raises(Unavailable, match="no live observer"):
        upkeep.sweep(app, writer.name, timeout=PATIENCE)
    with pytest.raises(Unavailable, match="no gateway nowhere"):
        upkeep.reconcile(app, "nowhere", timeout=PATIENCE)
    assert watch.seconds < PATIENCE / 2, "the timeout was not waited for"


def test_a_second_observer_of_a_device_names_the_first_and_ends(gateway: MakeGateway, app: PeerlaneApp) -> None:
    writer = gateway()
    with ending(Observer(writer)):
        second = Observer(writer, wait=False)
        with ending(second):
            assert second.await_end() == 1
            assert "already has an observer here: process" in second.log
        assert upkeep.sweep(app, writer.name, timeout=PATIENCE / 2)["outcome"] == "swept"


@pytest.mark.parametrize(
    "arguments", [{"slot": "soon"}, {"force": 1}, {"gateway": "other"}, {"colour": "red"}, {"deadline": -1}]
)
def test_a_malformed_request_gets_its_error_and_the_observer_lives_on(
    gateway: MakeGateway, redis_server: RedisServer, app: PeerlaneApp, arguments: dict[str, Any]
) -> None:
    writer = gateway()
    with ending(Observer(writer)):
        request = names.request_id(writer.name, "odd")
        queue = names.observer_queue(writer.name)
        app.send_task(names.SWEEP, kwargs={"gateway": writer.name, **arguments}, task_id=request, queue=queue)
        key = names.result_key(request)
        stored = str(eventually(lambda: redis_server.redis.get(key), "the error"))
        with pytest.raises(PeerlaneError) as error:
            decode(stored)
        assert error.value.code == "invalid"
        assert upkeep.sweep(app, writer.name, timeout=PATIENCE / 2)["outcome"] == "swept"


def test_an_observer_outlives_an_outage_of_redis(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, settings: MakeSettings
) -> None:
    writer, app = gateway(redis=own_redis), PeerlaneApp(settings(redis_url=own_redis.url))
    peers = client(writer)
    with ending(observer := Observer(writer)):
        fill(peers, 5, ttl=1)
        own_redis.kill()
        observer.says("Redis is away")
        own_redis.start()
        writer.await_serving()
        assert sweep_when_expired(app, writer.name, 5)["outcome"] == "swept"
        assert there(peers) == set()
    close(app)


class ShiftedRedis(Redis):
    """A real server's client, but for its clock, which is set while the test runs."""

    shift = 0

    def time(self, **options: Any) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleMethodOverride] - of its two twins this is the one in use
        seconds, micros = super().time(**options)
        return seconds + self.shift, micros


@pytest.mark.parametrize("hour", [3600, -3600])
def test_nothing_is_swept_by_a_clock_that_jumped_an_hour_not_even_after_a_restart(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp, hour: int
) -> None:
    writer = gateway()
    peers = client(writer)
    staying = set(fill(peers, 10, ttl=1800))
    expired = set(fill(peers, 2, ttl=1))
    redis = ShiftedRedis(unix_socket_path=str(redis_server.socket))

    def sweeper() -> Sweeper:
        """What an observer makes at its start."""
        clock = ClockMonitor(redis, writer.name)
        clock.look()
        errands = WriterRequests(app, writer.name)
        return Sweeper(redis=redis, gateway=writer.name, limits=Limits(), clock=clock, counted=None, errands=errands)

    def swept(by: Sweeper, *, force: bool = False) -> dict[str, Any]:
        return by.sweep(SweepGateway(gateway=writer.name, force=force), lambda _: True)

    first = sweeper()
    redis.shift = hour
    for make in (lambda: first, sweeper):
        report = swept(make())
        assert (report["outcome"], report["refusal"]["kind"]) == ("refused", "clock")
    (alarm,) = read_alarms(redis, writer.name)
    assert alarm.kind == "clock"
    assert len(there(peers)) == 12

    redis.shift = 0
    eventually(lambda: swept(first)["removed"] and there(peers) == staying, "the clock's agreement, and a sweep")
    assert read_alarms(redis, writer.name) == []

    redis.shift = hour
    assert swept(first)["outcome"] == "refused"
    forced = swept(first, force=True)
    assert forced["outcome"] == "swept"
    assert forced["kept"] == ({"not expired": 10} if hour > 0 else {}), "the writer looks at Redis' clock itself"
    assert there(peers) == staying
    assert expired.isdisjoint(there(peers))
    redis.close()


def test_an_alarm_stands_while_nobody_can_tell_whether_its_cause_is_gone(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
) -> None:
    writer = gateway()
    peers = client(writer)
    fill(peers, 3, ttl=1)
    await_last_expiry(redis_server, peers)
    redis = ShiftedRedis(unix_socket_path=str(redis_server.socket))
    sweeper = Sweeper(
        redis=redis,
        gateway=writer.name,
        limits=Limits(floor=1),
        clock=ClockMonitor(redis, writer.name),
        counted=None,
        errands=WriterRequests(app, writer.name),
    )

    def alarms() -> set[str]:
        sweeper.sweep(SweepGateway(gateway=writer.name), lambda _: True)
        return {alarm.kind for alarm in read_alarms(redis, writer.name)}

    assert alarms() == {"sweep"}
    redis.shift = 3600
    assert alarms() == {"sweep", "clock"}
    redis.shift = 0
    assert alarms() == {"sweep"}
    redis.close()
