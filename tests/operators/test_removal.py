"""A gateway that is gone is forgotten whole, never one that is in use, and its old writer does not come back."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands import asked
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, new_name
from keys import some_key
from observers import Observer, beat, ending
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.tasks.admin.backup import back_up, restore_state
from peerlane.tasks.admin.removal import Removed, remove_gateway
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Conflict, OutcomeUnknown, StorageError, TimedOut, Unavailable
from peerlane.tasks.values.keys import make_preshared_key


def held(server: RedisServer, name: str) -> set[str]:
    """Every key that bears the gateway's name, but for outcomes."""
    redis: Any = server.redis
    found = set(redis.scan_iter(f"*{name}*", count=10_000))
    return {key for key in found if not key.startswith(names.RESULT_PREFIX)}


def state(server: RedisServer, name: str) -> dict[str, object]:
    """What is held, but for what a moment changes by itself."""
    redis: Any = server.redis
    return {key: redis.dump(key) for key in held(server, name) if redis.ttl(key) == -1}


def registered(server: RedisServer, name: str) -> bool:
    return bool(server.redis.sismember(names.GATEWAYS_KEY, name))


def epoch(server: RedisServer, name: str) -> int:
    return int(str(server.redis.get(names.epoch_key(name))))


def assert_forgotten(server: RedisServer, name: str) -> None:
    assert held(server, name) == {names.epoch_key(name)}
    assert not registered(server, name)


def fall_silent(one: GatewayProcess) -> None:
    """Wait until callers take the writer for dead."""
    eventually(lambda: not one.look().live, "the writer's heartbeat to be old")


