"""What an operator sees of each event, and where: Flower, ``gateway list``, ``top``, ``doctor``.

With ``pytest -s`` it prints after how many seconds: the figures of docs/runbooks.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from commands import peerlane
from flowers import Page, flower
from gateways import GatewayProcess
from observers import Observer
from servers import RedisServer
from waiting import eventually

from peerlane.config import names

pytestmark = [
    pytest.mark.slow("waits for each of several events to be seen in every place"),
    pytest.mark.timeout(300),
]

#: Seconds within which a person has to be able to know: a writer counts as gone after five.
WITHIN = 20.0
CAP = 5


class Site:
    """A gateway with an observer, and Flower."""

    def __init__(self, server: RedisServer, page: Page, gateway: GatewayProcess) -> None:
        self.server, self.page, self.gateway = server, page, gateway

    def flower(self) -> Mapping[str, Any]:
        """The gateway's row on Flower's page, and what Flower says of itself."""
        told: dict[str, Any] = json.loads(self.page.text("/gateways?json=1"))
        return {**_first(told), "trouble": told["trouble"]}

    def ask(self, *words: str) -> dict[str, Any]:
        """A command's document, whatever its status."""
        return json.loads(peerlane(*words, "--json", redis=self.server.url).stdout.splitlines()[-1])

    def listed(self) -> dict[str, Any]:
        return _first(self.ask("gateway", "list"))

    def top(self) -> dict[str, Any]:
        return _first(self.ask("top", "--once", "--interval", "0.2"))

    def doctor(self) -> str:
        """What it finds wrong."""
        checks = self.ask("doctor")["checks"]
        return " ".join(f"{one['what']}: {one['sentence']}" for one in checks if one["verdict"] == "failed")

    def seen(self, event: str, views: Mapping[str, Callable[[], object]]) -> None:
        """Each view shows the event in time."""
        began = time.monotonic()
        for place, shows in views.items():
            eventually(shows, f"{event}, in {place}", within=WITHIN)
            print(f"{event}: {place} after {time.monotonic() - began:.1f} s at most")  # noqa: T201 - for pytest -s


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server, directory = RedisServer(tmp_path_factory.mktemp("r")), tmp_path_factory.mktemp("site")
    server.start()
    gateway = GatewayProcess("iad", server.url, directory, dataplane="memory", lane_cap=CAP)
    gateway.start()
    observer = Observer(gateway)
    with flower(server.url, directory) as page:
        made = Site(server, page, gateway)
        eventually(lambda: made.flower().get("state") == "active", "the gateway on Flower's page")
        yield made
    observer.kill()
    gateway.finish()
    server.stop()


def well(site: Site) -> None:
    """All is well again, everywhere."""
    site.seen(
        "well again",
        {
            "Flower": lambda: site.flower().get("state") == "active" and site.page.status("/healthcheck") == 200,
            "list": lambda: site.listed().get("state") == "active",
            "top": lambda: site.top().get("state") == "active",
        },
    )


def down(site: Site) -> dict[str, Callable[[], object]]:
    return {
        "Flower": lambda: site.flower().get("state") == "down",
        "list": lambda: site.listed().get("state") == "down",
        "top": lambda: site.top().get("state") == "down",
        "doctor": lambda: "iad" in site.doctor(),
    }


def test_a_frozen_writer(site: Site) -> None:
    site.gateway.pause()
    site.seen("writer frozen", down(site))
    site.gateway.resume()
    well(site)


def test_a_killed_writer(site: Site) -> None:
    site.gateway.kill()
    site.seen("writer killed", down(site))
    site.gateway.start()
    assert site.flower()["epoch"] >= 1
    well(site)
    eventually(lambda: site.flower()["epoch"] == 2, "its being started again, on Flower's page")


def test_a_full_lane(site: Site) -> None:
    site.gateway.hold()
    site.server.redis.lpush(names.lane_queue("iad"), *(f"no message {number}" for number in range(CAP)))
    site.seen(
        "lane full",
        {
            "Flower": lambda: "The lane of iad is full" in site.page.text("/gateways"),
            "list": lambda: "its lane is full" in peerlane("gateway", "list", redis=site.server.url).stderr,
            "top": lambda: "full lanes" in peerlane("top", "--once", "--interval", "0.2", redis=site.server.url).stdout,
        },
    )
    site.gateway.resume()
    well(site)


def test_messages_set_aside(site: Site) -> None:
    site.seen(
        "messages set aside",
        {
            "Flower": lambda: f"has set {CAP} messages aside" in site.page.text("/gateways"),
            "list": lambda: site.listed()["set_aside"] == CAP,
            "top": lambda: site.top()["set_aside"] == CAP,
        },
    )


def test_redis_away(site: Site) -> None:
    site.server.stop()
    site.seen(
        "Redis away",
        {
            "Flower": lambda: "What is shown may be old" in site.page.text("/workers"),
            "Flower's health": lambda: site.page.status("/healthcheck") == 503,
            "list": lambda: "error" in site.ask("gateway", "list"),
            "top": lambda: "error" in site.ask("top", "--once", "--interval", "0.2"),
            "doctor": lambda: "Redis: cannot be used" in site.doctor(),
        },
    )
    site.server.start()
    well(site)


def test_a_gateway_that_was_stopped(site: Site) -> None:
    assert site.gateway.stop() == 0
    site.seen(
        "gateway stopped",
        {
            "Flower": lambda: site.flower()["stopped"] and " stopped " in _words(site.page.text("/gateways")),
            "list": lambda: site.listed()["stopped"],
            "top": lambda: site.top()["stopped"],
            "doctor": lambda: "iad" in site.doctor(),
        },
    )
    site.gateway.start()
    well(site)


def _first(told: Mapping[str, Any]) -> dict[str, Any]:
    """The one gateway of a document; empty where there is none, or an error in its place."""
    gateways: list[dict[str, Any]] = told.get("gateways", [])
    return gateways[0] if gateways else {}


def _words(html: str) -> str:
    return " ".join(part.partition(">")[2] for part in html.replace("\n", " ").split("<")).replace("  ", " ")
