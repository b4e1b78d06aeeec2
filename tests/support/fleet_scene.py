"""A fleet at a bad hour, for the pictures of the documents and for what has to fit on a page.

iad is a real gateway with real requests. Of the others stands in Redis what their writers and observers would tell:
fra is down, with an alarm; sin is stuck; gru's bulk queue fills; lhr is nearly full and still adds peers to its device
after a start; syd is being drained.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flower_scene import row
from flowers import Page, flower
from gateways import GatewayProcess, close
from keys import key_number
from observers import Observer, ending
from redis import Redis
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.errors import Conflict
from peerlane.tasks.status.alarms import raise_alarm

STALE = (
    "3,104 of 4,210 peers are stale, more than the share of 50% that a sweep may remove by itself: "
    "look at them (sweep --dry-run), then remove them (sweep --force)"
)


@dataclass(frozen=True)
class SimulatedGateway:
    """A gateway that exists only as facts in Redis."""

    name: str
    region: str
    peers: int
    max_peers: int = 50_000
    #: Requests that wait: interactive, bulk.
    waiting: tuple[int, int] = (0, 0)
    #: A second: answered, created, deleted, refused.
    rates: tuple[int, int, int, int] = (0, 0, 0, 0)
    #: Seconds since its writer's last sign of life, since the oldest request was sent, and since it began.
    silent_for: int = 0
    oldest_for: int = 0
    age: int = 400_000
    facts: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def live(self) -> bool:
        return not self.silent_for


FLEET = (
    SimulatedGateway("fra", "eu", 4_210, waiting=(212, 0), silent_for=1_500, oldest_for=1_500),
    SimulatedGateway("sin", "ap", 12_870, waiting=(1_204, 96), oldest_for=14, facts={"idle_ms": 14_000}),
    SimulatedGateway("gru", "sa", 30_118, waiting=(37, 17_462), rates=(640, 612, 25, 3), oldest_for=1),
    SimulatedGateway(
        "lhr", "eu", 48_931, waiting=(3, 0), rates=(210, 180, 30, 0), age=130, facts={"recovering": 12_310, "epoch": 9}
    ),
    SimulatedGateway("syd", "ap", 9_402, rates=(22, 0, 22, 0), facts={"state": "draining"}),
)


class SimulatedFleet:
    """Writes each second the heartbeats that the writers and observers of ``FLEET`` would write."""

    def __init__(self, server: RedisServer) -> None:
        self._redis = server.redis
        self._beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_each_second, daemon=True)
        now = int(self._redis.time()[0])
        with self._redis.pipeline() as pipe:
            for gateway in FLEET:
                pipe.hset(names.gateway_key(gateway.name), mapping=_registered(gateway, now))
                for queue, waiting in zip((names.lane_queue, names.bulk_queue), gateway.waiting, strict=True):
                    if waiting:
                        pipe.rpush(queue(gateway.name), *("{}" for _ in range(waiting)))
                pipe.sadd(names.GATEWAYS_KEY, gateway.name)
            pipe.execute()
        with Redis(unix_socket_path=str(server.socket)) as redis:
            raise_alarm(redis, "fra", "sweep", STALE, now=now - 1_520)
        self._redis.lpush(names.poison_key("gru"), "{}", "{}")
        self._beat()
        self._thread.start()

    def _beat(self) -> None:
        seconds, micros = self._redis.time()
        now = int(seconds) * 1000 + int(micros) // 1000
        with self._redis.pipeline() as pipe:
            for gateway in FLEET:
                if gateway.live:
                    counts = ("answered", "created", "deleted", "refused")
                    counted = {
                        name: 1_000 + rate * self._beats for name, rate in zip(counts, gateway.rates, strict=True)
                    }
                    sent = {"oldest_sent_at": now - gateway.oldest_for * 1000} if gateway.oldest_for else {}
                    pipe.hset(names.gateway_key(gateway.name), mapping={"heartbeat": now, **counted, **sent})
                    pipe.hset(names.observer_key(gateway.name), mapping=_observed(now))
            pipe.execute()
        self._beats += 1

    def _beat_each_second(self) -> None:
        while not self._over.wait(1.0):
            self._beat()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def _registered(gateway: SimulatedGateway, now: int) -> dict[Any, Any]:
    return {
        "phase": "serving",
        "state": "active",
        "holder_host": f"gw-{gateway.name}-1",
        "holder_pid": 812,
        "region": gateway.region,
        "endpoint": f"{gateway.name}.vpn.example.com:51820",
        "listen_port": 51_820,
        "interface": "wg0",
        "dataplane": "kernel",
        "pools": json.dumps(["10.8.0.0/16", "fd00:8::/64"]),
        "version": version("peerlane"),
        "peers": gateway.peers,
        "max_peers": gateway.max_peers,
        "lane_cap": 20_000,
        "sweep_every": 60,
        "epoch": 3,
        "began": now - gateway.age,
        "idle_ms": 20,
        "idle_may_ms": 5_000,
        "heartbeat": (now - gateway.silent_for) * 1000,
        "oldest_sent_at": (now - gateway.oldest_for) * 1000 if gateway.oldest_for else 0,
    } | dict(gateway.facts)


def _observed(now: int) -> dict[Any, Any]:
    at = now // 1000
    sweep = {"outcome": "swept", "at": at - 23, "stale": {"expired": 118}, "removed": {"expired": 118}}
    return {
        "heartbeat": now,
        "host": "gw",
        "pid": 813,
        "asked_at": at - 23,
        "sweep": json.dumps(sweep),
        "reading": json.dumps({"at": at - 4, "peers": 100, "seconds": 0.02}),
    }


@contextmanager
def fleet(server: RedisServer, url: str, directory: Path) -> Generator[Page]:
    """Flower beside this fleet, with this URL of the server. It has heard of creates, deletes and a refusal on iad."""
    writer = GatewayProcess("iad", url, directory, dataplane="memory", region="us", observe_every=1)
    app = PeerlaneApp(read(redis_url=url))
    telling = SimulatedFleet(server)
    try:
        with flower(url, directory) as page:
            writer.start()
            with ending(observer := Observer(writer)):
                observer.says("ready.")
                eventually(lambda: "iad@" in page.text("/workers"), "the gateway among Flower's workers")
                _ask(Gateway("iad", app=app, timeout=20))
                eventually(lambda: "FAILURE" in page.text("/api/tasks"), "the refusal among the tasks")
                eventually(lambda: row(page, "iad")["observer_silent_for"] is not None, "the observer")
                eventually(lambda: row(page, "iad")["peers"] == 11, "the peers")
                eventually(lambda: row(page, "gru").get("created_per_second"), "a rate")
                yield page
    finally:
        telling.stop()
        close(app)
        writer.finish()


def _ask(gateway: Gateway) -> None:
    """What callers of an afternoon may ask for."""
    users = ("ada", "grace", "edsger", "barbara", "ken", "margaret")
    for number, user in enumerate(users * 2):
        gateway.create_peer(_key(number), ttl=3600 if number % 2 else None, labels={"user": user})
    with suppress(Conflict):
        gateway.create_peer(_key(40), allowed_ips=["10.8.0.5/32"], labels={"user": "linus"})
    gateway.delete_peer(_key(3))


def _key(number: int) -> str:
    """The same key for the same number, and one that looks like a key."""
    return key_number(pow(7, 91 + number) % 2**255)
