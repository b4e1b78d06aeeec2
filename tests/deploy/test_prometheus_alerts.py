"""Alerts in a real Prometheus: each fires in its fault of a real gateway, and ends with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateways import GatewayProcess, MakeClient
from keys import some_key
from observers import Observer
from prometheus import Prometheus, hastened
from redis import Redis
from scraping import ExporterProcess
from servers import RedisServer

from peerlane import Gateway
from peerlane.config import names
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.status.alarms import clear_alarm, raise_alarm

pytestmark = [
    pytest.mark.slow("waits for a Prometheus to see ten faults begin and end, one after the other"),
    pytest.mark.needs("prometheus"),
    pytest.mark.timeout(400),
]

#: Spans that are minutes in the field.
SHORT = {
    "PeerlaneObserverAway": {"> 60": "> 6"},
    "PeerlaneSweepsMissing": {"> 300": "> 12"},
    "PeerlaneLaneLate": {"> 2": "> 1"},
}


class Site:
    """A gateway with room for few, its observer, an exporter and a Prometheus."""

    def __init__(self, server: RedisServer, directory: Path, client: MakeClient) -> None:
        self.server = server
        self.redis = Redis(unix_socket_path=str(server.socket))
        self.gateway = GatewayProcess(
            "iad", server.url, directory, dataplane="memory", max_peers=10, lane_cap=20, sweep_every="2"
        )
        self.gateway.start()
        self.observer = Observer(self.gateway)
        self.exporter = ExporterProcess(server.url)
        self.prometheus = Prometheus(directory, self.exporter.address, hastened(SHORT))
        self.peers: Gateway = client("iad", redis=server, timeout=20)

    def close(self) -> None:
        self.prometheus.stop()
        self.exporter.stop()
        self.observer.kill()
        self.observer.close()
        self.gateway.finish()
        self.redis.close()


@pytest.fixture
def site(own_redis: RedisServer, tmp_path: Path, client: MakeClient) -> Iterator[Site]:
    made = Site(own_redis, tmp_path, client)
    yield made
    made.close()


def test_alerts_fire_in_their_faults_and_end_with_them(site: Site) -> None:
    gateway, prometheus = site.gateway, site.prometheus
    gateway.pause()
    assert prometheus.await_firing("PeerlaneGatewayDown").startswith("iad has no live writer")
    gateway.resume()
    prometheus.await_end("PeerlaneGatewayDown")

    site.server.pause()
    prometheus.await_firing("PeerlaneRedisUnreachable")
    site.server.resume()
    prometheus.await_end("PeerlaneRedisUnreachable")

    raise_alarm(site.redis, "iad", "clock", "it is late", now=1)
    assert "the alarm clock stands" in prometheus.await_firing("PeerlaneAlarm")
    clear_alarm(site.redis, "iad", "clock")
    prometheus.await_end("PeerlaneAlarm")

    site.redis.lpush(names.lane_queue("iad"), "no message")
    prometheus.await_firing("PeerlaneSetAside")
    site.redis.delete(names.poison_key("iad"))
    prometheus.await_end("PeerlaneSetAside")

    made = [some_key() for _ in range(10)]
    for key in made:
        site.peers.create_peer(key)
    assert "the peers it may have" in prometheus.await_firing("PeerlanePoolNearlyFull")
    for key in made:
        site.peers.delete_peer(key)
    prometheus.await_end("PeerlanePoolNearlyFull")

    create = task_of(site.peers._app, names.CREATE_PEER)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the test's own client
    gateway.hold()
    for _ in range(18):
        create.apply_async(kwargs={"gateway": "iad", "public_key": some_key()}, expires=600)
    # Its heartbeat would tell, but stands still as well.
    site.redis.hset(names.gateway_key("iad"), "oldest_sent_at", int(time.time() * 1000))
    assert "90%" in prometheus.await_firing("PeerlaneLaneFilling")
    prometheus.await_firing("PeerlaneLaneLate")
    gateway.resume()
    prometheus.await_end("PeerlaneLaneFilling")
    prometheus.await_end("PeerlaneLaneLate")

    site.observer.kill()
    prometheus.await_firing("PeerlaneObserverAway")
    prometheus.await_firing("PeerlaneSweepsMissing")
    site.observer.close()
    site.observer = Observer(gateway, wait=False)
    prometheus.await_end("PeerlaneObserverAway")
    prometheus.await_end("PeerlaneSweepsMissing")

    missed = {"at": int(site.redis.time()[0]), "outcome": "swept", "stale": {"idle": 2}, "removed": {}}
    site.redis.hset(names.observer_key("iad"), "sweep", json.dumps(missed))
    assert "fail to remove 2 stale peers" in prometheus.await_firing("PeerlaneSweepFails")
    site.redis.hset(names.observer_key("iad"), "sweep", json.dumps({**missed, "stale": {}}))
    prometheus.await_end("PeerlaneSweepFails")

    gateway.stop()
    prometheus.await_firing("PeerlaneGatewayStopped")
    gateway.start()
    prometheus.await_end("PeerlaneGatewayStopped")

    site.exporter.stop()
    prometheus.await_firing("PeerlaneExporterMissing")
