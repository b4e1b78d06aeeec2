"""A gateway that is gone is forgotten whole, never one that is in use, and its old writer does not come back."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands import asked
from gateways import MakeClient, MakeGateway, MakeSettings, new_name
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


def keys_of(server: RedisServer, name: str) -> set[str]:
    """Every key that bears the gateway's name, but for outcomes."""
    redis: Any = server.redis
    keys = set(redis.scan_iter(f"*{name}*", count=10_000))
    return {key for key in keys if not key.startswith(names.RESULT_PREFIX)}


def state(server: RedisServer, name: str) -> dict[str, object]:
    """What is held, but for what a moment changes by itself."""
    redis: Any = server.redis
    return {key: redis.dump(key) for key in keys_of(server, name) if redis.ttl(key) == -1}


def registered(server: RedisServer, name: str) -> bool:
    return bool(server.redis.sismember(names.GATEWAYS_KEY, name))


def epoch(server: RedisServer, name: str) -> int:
    return int(str(server.redis.get(names.epoch_key(name))))


def assert_forgotten(server: RedisServer, name: str) -> None:
    assert keys_of(server, name) == {names.epoch_key(name)}
    assert not registered(server, name)


def test_a_gateway_that_has_stopped_is_forgotten_but_for_its_epoch(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    site = gateway(sweep_every="1", reconcile_every="5")
    key = some_key()
    client(site).create_peer(key, ttl=3600)
    with ending(observer := Observer(site)):
        client(site).delete_peer(key)
        assert observer.stop() == 0
    site.stop()
    assert names.observer_key(site.name) in keys_of(redis_server, site.name)
    before = epoch(redis_server, site.name)
    assert remove_gateway(settings(), site.name) == Removed(site.name, 0, 0)
    assert_forgotten(redis_server, site.name)
    assert epoch(redis_server, site.name) == before + 1
    with pytest.raises(Unavailable, match=f"no gateway {site.name} is registered"):
        client(site).create_peer(some_key())


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
    assert keys_of(redis_server, name) == {names.epoch_key(name), copy, other}
    assert redis.exists(outcome)
    redis.delete(copy, other, outcome)


@pytest.mark.parametrize("force", [False, True])
def test_a_gateway_whose_writer_lives_is_refused(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer, *, force: bool
) -> None:
    site = gateway()
    with pytest.raises(Unavailable, match="has a live writer"):
        remove_gateway(settings(), site.name, force=force)
    assert registered(redis_server, site.name)
    assert client(site).create_peer(some_key()).outcome == "created"


def test_a_gateway_whose_observer_lives_is_refused_until_it_has_ended(
    gateway: MakeGateway, settings: MakeSettings, redis_server: RedisServer
) -> None:
    site = gateway()
    with ending(observer := Observer(site)):
        site.stop()
        with pytest.raises(Unavailable, match="has a live observer"):
            remove_gateway(settings(), site.name, force=True)
        assert registered(redis_server, site.name)
        assert observer.stop() == 0
    remove_gateway(settings(), site.name)
    assert_forgotten(redis_server, site.name)


def test_peers_are_forgotten_only_by_force(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    site = gateway()
    for _ in range(3):
        client(site).create_peer(some_key())
    site.stop()
    before = state(redis_server, site.name)
    with pytest.raises(Conflict, match="holds 3 peers: --force"):
        remove_gateway(settings(), site.name)
    assert state(redis_server, site.name) == before
    assert registered(redis_server, site.name)
    assert remove_gateway(settings(), site.name, force=True).peers == 3
    assert_forgotten(redis_server, site.name)


def test_a_request_that_waits_is_forgotten_only_by_force_and_its_caller_learns_that_it_timed_out(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    site = gateway()
    iad, errors = client(site), list[BaseException]()
    iad.info()
    site.hold()

    def ask() -> None:
        try:
            iad.create_peer(some_key(), timeout=8, request_id=f"{site.name}.waits")
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            errors.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    eventually(lambda: redis_server.redis.llen(names.lane_queue(site.name)) == 1, "the request to wait")
    site.kill()
    site.fall_silent()
    with pytest.raises(Conflict, match="holds 1 request that waits: --force"):
        remove_gateway(settings(), site.name)
    assert redis_server.redis.llen(names.lane_queue(site.name)) == 1
    assert remove_gateway(settings(), site.name, force=True).requests == 1
    caller.join(30)
    assert [type(error) for error in errors] == [TimedOut]
    site.start()
    assert client(site).info().peers == 0
    with pytest.raises(TimedOut):
        client(site).create_peer(some_key(), request_id=f"{site.name}.waits")


def test_a_request_that_a_dead_writer_had_taken_counts_as_one_that_waits(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer, tmp_path: Path
) -> None:
    site = gateway(test_failpoints=tmp_path / "failpoints")
    (tmp_path / "failpoints").write_text("before_commit:kill\n")
    with pytest.raises(TimedOut):
        client(site).create_peer(some_key(), timeout=1)
    site.await_end()
    site.fall_silent()
    with pytest.raises(Conflict, match="1 request that waits"):
        remove_gateway(settings(), site.name)
    assert remove_gateway(settings(), site.name, force=True) == Removed(site.name, 0, 1)
    assert_forgotten(redis_server, site.name)


def test_a_name_that_nobody_registered_is_refused(settings: MakeSettings, redis_server: RedisServer) -> None:
    name = new_name()
    with pytest.raises(Unavailable, match=f"no gateway {name} is registered"):
        remove_gateway(settings(), name, force=True)
    assert keys_of(redis_server, name) == set()


def test_a_name_without_a_gateway_is_forgotten(settings: MakeSettings, redis_server: RedisServer) -> None:
    name = new_name()
    redis_server.redis.sadd(names.GATEWAYS_KEY, name)
    remove_gateway(settings(), name)
    assert not registered(redis_server, name)


def test_a_frozen_writer_that_wakes_after_the_removal_is_refused_and_leaves_nothing(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    site = gateway()
    client(site).create_peer(some_key())
    site.pause()
    site.fall_silent()
    remove_gateway(settings(), site.name, force=True)
    site.resume()
    assert site.await_end() != 0
    assert "a newer writer has taken over" in site.log
    assert_forgotten(redis_server, site.name)


@pytest.mark.parametrize("moved", ["epoch", "heartbeat", "peer", "request"])
def test_whoever_starts_commits_or_asks_at_the_same_moment_makes_the_removal_fail(
    gateway: MakeGateway, settings: MakeSettings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    site = gateway()
    site.stop()
    redis, looks = redis_server.redis, list[str]()
    look = Lanes.look

    def and_then_something_happens(self: Lanes, name: str) -> Any:
        result = look(self, name)
        looks.append(name)
        if len(looks) == 2:  # the last, before all is decided
            {
                "epoch": lambda: redis.incr(names.epoch_key(name)),
                "heartbeat": lambda: redis.hset(names.gateway_key(name), "heartbeat", int(time.time() * 1000)),
                "peer": lambda: redis.hset(names.peers_key(name), some_key(), "{}"),
                "request": lambda: redis.lpush(names.lane_queue(name), "x"),
            }[moved]()
        return result

    monkeypatch.setattr(Lanes, "look", and_then_something_happens)
    with pytest.raises(Conflict, match="changed meanwhile"):
        remove_gateway(settings(), site.name, force=True)
    assert registered(redis_server, site.name)
    assert {names.gateway_key(site.name), names.epoch_key(site.name)} <= keys_of(redis_server, site.name)


def test_a_writer_that_starts_again_and_again_meanwhile_is_removed_whole_or_not_at_all(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    site = gateway()
    site.stop()
    before, ended = epoch(redis_server, site.name), threading.Event()

    def try_it() -> None:
        chosen = settings()
        while not ended.is_set():
            try:
                remove_gateway(chosen, site.name, force=True)
            except (Unavailable, Conflict):
                time.sleep(0.01)

    trying = threading.Thread(target=try_it)
    trying.start()
    try:
        site.start(wait=False)
        eventually(lambda: epoch(redis_server, site.name) >= before + 2, "a removal and a start")
    finally:
        ended.set()
        trying.join(30)
    # Either the writer has begun after the removal and serves, or it was removed while it began, and ends.
    eventually(lambda: site.status is not None or site.look().state == "active", "the writer to serve or to end")
    if site.status is not None:
        site.start()
    assert client(site).create_peer(some_key()).outcome == "created"


def test_a_gateway_of_the_same_name_starts_anew_with_nothing_of_the_old_one(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer
) -> None:
    site = gateway()
    key = some_key()
    first = client(site).create_peer(key, preshared_key=make_preshared_key())
    client(site).drain()
    site.stop()
    before = epoch(redis_server, site.name)
    remove_gateway(settings(), site.name, force=True)
    site.start()
    assert epoch(redis_server, site.name) == before + 2
    again = client(site)
    assert again.info().state == "active"
    assert again.peer(key) is None
    assert again.create_peer(some_key()).allowed_ips == first.allowed_ips, "addresses are free again"


def test_what_was_removed_comes_back_from_a_backup(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, tmp_path: Path
) -> None:
    site = gateway()
    key = some_key()
    client(site).create_peer(key)
    site.stop()
    back_up(settings(), site.name, tmp_path / "file")
    remove_gateway(settings(), site.name, force=True)
    assert restore_state(settings(), site.name, tmp_path / "file").peers == 1
    site.start()
    assert client(site).peer(key) is not None


def test_beat_asks_a_removed_gateway_nothing_any_more_and_takes_back_what_it_asked(
    gateway: MakeGateway, settings: MakeSettings, own_redis: RedisServer, tmp_path: Path
) -> None:
    site = gateway(redis=own_redis, sweep_every="1", reconcile_every="5")
    site.stop()
    queue = names.observer_queue(site.name)
    with ending(asking := beat(own_redis.url, tmp_path / "beat.log")):
        eventually(lambda: own_redis.redis.llen(queue) > 0, "beat asking")
        eventually(lambda: _removed(settings(redis_url=own_redis.url), site.name), "a moment in which nobody asks")
        asking.says("0 gateways are looked after")
        assert_forgotten(own_redis, site.name)


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
    assert keys_of(redis_server, name) == {names.gateway_key(name), names.epoch_key(name)}


def test_a_server_that_is_away_is_told(settings: MakeSettings, own_redis: RedisServer) -> None:
    own_redis.stop()
    with pytest.raises(OutcomeUnknown):
        remove_gateway(settings(redis_url=own_redis.url), "iad")


def test_it_is_one_command(gateway: MakeGateway, client: MakeClient, redis_server: RedisServer) -> None:
    site = gateway()
    client(site).create_peer(some_key())
    url, command = redis_server.url, ("gateway", "remove", site.name)
    assert asked(*command, redis_url=url, expect=3)["error"]["code"] == "unavailable"
    site.stop()
    refusal = asked(*command, redis_url=url, expect=1)["error"]
    assert (refusal["code"], "holds 1 peer:" in refusal["message"]) == ("conflict", True)
    assert asked(*command, "--force", redis_url=url) == {"gateway": site.name, "peers": 1, "requests": 0}
    listed = asked("gateway", "list", redis_url=url)["gateways"]
    assert site.name not in [row["name"] for row in listed]
    assert asked(*command, "--force", redis_url=url, expect=3)["error"]["code"] == "unavailable"
