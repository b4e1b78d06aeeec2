"""The fault runs' view of what Redis was told: the commits of a real writer, and what a real observer writes down."""

from __future__ import annotations

from collections.abc import Sequence

from fault_evidence import Commit, Life, Sighting
from fault_monitor import Monitor
from gateways import MakeClient, MakeGateway
from keys import some_key
from observers import Observer, ending
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.workers.store.activity import StoredActivity, encode


def test_every_commit_is_seen_with_its_epoch_and_what_it_wrote(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
) -> None:
    site = gateway(start=False)
    monitor = Monitor(redis_server.socket, site.name)
    try:
        assert monitor.listening.wait(5)
        site.start()
        api, key = client(site), some_key()
        made = api.create_peer(key, ttl=60)
        api.delete_peer(key)
        before = redis_server.redis.time()[0]
        api.delete_peer(key, timeout=5)
        site.pause(alive=True)
        redis_server.redis.incr(names.epoch_key(site.name))
        site.resume()
        seen: list[Commit] = []

        def enough() -> Sequence[Commit]:
            # A script that the server does not know yet is sent again: the first try wrote nothing.
            seen.extend(commit for commit in monitor.taken() if commit.wrote)
            return seen if len(seen) >= 3 else []

        eventually(enough, "three commits")
    finally:
        monitor.close()
    created, deleted, absent = seen
    assert len({commit.request for commit in (created, deleted, absent)}) == 3
    assert {(commit.epoch, commit.wrote) for commit in (created, deleted, absent)} == {(1, True)}
    assert (created.changed, deleted.changed, absent.changed) == (True, True, False)
    assert (created.stores, created.removes) == (
        {key: Life(made.expires_at, created=made.created_at or 0)},
        frozenset(),
    )
    assert (deleted.stores, deleted.removes) == ({}, {key})
    assert before <= absent.at < absent.deadline <= absent.at + 5.1


def test_an_observers_signs_of_life_and_what_it_writes_down_are_seen(
    gateway: MakeGateway, redis_server: RedisServer
) -> None:
    site, key = gateway(), some_key()
    monitor = Monitor(redis_server.socket, site.name)
    try:
        assert monitor.listening.wait(5)
        with ending(Observer(site, wait=False)):
            eventually(lambda: monitor.beats, "a sign of life")
        redis_server.redis.hset(names.seen_key(site.name), key, encode(StoredActivity(7, 8, 9, 1, 2, 3, "192.0.2.1:5")))
        assert eventually(monitor.sightings, "what was written down") == [Sighting(key, 7, 8, 9)]
    finally:
        monitor.close()
