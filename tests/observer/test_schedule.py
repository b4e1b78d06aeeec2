"""Beat's schedule with real beats: one task per gateway and slot, whoever sends it, and outages outlived."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from gateways import MakeGateway, new_name
from observers import Observer, Process, beat, ending
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.config.celery.schedule import ACTS, ENOUGH, Due

_CARRIED_OUT = re.compile(r"Task peerlane\.sweep\[[^\]]*\.sweep-(\d+)\] succeeded in [^:]*: \{'outcome': '(\w+)'")
_ASKED_FOR = re.compile(r"sweep (\S+): asked for, slot (\d+)")


def slots(process: Process, gateway: str) -> list[int]:
    """The slots for which a beat has asked for a sweep of the gateway."""
    return [int(slot) for name, slot in _ASKED_FOR.findall(process.log) if name == gateway]


def register(server: RedisServer, name: str, **facts: float) -> str:
    """A gateway that nobody serves."""
    server.redis.sadd(names.GATEWAYS_KEY, name)
    server.redis.hset(names.gateway_key(name), mapping={key: str(value) for key, value in facts.items()} or {"v": 1})
    return name


def test_two_beats_ask_twice_and_a_slot_is_carried_out_once(own_redis: RedisServer, gateway: MakeGateway) -> None:
    writer = gateway(redis=own_redis, sweep_every=1)
    first, second = (beat(own_redis.url, writer.directory / f"beat-{n}.log") for n in (1, 2))
    with ending(first, second, observer := Observer(writer)):
        eventually(
            lambda: len(set(slots(first, writer.name)) & set(slots(second, writer.name))) >= 4, "4 slots of both"
        )
        last = max(slots(first, writer.name))
        observer.says(f".sweep-{last}]")
    done = Counter[tuple[str, str]](_CARRIED_OUT.findall(observer.log))
    swept = {slot: count for (slot, outcome), count in done.items() if outcome == "swept"}
    assert len(swept) >= 4
    assert set(swept.values()) == {1}
    assert sum(count for (_, outcome), count in done.items() if outcome == "skipped") >= 3


def test_a_beat_asks_once_per_slot_and_skips_none(own_redis: RedisServer, tmp_path: Path) -> None:
    name = register(own_redis, new_name(), sweep_every=1)
    with ending(process := beat(own_redis.url, tmp_path / "beat.log")):
        # Taken off as an observer would, so that the beat goes on asking.
        queue = names.observer_queue(name)
        eventually(lambda: own_redis.redis.ltrim(queue, 1, 0) and len(slots(process, name)) >= 6, "6 slots")
    asked = slots(process, name)
    assert asked == list(range(asked[0], asked[0] + len(asked)))


def test_what_beat_sends_names_the_gateway_and_the_slot(own_redis: RedisServer, tmp_path: Path) -> None:
    name = register(own_redis, new_name(), sweep_every=3600, reconcile_every=7200)
    queue = names.observer_queue(name)
    with ending(beat(own_redis.url, tmp_path / "beat.log")):
        eventually(lambda: own_redis.redis.llen(queue) == len(ACTS), "both messages")
    sent = {message["headers"]["task"]: message for message in map(json.loads, own_redis.redis.lrange(queue, 0, -1))}
    assert set(sent) == {names.SWEEP, names.RECONCILE}
    seconds, _ = own_redis.redis.time()
    slot = seconds // 7200
    assert sent[names.RECONCILE]["headers"]["id"] == f"{name}.reconcile-{slot}"
    assert sent[names.RECONCILE]["headers"]["ignore_result"] is True


def test_an_observer_that_is_away_is_not_buried_in_messages_and_is_asked_again_once_it_is_back(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    name = register(own_redis, new_name(), sweep_every=1, reconcile_every=5)
    queue = names.observer_queue(name)
    with ending(process := beat(own_redis.url, tmp_path / "beat.log")):
        eventually(lambda: own_redis.redis.llen(queue) >= ENOUGH, "messages")
        other = register(own_redis, new_name(), sweep_every=1)
        eventually(lambda: len(slots(process, other)) >= 3, "another gateway's turn")
        assert own_redis.redis.llen(queue) <= ENOUGH + len(ACTS)
        own_redis.redis.delete(queue)  # the observer is back, and takes them
        back = max(slots(process, other))

        def asked_again() -> bool:
            own_redis.redis.delete(names.observer_queue(other))  # its observer is there all the while
            return max(slots(process, name)) > back

        eventually(asked_again, "a slot of the first one")
        first = min(slot for slot in slots(process, name) if slot > back)
        # The one that began when the observer came back may have been passed over just before.
        assert sum(back < slot < first for slot in slots(process, other)) <= 1


def test_a_beat_outlives_an_outage_of_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    name = register(own_redis, new_name(), sweep_every=1)
    with ending(process := beat(own_redis.url, tmp_path / "beat.log")):
        eventually(lambda: slots(process, name), "a first slot")
        own_redis.stop()
        process.says("Redis is away (")
        assert "Redis is away (ConnectionError)" not in process.log, "a class is no reason"
        own_redis.start()
        process.says("Redis is back")
        count, queue = len(slots(process, name)), names.observer_queue(name)
        # Taken off as an observer would, so that the beat goes on asking.
        eventually(
            lambda: own_redis.redis.ltrim(queue, 1, 0) and len(slots(process, name)) > count, "a slot after the outage"
        )
        assert process.stop() == 0


@pytest.mark.parametrize(("now", "slot"), [(0, 0), (59.9, 0), (60, 1), (1_800_000_000, 30_000_000)])
def test_a_slot_begins_with_each_interval(now: float, slot: int) -> None:
    assert Due("iad", names.SWEEP, "sweep", 60.0).slot(now) == slot
