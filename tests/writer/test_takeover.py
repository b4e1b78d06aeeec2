"""One writer after another: who is replaced tells nothing any more, and who is elsewhere is waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest
from gateways import new_name
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, Stopwatch

from peerlane.config import names
from peerlane.tasks.errors import LaneHeld
from peerlane.workers.host.lock import namespace
from peerlane.workers.start import takeover
from peerlane.workers.start.takeover import await_predecessor
from peerlane.workers.store.store import Store

DEVICE = "wg0"


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Store]:
    redis = Redis.from_url(redis_server.url, socket_timeout=PATIENCE)
    made = Store(redis, new_name(), result_ttl=60)
    made.open_epoch()
    yield made
    redis.close()


def gateway_fields(store: Store) -> dict[str, str]:
    fields = cast("dict[bytes, bytes]", store.redis.hgetall(names.gateway_key(store.gateway)))
    return {name.decode(): value.decode() for name, value in fields.items()}


def test_a_writer_that_was_replaced_gives_no_sign_of_life(store: Store) -> None:
    assert store.heartbeat(phase="serving", peers=3)
    newer = Store(store.redis, store.gateway, result_ttl=60)
    newer.open_epoch()
    before = gateway_fields(store)
    assert not store.heartbeat(phase="recovering", peers=0)
    assert gateway_fields(store) == before, "it has changed nothing"
    assert newer.heartbeat(phase="recovering", peers=0)
    assert gateway_fields(store)["phase"] == "recovering"


def test_a_writer_elsewhere_that_lives_holds_the_lane(store: Store) -> None:
    store.heartbeat(holder_lock="another boot/net:[1]/wg0", holder_host="vpn-7", holder_pid=77)
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.1):
            store.heartbeat()

    beating = threading.Thread(target=live)
    beating.start()
    try:
        with pytest.raises(LaneHeld, match="process 77 on vpn-7"):
            await_predecessor(Store(store.redis, store.gateway, result_ttl=60), DEVICE)
    finally:
        ended.set()
        beating.join()


def test_a_writer_elsewhere_that_has_fallen_silent_is_waited_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "LIVE_FOR_MS", 1_000)
    store.heartbeat(holder_lock="another boot/net:[1]/wg0", holder_host="vpn-7", holder_pid=77)
    watch = Stopwatch()
    await_predecessor(store, DEVICE)
    assert watch.seconds > 0.5, "it may live on for so long without being heard"


def test_so_is_one_whose_last_heartbeat_is_of_the_future(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis' clock was set back by an hour after that writer had died with its host."""
    monkeypatch.setattr(takeover, "LIVE_FOR_MS", 1_000)
    store.heartbeat(holder_lock="another boot/net:[1]/wg0", holder_host="vpn-7", holder_pid=77)
    store.redis.hset(names.gateway_key(store.gateway), "heartbeat", store.clock.now_ms() + 3_600_000)
    await_predecessor(store, DEVICE)


def never(seconds: float) -> None:
    pytest.fail(f"there is nobody to wait for, {seconds} s")


def test_one_that_had_this_very_lock_is_gone_and_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover.time, "sleep", never)
    store.heartbeat(holder_lock=f"{namespace()}/{DEVICE}", holder_host="here", holder_pid=77)
    await_predecessor(store, DEVICE)
