"""Flower as compose.yaml starts it: a password for every page, no change through any, and what it can still show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from flower import urls
from flowers import Page, flower
from gateways import GatewayProcess
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.flower.pages import handlers

#: What Flower serves to anybody who reaches its port (2.2): it has no switch for these.
OPEN = ("/healthcheck", "/metrics")
#: Of the rest, what shows nothing of ours.
HARMLESS = ("/static/(.*)", "/login/?", "/logout", ".*")

READS = (
    *(
        "/",
        "/gateways",
        "/gateways?json=1",
        "/workers",
        "/worker/iad@host",
        "/task/iad.x",
        "/tasks",
        "/broker",
        "/api/workers",
        "/api/tasks",
    ),
    *("/api/task/types", "/api/queues/length", "/api/task/info/iad.x", "/api/task/result/iad.x"),
)
WRITES = (
    *(f"/api/worker/{command}/iad@host" for command in ("shutdown", "pool/restart", "pool/grow", "pool/shrink")),
    *(
        f"/api/worker/{command}/iad@host"
        for command in ("pool/autoscale", "queue/add-consumer", "queue/cancel-consumer")
    ),
    *(f"/api/task/{command}/peerlane.create_peer" for command in ("apply", "async-apply", "send-task", "rate-limit")),
    *(f"/api/task/{command}/iad.x" for command in ("abort", "timeout", "revoke")),
)


@pytest.fixture(scope="module")
def page(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Flower beside a gateway that has just created a peer."""
    directory = tmp_path_factory.mktemp("flower")
    writer = GatewayProcess("iad", redis_server.url, directory, dataplane="memory")
    app = PeerlaneApp(read(redis_url=redis_server.url))
    with flower(redis_server.url, directory) as page:
        writer.start()
        eventually(lambda: "iad@" in page.text("/workers"), "the gateway among Flower's workers")
        Gateway("iad", app=app).create_peer(some_key(), preshared_key=some_key())
        eventually(lambda: "SUCCESS" in page.text("/api/tasks"), "the create among Flower's tasks")
        yield page
    lanes_of(app).redis.close()
    app.close()
    writer.finish()


@pytest.mark.parametrize("path", READS)
def test_no_page_is_shown_without_the_password(page: Page, path: str) -> None:
    assert page.status(path) == 401
    assert page.status(path, user="ada:hate") == 401
    assert page.status(path, user="eve:love") == 401


@pytest.mark.parametrize("path", WRITES)
def test_nothing_is_changed_through_it(page: Page, path: str) -> None:
    assert page.status(path, post=True) == 401
    assert page.status(path, user=page.USER, post=True) == 403


def test_every_path_of_flower_is_known_here() -> None:
    named = (*READS, *WRITES, *OPEN, "/tasks/datatable")
    unknown = [
        path for path in _patterns() if path not in HARMLESS and not any(re.fullmatch(path, known) for known in named)
    ]
    assert unknown == []


def test_what_is_open_to_all_names_no_peer(page: Page) -> None:
    for path in OPEN:
        status, body = page.get(path)
        assert status == 200
        assert "public_key" not in body
    assert 'worker="iad@' in page.get("/metrics")[1]


#: A request that takes long to begin. Flower reads this file where it is started.
SLOW = """
import pathlib, time
from flower.views.monitor import Metrics

def initialize(self):
    pathlib.Path("begun").touch()
    time.sleep(2)

Metrics.initialize = initialize
"""


def test_it_ends_on_sigterm_that_comes_in_the_middle_of_a_request_too(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "flowerconfig.py").write_text(SLOW)
    with ThreadPoolExecutor(1) as thread, flower(redis_server.url, tmp_path) as page:
        thread.submit(page.get, "/metrics")
        eventually((tmp_path / "begun").exists, "the request")
    assert "SystemExit" not in page.log.read_text(), "the signal was taken for the request's error"


def _patterns() -> list[str]:
    from tornado.web import Application  # noqa: PLC0415 - there with Flower alone

    rules = cast("list[Any]", Application([*handlers(""), *cast("Any", urls).handlers]).wildcard_router.rules)
    return [str(rule.matcher.regex.pattern).removesuffix("$") for rule in rules]
