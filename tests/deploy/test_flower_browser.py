"""Flower in a real browser: what a person reads on its pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, browser
from flower_scene import HOSTILE, node, raise_alarm, refused_task, shown
from flowers import Page
from servers import RedisServer, serving

from peerlane.config import names

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium", "chromedriver"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def page(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with shown(server, tmp_path_factory.mktemp("flower")) as page:
        yield page


@pytest.fixture(scope="module")
def window(page: Page) -> Iterator[Browser]:
    with browser(page.url.replace("://", f"://{page.USER}@")) as opened:
        yield opened


def test_the_gateways_page_reads_well_and_renews_itself(window: Browser, server: RedisServer) -> None:
    text = window.open("/gateways", "iad")
    assert "1 of 3 active" in text
    assert text.index("fra down") < text.index("sin draining") < text.index("iad active")
    assert "ALARM fra too_many_stale, for 20 min: a sweep would remove" in text
    assert "The lane of fra" not in text
    server.redis.lpush(names.lane_queue("fra"), "d")
    window.until("The lane of fra is full: 4 wait, and more are refused.")
    server.redis.lpop(names.lane_queue("fra"))
    assert window.complaints() == []


def test_what_a_gateway_writes_is_text_and_no_script(window: Browser, server: RedisServer) -> None:
    raise_alarm(server, "fra", "drill", HOSTILE)
    server.redis.hset(names.gateway_key("fra"), "region", HOSTILE)
    window.open("/gateways", f": {HOSTILE}")
    window.until(f"too_many_stale, drill {HOSTILE}")
    window.open("/worker/fra@gone", "fra@gone")
    window.click("Other")
    window.until(HOSTILE)
    server.redis.hdel(names.alarms_key("fra"), "drill")
    server.redis.hset(names.gateway_key("fra"), "region", "eu")


def test_the_navigation_leads_there(window: Browser) -> None:
    window.open("/workers", "Gateways")
    window.click("Gateways")
    window.until("Gateways, those in trouble first".upper())
    assert window.driver.title == "Gateways · Flower"


def test_a_workers_page_tells_of_its_gateway(window: Browser, page: Page) -> None:
    name = node(page, "iad")
    window.open(f"/worker/{name}", name)
    window.click("Queues")
    assert "gateway.iad.bulk" in window.until("gateway.iad.bulk")
    window.click("Other")
    assert "last sign of life" in window.until("state active")


def test_the_broker_page_shows_the_lanes_of_all_gateways(window: Browser) -> None:
    text = window.open("/broker", "gateway.fra.bulk")
    assert "gateway.fra 3" in text
    assert {"gateway.iad", "gateway.iad.bulk", "gateway.iad.observer", "gateway.sin"} <= set(text.split())


def test_a_refused_requests_page_shows_its_code(window: Browser, page: Page) -> None:
    text = window.open(f"/task/{refused_task(page)}", "FAILURE")
    assert "conflict: " in text
    assert "Traceback" not in text


def test_the_workers_page_links_to_pages_that_are_there(window: Browser, page: Page) -> None:
    window.open("/workers", "iad@")
    window.click(node(page, "iad"))
    assert "Unknown worker" not in window.until("Worker pool options")
