"""A fleet for Flower to show: iad, which lives; fra, dead, with an alarm and a lane that waits; sin, being drained."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowers import Page, flower
from gateways import GatewayProcess, close
from keys import key_number
from observers import Observer, ending
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.errors import Conflict

KEY, OTHER = key_number(8_001), key_number(8_002)
#: What somebody who may write a gateway's hash could put there.
HOSTILE = "<script>alert('x')</script>"
ALARM = "a sweep would remove 60 of 80 peers, and is refused"
DEAD: dict[Any, Any] = {
    "phase": "serving",
    "holder_host": "gone",
    "holder_pid": "7",
    "region": "eu",
    "peers": "9",
    "max_peers": "10",
    "lane_cap": "4",
    "epoch": "3",
}


@contextmanager
def shown(server: RedisServer, directory: Path) -> Generator[Page]:
    """Flower beside this fleet; it has heard of a create and of one that was refused."""
    writer = GatewayProcess("iad", server.url, directory, dataplane="memory", region="eu", observe_every=1)
    now = server.redis.time()[0]
    server.redis.hset(names.gateway_key("fra"), mapping=DEAD | {"heartbeat": (now - 1_500) * 1000})
    raise_alarm(server, "fra", "too_many_stale", ALARM)
    server.redis.lpush(names.lane_queue("fra"), "a", "b", "c")
    server.redis.lpush(names.poison_key("fra"), "{}")
    ahead = (now + 100_000) * 1000  # its signs of life are always fresh
    alive = {"heartbeat": ahead, "state": "draining", "region": "ap", "peers": "4"}
    server.redis.hset(names.gateway_key("sin"), mapping=DEAD | alive)
    server.redis.sadd(names.GATEWAYS_KEY, "fra", "sin")
    app = PeerlaneApp(read(redis_url=server.url))
    try:
        with flower(server.url, directory) as page:
            writer.start()
            with ending(observer := Observer(writer)):
                observer.says("ready.")
                gateway = Gateway("iad", app=app)
                eventually(lambda: "iad@" in page.text("/workers"), "the gateway among Flower's workers")
                gateway.create_peer(KEY, allowed_ips=["10.8.0.5/32"])
                with suppress(Conflict):
                    gateway.create_peer(OTHER, allowed_ips=["10.8.0.5/32"])
                eventually(lambda: "FAILURE" in page.text("/api/tasks"), "the refusal among the tasks")
                eventually(lambda: row(page, "iad")["observer_silent_for"] is not None, "the observer")
                eventually(lambda: row(page, "iad")["peers"] == 1, "the peer")
                yield page
    finally:
        close(app)
        writer.finish()


def raise_alarm(server: RedisServer, gateway: str, kind: str, message: str) -> None:
    """An alarm that stands for 20 minutes."""
    raised = json.dumps({"message": message, "since": server.redis.time()[0] - 1_200, "detail": {}})
    server.redis.hset(names.alarms_key(gateway), kind, raised)


def fleet_document(page: Page) -> dict[str, Any]:
    """The Gateways page for programs."""
    return json.loads(page.text("/gateways?json=1"))


def row(page: Page, gateway: str) -> dict[str, Any]:
    """A gateway's row of it."""
    return next(
        (entry for entry in fleet_document(page)["gateways"] if entry["gateway"] == gateway),
        {"observer_silent_for": None},
    )


def node(page: Page, gateway: str) -> str:
    """What a gateway's writer is called among Flower's workers."""
    return next(name for name in json.loads(page.text("/api/workers")) if name.startswith(f"{gateway}@"))


def refused_task(page: Page) -> str:
    """The id of the request that was refused."""
    tasks = json.loads(page.text("/api/tasks"))
    return next(identity for identity, task in tasks.items() if task["state"] == "FAILURE")
