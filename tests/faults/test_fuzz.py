"""Whatever lies on a lane or in Redis, the writer lives, and only sound requests change the device (see make fuzz)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_lane import FuzzedLane
from fuzz_messages import Messages
from fuzz_run import play_messages, play_records, play_worker
from gateways import MakeClient, MakeGateway, MakeSettings, close
from keys import some_key
from servers import RedisServer
from waiting import eventually
from writer_alone import create_peer

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.client.gateway import gateways
from peerlane.tasks.errors import Draining, WriterError

FIRST = 1_000_000


@pytest.fixture
def lane(quick_redis: RedisServer, tmp_path: Path) -> Iterator[FuzzedLane]:
    lane = FuzzedLane(quick_redis, tmp_path)
    yield lane
    lane.close()


#: Cases of every run, and those of make test-all.
FEW = pytest.param(range(FIRST, FIRST + 3_000), id="few")
MORE = pytest.param(
    range(FIRST + 3_000, FIRST + 6_000), id="more", marks=pytest.mark.slow("plays thousands of cases more")
)


@pytest.mark.parametrize("cases", [FEW, MORE])
def test_the_writer_lives_and_no_device_is_changed_by_what_is_no_request(
    quick_redis: RedisServer, tmp_path: Path, cases: range
) -> None:
    outcomes = play_messages(quick_redis, tmp_path, cases)
    assert sum(outcomes.values()) == len(cases)
    sound = outcomes["sound requests", "changed the device"]
    assert sound > len(cases) / 50, "the fuzz reaches the device where it may"
    assert outcomes["bits flipped", "changed nothing"] > outcomes["bits flipped", "changed the device"] > 0


@pytest.mark.parametrize("cases", [FEW, MORE])
def test_records_that_nobody_can_read_stop_nobody(quick_redis: RedisServer, tmp_path: Path, cases: range) -> None:
    assert play_records(quick_redis, tmp_path, len(cases), first=cases.start) >= len(cases)


def test_a_real_worker_takes_all_of_it_without_ending(quick_redis: RedisServer, tmp_path: Path) -> None:
    assert play_worker(quick_redis, tmp_path, range(FIRST, FIRST + 1_000)) == 1_000


def test_the_same_seed_is_the_same_case() -> None:
    first, second = Messages("iad", [b'{"a": {"b": 1}}']), Messages("iad", [b'{"a": {"b": 1}}'])
    second.case(0)
    assert first.case(14) == second.case(14)


# What the fuzz has found


def test_a_delivery_tag_that_no_text_can_be_is_refused(lane: FuzzedLane) -> None:
    for tag in ("\ud800", "x" * 10_000, "a b", "\n"):
        message = json.loads(lane.captured(1)[0])
        message["properties"]["delivery_tag"] = tag
        lane.take(json.dumps(message).encode())
    assert lane.changes == []
    lane.check()


def test_a_result_that_is_no_text_answers_a_request_with_an_error_and_the_writer_goes_on(lane: FuzzedLane) -> None:
    request = f"{lane.name}.taken"
    lane.redis.set(names.result_key(request), b"\xff\xfe")
    wish = {"gateway": lane.name, "public_key": some_key()}
    with pytest.raises(WriterError):
        create_peer(lane.writer, request, wish)
    assert wish["public_key"] not in lane.writer.plane.peers()
    lane.check()


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        *(("heartbeat", b"9" * 5_000), ("heartbeat", "²".encode()), ("peers", b"9" * 5_000), ("lane_cap", b"many")),
        *((b"\xff", b"\xff"), ("labels", b"[" * 100_000), ("pools", b"[" * 100_000)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_strange_facts_of_one_gateway_do_not_hide_the_others(
    settings: MakeSettings, own_redis: RedisServer, fact: Any, value: bytes
) -> None:
    app = PeerlaneApp(settings(redis_url=own_redis.url))
    try:
        own_redis.redis.sadd(names.GATEWAYS_KEY, "odd", "sound", b"\xff", "no name", "")
        own_redis.redis.hset(names.gateway_key("sound"), "public_key", some_key())
        own_redis.redis.hset(names.gateway_key("odd"), fact, value)  # pyright: ignore[reportArgumentType] - bytes are sent as they are
        assert [info.name for info in gateways(app)] == ["odd", "sound"]
    finally:
        close(app)


def test_a_state_that_is_no_text_stops_neither_start_nor_heartbeat(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
) -> None:
    site = gateway()
    redis_server.redis.hset(names.gateway_key(site.name), "state", b"\xff\xfe")  # pyright: ignore[reportArgumentType] - bytes
    before = site.look().facts["heartbeat"]
    eventually(lambda: int(site.look().facts["heartbeat"]) > int(before) + 1_500, "the heart beating on")
    assert client(site).delete_peer(some_key()).outcome == "absent"
    with pytest.raises(Draining):  # whatever it means, it is not that peers are welcome
        client(site).create_peer(some_key())
    site.stop()
    site.start()
