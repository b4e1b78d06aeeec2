"""Beat, exporter and Flower behind Sentinels: each goes on after its primary has vanished without closing anything."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flower_scene import row
from flowers import Page, flower
from gateways import GatewayProcess, close
from keys import key_number
from observers import Process, beat, ending
from replicated import Replicated
from scraping import ExporterProcess, exporting, value
from servers import server_directory
from waiting import eventually

from peerlane import Gateway, PeerlaneError
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read

pytestmark = pytest.mark.slow("five servers and five processes, and a failover that takes seconds")

#: Peers of before and after the failover.
BEFORE, AFTER = key_number(9_001), key_number(9_002)


@dataclass(frozen=True)
class Scene:
    """A fleet that has failed over: the old primary is frozen, so that its connections are open and silent."""

    servers: Replicated
    writer: GatewayProcess
    lane: Gateway
    beat: Process
    beat_file: Path
    exporter: ExporterProcess
    page: Page
    #: The new primary's clock when the failover was over, in seconds.
    failed_over_at: int

    @property
    def primary(self) -> Any:
        """The new one."""
        return self.servers.replica.redis


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    directory = server_directory()
    servers = Replicated(directory, password="data-pw", sentinel_password="watch-pw")
    writer = GatewayProcess(
        "iad", servers.url, directory, dataplane="memory", observe_every=1, sweep_every=1, reconcile_every=5
    )
    app = PeerlaneApp(read(redis_url=servers.url, timeout=5))
    lane, beat_file = Gateway("iad", app=app), directory / "beat"
    try:
        writer.start()
        observer = Process(["-A", "peerlane.workers.observer", "worker"], directory / "observer.log", writer.settings)
        beating = beat(servers.url, directory / "beat.log", beat_file=beat_file)
        with (
            ending(observer, beating),
            exporting(servers.url) as exporter,
            flower(servers.url, directory) as page,
        ):
            eventually(lambda: "iad@" in page.text("/workers"), "the gateway among Flower's workers")
            lane.create_peer(BEFORE, timeout=30)
            eventually(lambda: shown(page, BEFORE), "the create among Flower's tasks")
            eventually(lambda: value(exporter.scrape(), "peerlane_peers", gateway="iad") == 1, "the exporter's figure")
            eventually(
                lambda: servers.primary.redis.hget(names.observer_key("iad"), "asked_at"), "beat asking the observer"
            )
            with ThreadPoolExecutor(1) as other:
                unhealthy = other.submit(eventually, lambda: page.status("/healthcheck") == 503, "Flower noticing")
                servers.primary.pause()
                assert value(exporter.scrape(), "peerlane_redis_up") == 0
                unhealthy.result()
            servers.await_failover()
            now = servers.replica.redis.time()[0]
            eventually(lambda: created(lane, AFTER), "a create after the failover")
            servers.replica.redis.sadd(names.GATEWAYS_KEY, "fra")  # of which no other server knows
            yield Scene(servers, writer, lane, beating, beat_file, exporter, page, now)
            assert "data-pw" not in beating.log + page.log.read_text()
            assert "watch-pw" not in beating.log + page.log.read_text()
    finally:
        close(app)
        writer.finish()
        servers.end()
        shutil.rmtree(directory, ignore_errors=True)


def created(lane: Gateway, key: str) -> bool:
    try:
        return lane.create_peer(key).outcome in ("created", "existing")
    except PeerlaneError:
        return False


def shown(page: Page, key: str) -> bool:
    """Whether Flower shows a request for this key that has succeeded."""
    tasks = json.loads(page.text("/api/tasks") or "{}").values()
    return any(key in str(task["kwargs"]) and task["state"] == "SUCCESS" for task in tasks)


def test_beat_goes_on_to_ask_for_sweeps(scene: Scene) -> None:
    def asked_at() -> int:
        return int(scene.primary.hget(names.observer_key("iad"), "asked_at") or 0)

    eventually(lambda: asked_at() > scene.failed_over_at, "beat asking through the new primary")
    first = asked_at()
    eventually(lambda: asked_at() > first + 1, "beat asking again and again")
    swept: dict[str, Any] = json.loads(scene.primary.hget(names.observer_key("iad"), "sweep"))
    assert swept["at"] > scene.failed_over_at
    now = time.time()
    eventually(lambda: scene.beat_file.stat().st_mtime > now, "beat's file")
    assert scene.beat.status is None
    assert scene.beat.log.count("Redis is away") == scene.beat.log.count("Redis is back") == 1


def test_the_exporter_tells_the_new_primarys_figures(scene: Scene) -> None:
    def figure(gateway: str, name: str, **labels: str) -> float | None:
        return value(scene.exporter.scrape(), name, gateway=gateway, **labels)

    eventually(lambda: figure("iad", "peerlane_peers") == 2, "the peers of the new primary")
    assert figure("fra", "peerlane_gateway_state", state="down") == 1
    assert value(scene.exporter.scrape(), "peerlane_redis_up") == 1
    eventually(lambda: (figure("iad", "peerlane_heartbeat_age_seconds", process="beat") or 99) < 10, "beat's age")


def test_flowers_pages_and_its_health_check_are_of_the_new_primary(scene: Scene) -> None:
    page = scene.page
    eventually(lambda: page.status("/healthcheck") == 200, "Flower being healthy")
    eventually(lambda: row(page, "iad").get("peers") == 2, "the peers of the new primary")
    eventually(lambda: row(page, "fra").get("state") == "down", "a gateway of the new primary alone")
    scene.primary.lpush(names.lane_queue("fra"), "a", "b", "c")
    lane = {"name": "gateway.fra", "messages": 3}
    eventually(lambda: lane in json.loads(page.text("/api/queues/length"))["active_queues"], "the lane's length")


def test_flower_hears_of_requests_again(scene: Scene) -> None:
    """Events come on a connection that only listens, and is told nothing of its server's end."""
    sent: list[str] = []

    def heard() -> bool:
        sent.append(key_number(9_100 + len(sent)))
        scene.lane.create_peer(sent[-1])
        return any(shown(scene.page, key) for key in sent)

    eventually(heard, "a new request among Flower's tasks", every=0.5)
