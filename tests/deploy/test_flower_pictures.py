"""Flower's pages at a bad hour, in a real browser: each row is true, and nothing is cut off.

PEERLANE_TEST_PICTURES=docs makes the pictures of the documents anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from browser import SIZE, Browser, browser
from fleet_scene import fleet
from flower_scene import node, refused_task
from flowers import Page
from servers import RedisServer
from waiting import eventually

from peerlane.workers.demo.local_fleet import free_port

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium", "chromedriver"), pytest.mark.timeout(300)]

PICTURES = os.environ.get("PEERLANE_TEST_PICTURES")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    port = free_port()
    server = RedisServer(tmp_path_factory.mktemp("r"), port=str(port))
    server.start()
    with fleet(server, f"redis://127.0.0.1:{port}/0", tmp_path_factory.mktemp("flower")) as made:
        yield made
    server.stop()


@pytest.fixture(scope="module")
def window(page: Page) -> Iterator[Browser]:
    with browser(page.url.replace("://", f"://{page.USER}@")) as opened:
        yield opened


def pictured(window: Browser, name: str, width: int = SIZE[0]) -> None:
    """Nothing is wider than the window. A picture of the whole page is kept, where that is wanted."""
    window.driver.set_window_size(width, SIZE[1])
    eventually(lambda: value_of(window, "document.getAnimations().every(one => one.playState === 'finished')"), "rest")
    if PICTURES is not None:
        height = int(value_of(window, "document.querySelector('main').getBoundingClientRect().bottom")) + 180
        window.driver.set_window_size(width, height)
        assert window.driver.save_screenshot(str(Path(PICTURES) / f"flower-{name}.png"))
    cut = "[...document.querySelectorAll('html, figure, table')].filter(one => one.scrollWidth > one.clientWidth + 1)"
    assert value_of(window, f"{cut}.length") == 0
    window.driver.set_window_size(*SIZE)


def value_of(window: Browser, expression: str) -> Any:
    """What the page's script says."""
    return cast("Any", window.driver).execute_script(f"return {expression}")


def test_the_gateways_page_says_of_each_what_is_wrong(window: Browser) -> None:
    window.open("/gateways", "fra down")
    text = window.until("gru active none sa 30,118 of 50,000 37 17,462 of 20,000 about")
    states = ("fra down sweep", "sin stuck none", "syd draining none", "gru active", "lhr active", "iad active")
    places = [text.index(state) for state in states]
    assert places == sorted(places)
    assert "3 of 6 active" in text
    assert re.search(r"ALARM fra sweep, for 2\d min: 3,104 of 4,210 peers are stale", text)
    assert re.search(r"eu 4,210 of 50,000 212 0 over 2\d min", text)
    assert "lhr has 12,310 peers still to be added to its device after a start." in text
    assert re.search(r"The writer of lhr was started again \d min ago; its log says why\.", text)
    assert coloured(window, "danger", "ALARM")
    assert coloured(window, "warning", "gru has set 2 messages aside: peerlane gateway poison gru")
    pictured(window, "gateways")


def coloured(window: Browser, colour: str, text: str) -> bool:
    """Whether a sentence stands in a box of this colour."""
    boxes: list[str] = value_of(window, f"[...document.querySelectorAll('.alert-{colour}')].map(box => box.innerText)")
    return any(text in box for box in boxes)


def test_a_workers_page_begins_with_its_state(window: Browser, page: Page) -> None:
    name = node(page, "gru")
    window.open(f"/worker/{name}", name)
    window.click("Other")
    assert "Other statistics state active last sign of life" in window.until("waiting 37 interactive, 17,462 bulk")
    pictured(window, "worker")


def test_the_broker_page_says_what_waits_and_who_takes_it(window: Browser) -> None:
    text = window.open("/broker", "gateway.gru.bulk 17462")
    assert "gateway.fra 212 — 212 0 —" in text
    assert "gateway.gru.bulk 17462 — 17462 1 —" in text
    pictured(window, "broker")


def test_the_tasks_page_shows_ids_and_outcomes_without_scrolling(window: Browser) -> None:
    text = window.open("/tasks", "FAILURE")
    head = "NAME UUID STATE RECEIVED RUNTIME RESULT KWARGS"
    assert head in text
    assert "created 10.8.0.13/32 fd00:8::d/128" in text
    assert "conflict" in text
    results = "[...document.querySelectorAll('#tasks-table td:nth-child(6)')]"
    assert max(value_of(window, f"{results}.map(cell => cell.getBoundingClientRect().right)")) <= SIZE[0]
    pictured(window, "tasks", 1900)


def test_a_refusals_page_says_why_without_a_traceback(window: Browser, page: Page) -> None:
    text = window.open(f"/task/{refused_task(page)}", "FAILURE")
    assert "conflict: allowed_ips: 10.8.0.5/32 overlaps 10.8.0.5/32, which another peer holds" in text
    assert "Traceback" not in text
    pictured(window, "refusal")
