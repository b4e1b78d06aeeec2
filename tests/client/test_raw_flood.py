"""A flood by senders that nobody admits: they push into Redis by themselves, more than the lane can ever do."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
from gateways import MakeGateway
from keys import some_key
from raw_messages import RawFlood
from redis import Redis
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import PeerlaneError, TimedOut, Unavailable
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire import commit_record

#: Seconds within which a delete is to be answered: a busy machine's group takes a tenth of one.
SENSIBLE = 8.0


def became_of(redis: Redis, requests: list[str]) -> Counter[object]:
    """How many requests have which outcome."""
    counts: Counter[object] = Counter()
    for start in range(0, len(requests), 1000):
        keys = [names.result_key(request) for request in requests[start : start + 1000]]
        for record in cast("list[bytes | None]", redis.mget(keys)):
            try:
                counts[None if record is None else commit_record.decode(record)["outcome"]] += 1
            except PeerlaneError as error:
                counts[type(error)] += 1
    return counts


def test_deletes_and_sweeps_are_answered_in_a_raw_flood_of_creates(
    gateway: MakeGateway, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    site = gateway(lane_cap=100_000)
    lane = Gateway(site.name, app=app)
    keys = [lane.create_peer(some_key()).public_key for _ in range(30)]
    with RawFlood(app, redis_server.url, site.name, waiting=2000, timeout=0.4) as flood:
        outcomes = [lane.delete_peer(key, timeout=SENSIBLE).outcome for key in keys[:20]]
        listed = lane.delete_peers(keys[20:], timeout=SENSIBLE)
    assert outcomes == ["deleted"] * 20
    assert [cast("Any", each).outcome for each in listed] == ["deleted"] * 10
    # What is late gets its outcome when the writer comes to it.
    eventually(lambda: site.look().waiting == 0, "the lane being empty")
    with Redis.from_url(redis_server.url) as redis:
        ended = became_of(redis, flood.request_ids())
    assert ended["created"] > 0, "the lane answers creates all the while"
    assert ended[TimedOut] > 0, "and it was a flood"
    assert set(ended) <= {"created", TimedOut, None}
    assert "unforeseen" not in site.log


def test_shares_hold_in_a_raw_flood(gateway: MakeGateway, app: PeerlaneApp, redis_server: RedisServer) -> None:
    site = gateway(lane_cap=10_000, fair_label="tenant", fair_share=0.002)
    create = task_of(app, names.CREATE_PEER)

    def send(tenant: str) -> Any:
        wish = {"gateway": site.name, "public_key": some_key(), "labels": {"tenant": tenant}}
        return create.apply_async(kwargs=wish, expires=60)

    site.hold()
    with RawFlood(app, redis_server.url, site.name, waiting=1000, timeout=0.6):
        taken = 0
        with pytest.raises(Unavailable, match="the share of tenant=loud"):  # noqa: PT012 - how many were taken counts
            while taken < 200:
                send("loud").forget()
                taken += 1
        assert taken == 20
        quiet = [send("quiet") for _ in range(10)]
        site.resume()
        assert [result.get(timeout=60)["outcome"] for result in quiet] == ["created"] * 10
