"""A request that may have an outcome already touches no device before Redis was asked; any other asks nothing first."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fuzz_lane import FuzzedLane
from gateways import MakeClient, MakeGateway, MakeSettings, close
from keys import some_key
from program_path import PROGRAM_PATH
from servers import RedisServer
from writer_alone import carry_out, create_peer, delete_peer

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.admission.quota import share_key
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire import commit_record
from peerlane.workers.store.store import Answer
from peerlane.workers.writer.writer import NEARLY_LATE, SURE_FOR


class Lane(FuzzedLane):
    """A lane that is fed by hand: real messages, a real consumer and writer, and a note of each change and question."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        super().__init__(server, directory)
        self.asked: list[str] = []
        store = self.writer.store
        check = store.check

        def watched(request_id: str, deadline: int) -> Answer:
            self.asked.append(request_id)
            return check(request_id, deadline)

        store.check = watched

    def message(self, *, redelivered: bool = False, **arguments: Any) -> tuple[str, bytes]:
        """A create as a client sends it, with these arguments instead; its request's id."""
        message = json.loads(self.captured(1)[0])
        message["body"] = json.dumps([[], {"gateway": self.name, **arguments}, {}])
        message["properties"]["body_encoding"] = None
        message["headers"] |= {"redelivered": True} if redelivered else {}
        return message["headers"]["id"], json.dumps(message).encode()

    def outcome(self, request_id: str) -> dict[str, Any]:
        stored = cast("bytes | None", self.redis.get(names.result_key(request_id)))
        assert stored is not None
        return commit_record.decode(stored)


@pytest.fixture
def lane(quick_redis: RedisServer, tmp_path: Path) -> Iterator[Lane]:
    lane = Lane(quick_redis, tmp_path)
    yield lane
    lane.close()


def cancel(lane: Lane, request_id: str) -> None:
    Lanes(lane.redis, result_ttl=600).cancel(request_id)


def test_an_ordinary_create_asks_nothing_before_its_commit(lane: Lane) -> None:
    request_id, raw = lane.message(public_key=some_key(), deadline=lane.writer.store.clock.now_ms() + 5_000)
    lane.take(raw)
    assert lane.outcome(request_id)["outcome"] == "created"
    assert lane.asked == []
    assert len(lane.changes) == 1


def test_a_create_that_was_cancelled_while_it_waited_touches_no_device(lane: Lane) -> None:
    request_id, raw = lane.message(public_key=some_key())
    cancel(lane, request_id)
    lane.take(raw)
    assert lane.changes == []
    with pytest.raises(TimedOut):
        lane.outcome(request_id)
    lane.check()


def test_a_create_that_is_delivered_again_after_its_peer_has_gone_touches_no_device(lane: Lane) -> None:
    key = some_key()
    request_id, raw = lane.message(public_key=key)
    lane.take(raw)
    delete_peer(lane.writer, names.request_id(lane.name, "gone"), {"gateway": lane.name, "public_key": key})
    lane.changes.clear()
    again = json.loads(raw)
    again["headers"]["redelivered"] = True
    lane.take(json.dumps(again).encode())
    assert lane.changes == []
    lane.take(raw)  # the same request asked again by its caller carries no mark
    assert lane.changes == []
    assert lane.outcome(request_id)["outcome"] == "created"
    lane.check()


def test_a_create_that_is_delivered_again_and_is_still_open_is_asked_for_and_carried_out(lane: Lane) -> None:
    request_id, raw = lane.message(public_key=some_key(), redelivered=True)
    lane.take(raw)
    assert lane.asked == [request_id]
    assert lane.outcome(request_id)["outcome"] == "created"


@pytest.mark.parametrize("ahead", [-1_000, -1])
def test_a_create_that_comes_too_late_touches_no_device(lane: Lane, ahead: int) -> None:
    request_id, raw = lane.message(public_key=some_key(), deadline=lane.writer.store.clock.now_ms() + ahead)
    lane.take(raw)
    assert lane.changes == []
    with pytest.raises(TimedOut):
        lane.outcome(request_id)


def test_a_create_that_is_late_by_redis_clock_alone_touches_no_device(lane: Lane) -> None:
    clock = lane.writer.store.clock
    deadline = clock.now_ms() + 5_000
    request_id, raw = lane.message(public_key=some_key(), deadline=deadline)
    clock.now_ms = lambda: deadline - NEARLY_LATE // 2  # what the writer takes Redis' clock for
    while (now := lane.redis.time())[0] * 1000 + now[1] // 1000 <= deadline:
        time.sleep(0.05)
    lane.take(raw)
    assert lane.asked == [request_id]
    assert lane.changes == []
    with pytest.raises(TimedOut):
        lane.outcome(request_id)


def test_a_create_that_was_held_up_in_the_writer_asks_whether_it_was_cancelled_meanwhile(lane: Lane) -> None:
    request_id, raw = lane.message(public_key=some_key())
    state = lane.writer.store.state

    def slow() -> str:
        time.sleep(SURE_FOR * 1.2)
        cancel(lane, request_id)
        return state()

    lane.writer.store.state = slow
    lane.writer.recovery_needed = "a test"
    lane.take(raw)
    assert lane.changes == []
    with pytest.raises(TimedOut):
        lane.outcome(request_id)


def test_a_create_that_is_asked_again_counts_no_longer_in_its_share_of_the_lane(lane: Lane) -> None:
    key = some_key()
    arguments = {"gateway": lane.name, "public_key": key, "labels": {"tenant": "a"}}
    lane.writer._fair_label = "tenant"  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as if the settings said so
    share, request_id = share_key(lane.name, "tenant", arguments["labels"]), names.request_id(lane.name, "twice")
    create_peer(lane.writer, request_id, arguments)
    delete_peer(lane.writer, names.request_id(lane.name, "gone"), {"gateway": lane.name, "public_key": key})
    lane.changes.clear()
    lane.redis.zadd(share, {request_id: 1})  # as its caller does
    answer = carry_out(lane.writer, names.CREATE_PEER, request_id, arguments, redelivered=True)
    assert answer["outcome"] == "created"
    assert lane.redis.zcard(share) == 0
    assert lane.changes == []


def test_whatever_lies_in_the_place_of_a_result_is_in_doubt_and_ends_no_writer(lane: Lane) -> None:
    request_id, raw = lane.message(public_key=some_key())
    lane.redis.lpush(names.result_key(request_id), "no result")
    lane.take(raw)
    assert lane.changes == []
    lane.check()


def test_a_frozen_writer_gives_a_cancelled_peer_no_access_when_it_goes_on(
    gateway: MakeGateway,
    client: MakeClient,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = tmp_path / "device"
    site = gateway(start=False)
    monkeypatch.setenv("PYTHONPATH", PROGRAM_PATH)
    site.program = ["-m", "celery", "-A", "fault_device", "worker", "-l"]
    site.start(test_device=device)
    api, app, cancelled, granted = client(site), PeerlaneApp(settings()), some_key(), some_key()
    assert api.create_peer(some_key()).outcome == "created"
    site.pause(alive=True)
    sent = task_of(app, names.CREATE_PEER).apply_async(
        kwargs={"gateway": site.name, "public_key": cancelled}, expires=60
    )
    with pytest.raises(TimedOut):
        sent.get(timeout=0.5)  # long before its deadline
    site.resume()
    assert api.create_peer(granted, timeout=20).outcome == "created"
    changed = [json.loads(line).get("set") for line in device.read_text().splitlines()]
    assert granted in changed
    assert cancelled not in changed
    close(app)