def test_a_gateway_that_has_stopped_is_forgotten_but_for_its_epoch(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    one = gateway(sweep_every="1", reconcile_every="5")
    key = some_key()
    client(one).create_peer(key, ttl=3600)
    with ending(observer := Observer(one)):
        client(one).delete_peer(key)
        assert observer.stop() == 0
    one.stop()
    assert names.observer_key(one.name) in held(redis_server, one.name)
    before = epoch(redis_server, one.name)
    assert remove_gateway(settings(), one.name) == Removed(one.name, 0, 0)
    assert_forgotten(redis_server, one.name)
    assert epoch(redis_server, one.name) == before + 1
    with pytest.raises(Unavailable, match=f"no gateway {one.name} is registered"):
        client(one).create_peer(some_key())


def test_whatever_key_a_gateway_may_have_is_forgotten_and_outcomes_are_not(
    settings: MakeSettings, redis_server: RedisServer
) -> None:
    redis, name = redis_server.redis, new_name()
    redis.sadd(names.GATEWAYS_KEY, name)
    redis.set(names.epoch_key(name), 7)
    redis.hset(names.gateway_key(name), "heartbeat", "0")
    passing = [
        names.slot_key(name, "sweep", 5),
        names.staged_key(name, "token"),
        names.share_key(name, "digest"),
        names.deliveries_key(name, f"{name}.x"),
    ]
    lanes = {names.lane_queue(name), names.bulk_queue(name), names.observer_queue(name), names.poison_key(name)}
    for key in {*names.lasting_keys(name), *passing} - {names.gateway_key(name)}:
        if key in lanes:
            redis.lpush(key, "x")
        elif key in passing or key.endswith("_mutex"):
            redis.set(key, "x", ex=600)
        elif not key.endswith("_index"):
            redis.hset(key, "x", "y")
    copy, outcome = names.snapshot_key(name, "token", "peers"), names.result_key(f"{name}.x")
    redis.hset(copy, "x", "y")
    redis.set(outcome, "x", ex=600)
    other = names.peers_key(f"{name}-b")
    redis.hset(other, "x", "y")
    assert remove_gateway(settings(), name, force=True) == Removed(name, 1, 3)
    assert held(redis_server, name) == {names.epoch_key(name), copy, other}
    assert redis.exists(outcome)
    redis.delete(copy, other, outcome)


@pytest.mark.parametrize("force", [False, True])
def test_a_gateway_whose_writer_lives_is_refused(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer, *, force: bool
) -> None:
    one = gateway()
    with pytest.raises(Unavailable, match="has a live writer"):
        remove_gateway(settings(), one.name, force=force)
    assert registered(redis_server, one.name)
    assert client(one).create_peer(some_key()).outcome == "created"


def test_a_gateway_whose_observer_lives_is_refused_until_it_has_ended(
    gateway: MakeGateway, settings: MakeSettings, redis_server: RedisServer
) -> None:
    one = gateway()
    with ending(observer := Observer(one)):
        one.stop()
        with pytest.raises(Unavailable, match="has a live observer"):
            remove_gateway(settings(), one.name, force=True)
        assert registered(redis_server, one.name)
        assert observer.stop() == 0
    remove_gateway(settings(), one.name)
    assert_forgotten(redis_server, one.name)


def test_peers_are_forgotten_only_by_force(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    one = gateway()
    for _ in range(3):
        client(one).create_peer(some_key())
    one.stop()
    before = state(redis_server, one.name)
    with pytest.raises(Conflict, match="holds 3 peers: --force"):
        remove_gateway(settings(), one.name)
    assert state(redis_server, one.name) == before
    assert registered(redis_server, one.name)
    assert remove_gateway(settings(), one.name, force=True).peers == 3
    assert_forgotten(redis_server, one.name)


def test_a_request_that_waits_is_forgotten_only_by_force_and_its_caller_learns_that_it_timed_out(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    one = gateway()
    iad, told = client(one), list[BaseException]()
    iad.info()
    one.hold()

    def ask() -> None:
        try:
            iad.create_peer(some_key(), timeout=8, request_id=f"{one.name}.waits")
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            told.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    eventually(lambda: redis_server.redis.llen(names.lane_queue(one.name)) == 1, "the request to wait")
    one.kill()
    fall_silent(one)
    with pytest.raises(Conflict, match="holds 1 request that waits: --force"):
        remove_gateway(settings(), one.name)
    assert redis_server.redis.llen(names.lane_queue(one.name)) == 1
    assert remove_gateway(settings(), one.name, force=True).requests == 1
    caller.join(30)
    assert [type(error) for error in told] == [TimedOut]
    one.start()
    assert client(one).info().peers == 0
    with pytest.raises(TimedOut):
        client(one).create_peer(some_key(), request_id=f"{one.name}.waits")


def test_a_request_that_a_dead_writer_had_taken_counts_as_one_that_waits(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer, tmp_path: Path
) -> None:
    one = gateway(test_failpoints=tmp_path / "failpoints")
    (tmp_path / "failpoints").write_text("before_commit:kill\n")
    with pytest.raises(TimedOut):
        client(one).create_peer(some_key(), timeout=1)
    one.await_end()
    fall_silent(one)
    with pytest.raises(Conflict, match="1 request that waits"):
        remove_gateway(settings(), one.name)
    assert remove_gateway(settings(), one.name, force=True) == Removed(one.name, 0, 1)
    assert_forgotten(redis_server, one.name)


def test_a_name_that_nobody_registered_is_refused(settings: MakeSettings, redis_server: RedisServer) -> None:
    name = new_name()
    with pytest.raises(Unavailable, match=f"no gateway {name} is registered"):
        remove_gateway(settings(), name, force=True)
    assert held(redis_server, name) == set()


def test_a_name_without_a_gateway_is_forgotten(settings: MakeSettings, redis_server: RedisServer) -> None:
    name = new_name()
    redis_server.redis.sadd(names.GATEWAYS_KEY, name)
    remove_gateway(settings(), name)
    assert not registered(redis_server, name)


def test_a_frozen_writer_that_wakes_after_the_removal_is_refused_and_leaves_nothing(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    one = gateway()
    client(one).create_peer(some_key())
    one.pause()
    fall_silent(one)
    remove_gateway(settings(), one.name, force=True)
    one.resume()
    assert one.await_end() != 0
    assert "a newer writer has taken over" in one.log
    assert_forgotten(redis_server, one.name)


@pytest.mark.parametrize("moved", ["epoch", "heartbeat", "peer", "request"])
def test_whoever_starts_commits_or_asks_at_the_same_moment_makes_the_removal_fail(
    gateway: MakeGateway, settings: MakeSettings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    one = gateway()
    one.stop()
    redis, looks = redis_server.redis, list[str]()
    look = Lanes.look

    def and_then_something_happens(self: Lanes, name: str) -> Any:
        found = look(self, name)
        looks.append(name)
        if len(looks) == 2:  # the last, before all is decided
            {
                "epoch": lambda: redis.incr(names.epoch_key(name)),
                "heartbeat": lambda: redis.hset(names.gateway_key(name), "heartbeat", int(time.time() * 1000)),
                "peer": lambda: redis.hset(names.peers_key(name), some_key(), "{}"),
                "request": lambda: redis.lpush(names.lane_queue(name), "x"),
            }[moved]()
        return found

    monkeypatch.setattr(Lanes, "look", and_then_something_happens)
    with pytest.raises(Conflict, match="changed meanwhile"):
        remove_gateway(settings(), one.name, force=True)
    assert registered(redis_server, one.name)
    assert {names.gateway_key(one.name), names.epoch_key(one.name)} <= held(redis_server, one.name)


def test_a_writer_that_starts_again_and_again_meanwhile_is_removed_whole_or_not_at_all(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    one = gateway()
    one.stop()
    before, ended = epoch(redis_server, one.name), threading.Event()

    def try_it() -> None:
        chosen = settings()
        while not ended.is_set():
            try:
                remove_gateway(chosen, one.name, force=True)
            except (Unavailable, Conflict):
                time.sleep(0.01)

    trying = threading.Thread(target=try_it)
    trying.start()
    try:
        one.start(wait=False)
        eventually(lambda: epoch(redis_server, one.name) >= before + 2, "a removal and a start")
    finally:
        ended.set()
        trying.join(30)
    # Either the writer has begun after the removal and serves, or it was removed while it began, and ends.
    eventually(lambda: one.status is not None or one.look().state == "active", "the writer to serve or to end")
    if one.status is not None:
        one.start()
    assert client(one).create_peer(some_key()).outcome == "created"


def test_a_gateway_of_the_same_name_starts_anew_with_nothing_of_the_old_one(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    one = gateway()
    key = some_key()
    first = client(one).create_peer(key, preshared_key=make_preshared_key())
    client(one).drain()
    one.stop()
    before = epoch(redis_server, one.name)
    remove_gateway(settings(), one.name, force=True)
    one.start()
    assert epoch(redis_server, one.name) == before + 2
    again = client(one)
    assert again.info().state == "active"
    assert again.peer(key) is None
    assert again.create_peer(some_key()).allowed_ips == first.allowed_ips, "addresses are free again"


def test_what_was_removed_comes_back_from_a_backup(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, tmp_path: Path
) -> None:
    one = gateway()
    key = some_key()
    client(one).create_peer(key)
    one.stop()
    back_up(settings(), one.name, tmp_path / "file")
    remove_gateway(settings(), one.name, force=True)
    assert restore_state(settings(), one.name, tmp_path / "file").peers == 1
    one.start()
    assert client(one).peer(key) is not None


def test_beat_asks_a_removed_gateway_nothing_any_more_and_takes_back_what_it_asked(
    gateway: MakeGateway, settings: MakeSettings, own_redis: RedisServer, tmp_path: Path
) -> None:
    one = gateway(redis=own_redis, sweep_every="1", reconcile_every="5")
    one.stop()
    queue = names.observer_queue(one.name)
    with ending(asking := beat(own_redis.url, tmp_path / "beat.log")):
        eventually(lambda: own_redis.redis.llen(queue) > 0, "beat asking")
        eventually(lambda: _removed(settings(redis_url=own_redis.url), one.name), "a moment in which nobody asks")
        asking.says("0 gateways are looked after")
        assert_forgotten(own_redis, one.name)


def _removed(chosen: Any, name: str) -> bool:
    try:
        return remove_gateway(chosen, name).gateway == name
    except Conflict:
        return False


def test_a_big_gateway_costs_redis_no_long_moment(settings: MakeSettings, own_redis: RedisServer) -> None:
    redis, name = own_redis.redis, new_name()
    redis.config_set("lazyfree-lazy-user-del", "no")  # a newer server would do the same for DEL
    redis.hset(names.gateway_key(name), "heartbeat", "0")
    for start in range(0, 100_000, 10_000):
        redis.hset(names.peers_key(name), mapping={f"{start + n}": "x" * 100 for n in range(10_000)})
    before: Any = redis.info("memory")
    assert remove_gateway(settings(redis_url=own_redis.url), name, force=True).peers == 100_000

    def freed() -> bool:
        after: Any = redis.info("memory")
        return after["lazyfreed_objects"] > before["lazyfreed_objects"]

    eventually(freed, "the peers to be freed in the background")
    assert_forgotten(own_redis, name)


def test_an_epoch_that_is_no_number_is_told_and_nothing_changes(
    settings: MakeSettings, redis_server: RedisServer
) -> None:
    redis, name = redis_server.redis, new_name()
    redis.hset(names.gateway_key(name), "heartbeat", "0")
    redis.set(names.epoch_key(name), "seven")
    with pytest.raises(StorageError, match="no number"):
        remove_gateway(settings(), name, force=True)
    assert held(redis_server, name) == {names.gateway_key(name), names.epoch_key(name)}


def test_a_server_that_is_away_is_told(settings: MakeSettings, own_redis: RedisServer) -> None:
    own_redis.stop()
    with pytest.raises(OutcomeUnknown):
        remove_gateway(settings(redis_url=own_redis.url), "iad")


def test_it_is_one_command(gateway: MakeGateway, client: MakeClient, redis_server: RedisServer) -> None:
    one = gateway()
    client(one).create_peer(some_key())
    url, command = redis_server.url, ("gateway", "remove", one.name)
    assert asked(*command, redis_url=url, expect=3)["error"]["code"] == "unavailable"
    one.stop()
    refusal = asked(*command, redis_url=url, expect=1)["error"]
    assert (refusal["code"], "holds 1 peer:" in refusal["message"]) == ("conflict", True)
    assert asked(*command, "--force", redis_url=url) == {"gateway": one.name, "peers": 1, "requests": 0}
    listed = asked("gateway", "list", redis_url=url)["gateways"]
    assert one.name not in [found["name"] for found in listed]
    assert asked(*command, "--force", redis_url=url, expect=3)["error"]["code"] == "unavailable"
