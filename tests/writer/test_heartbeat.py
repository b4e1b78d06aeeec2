"""What a writer tells of itself: the newest last, whoever was on the way to Redis first."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from conftest import MakeSettings
from gateways import MakeClient, MakeGateway
from keys import some_key
from servers import RedisServer
from six_requests import six_requests
from waiting import eventually

from peerlane.config import names
from peerlane.workers.request.request import Measurements, Pace
from peerlane.workers.store.store import Store
from peerlane.workers.writer.heartbeat import Heartbeat
from peerlane.workers.writer.writer import Writer


class SlowStore:
    """Stands in for a Redis whose answer to the first heartbeat takes long."""

    gateway = "iad"
    clock = SimpleNamespace(now_ms=lambda: 1_000_000)

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.asked = threading.Event()
        self.answers = threading.Event()

    def heartbeat(self, redis: object = None, **fields: str) -> str:
        if not self.asked.is_set():
            self.asked.set()
            assert self.answers.wait(20)
        self.phases.append(fields["phase"])
        return "active"


class FailsTwice(Pace):
    """A pace that fails in a way that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 2

    def heartbeat_fields(self) -> dict[str, str]:
        self._left -= 1
        if self._left >= 0:
            raise ZeroDivisionError("nobody foresaw this")
        return super().heartbeat_fields()


def heartbeat_of(settings: MakeSettings, store: SlowStore, pace: Pace) -> Heartbeat:
    """The heartbeat of a writer that has no peers and has answered nothing."""
    writer = SimpleNamespace(
        table=SimpleNamespace(peers={}, coming=()),
        answered=0,
        refused=0,
        created=0,
        deleted=0,
        measurements=Measurements(),
        pace=pace,
    )
    return Heartbeat(settings(redis_url="unix:///nonexistent/redis.sock"), cast("Store", store), cast("Writer", writer))


def test_a_beat_on_its_way_does_not_tell_an_older_phase_afterwards(settings: MakeSettings) -> None:
    store = SlowStore()
    beating = heartbeat_of(settings, store, Pace())
    beating.start()
    try:
        assert store.asked.wait(20), "the first beat, which says recovering"
        entering = threading.Thread(target=beating.enter, args=("serving",))
        entering.start()
        entering.join(0.3)  # it would be through by now if it did not wait for that beat
        store.answers.set()
        entering.join(20)
        eventually(lambda: len(store.phases) >= 2, "both having been told")
        assert store.phases[:2] == ["recovering", "serving"]
        assert set(store.phases[1:]) == {"serving"}
    finally:
        store.answers.set()
        beating.stop()


def test_an_unforeseen_failure_of_one_beat_is_not_the_last(
    settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Without heartbeats the lane counts as down, though its writer lives."""
    store = SlowStore()
    store.answers.set()
    beating = heartbeat_of(settings, store, FailsTwice())
    beating.start()
    try:
        eventually(lambda: len(store.phases) >= 1, "a beat after two that failed")
        assert caplog.text.count("Traceback") == 1, "it is told once"
    finally:
        beating.stop()


def test_it_tells_what_the_writer_has_done_since_it_began(gateway: MakeGateway, client: MakeClient) -> None:
    site = gateway()
    six_requests(client(site))
    facts = {"answered": "6", "created": "2", "deleted": "1"}
    eventually(lambda: facts.items() <= site.look().facts.items(), "two created, one deleted, six answered")
    site.stop()
    site.start()
    eventually(lambda: site.look().facts["answered"] == "0", "a new writer that counts anew")


def test_a_redis_that_restarts_while_a_writer_starts_is_loaded_again(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, tmp_path: Path
) -> None:
    """The writer has loaded its peers and is about to serve; Redis comes back without the last of them."""
    control = tmp_path / "failpoints"
    site = gateway(redis=own_redis, test_failpoints=control)
    api, kept, lost = client(site, redis=own_redis), some_key(), some_key()
    api.create_peer(kept)
    api.create_peer(lost)
    site.kill()
    control.write_text("between_batches:stop")
    site.start(wait=False)
    eventually(lambda: not control.read_text(), "the writer having stopped between load and service")
    addresses = cast("dict[str, str]", own_redis.redis.hgetall(names.addresses_key(site.name)))
    own_redis.redis.hdel(
        names.addresses_key(site.name), *(address for address, key in addresses.items() if key == lost)
    )
    own_redis.redis.hdel(names.peers_key(site.name), lost)
    own_redis.restart()
    site.resume()
    eventually(lambda: site.look().facts.get("peers") == "1", "the writer knowing what Redis holds now")
    assert "recovering, because of Redis has restarted" in site.log
    site.await_serving()
    assert api.create_peer(kept, timeout=20).outcome == "existing"
    assert api.create_peer(lost, timeout=20).outcome == "created"
