"""What Flower shows of a fleet: workers, lanes and the Gateways page out of Redis, refusals by their code."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fenced import fenced, printed
from flower_scene import DEAD, HOSTILE, KEY, fleet_document, node, raise_alarm, refused_task, row, shown
from flowers import Page, flower
from gateways import close
from servers import RedisServer, serving
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks import errors
from peerlane.tasks.errors import Conflict
from peerlane.tasks.flower.fleet_view import FleetView
from peerlane.tasks.flower.task_format import formatted, refusal


@pytest.fixture(scope="module")
def page(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with shown(server, tmp_path_factory.mktemp("flower")) as page:
        yield page


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with serving() as server:
        yield server


def words(html: str) -> str:
    """A page's text, without its scripts and tags."""
    return re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL))


def test_the_gateways_page_shows_each_gateway_and_the_dead_one_first(page: Page) -> None:
    assert [entry["gateway"] for entry in fleet_document(page)["gateways"]] == ["fra", "sin", "iad"]
    text = words(page.text("/gateways"))
    assert text.index(" fra down ") < text.index(" sin draining none ap ") < text.index(" iad active none eu 1 of ")
    assert "fra down too_many_stale eu 9 of 10 3 of 4 0" in text
    assert "1 of 3 active; 14 peers" in text
    assert "ALARM fra too_many_stale, for 20 min: " in text
    assert "fra has set 1 message aside: peerlane gateway poison fra" in text


def test_its_document_is_that_of_top(page: Page) -> None:
    gateway = row(page, "iad")
    assert (gateway["state"], gateway["region"], gateway["peers"], gateway["waiting"]) == ("active", "eu", 1, 0)
    assert gateway["epoch"] == 1
    assert gateway["alarms"] == []
    assert row(page, "fra")["alarms"][0]["kind"] == "too_many_stale"
    assert fleet_document(page)["trouble"] is None


def test_rates_appear_and_a_refusal_is_among_them(page: Page) -> None:
    eventually(lambda: row(page, "iad").get("refused_per_second") is not None, "a rate")


@pytest.mark.parametrize("path", ["/gateways", "/worker/fra@gone"])
def test_what_gateways_write_is_escaped(page: Page, server: RedisServer, path: str) -> None:
    server.redis.hset(names.gateway_key("fra"), mapping={"region": HOSTILE, "endpoint": HOSTILE})
    raise_alarm(server, "fra", "drill", HOSTILE)
    body = eventually(lambda: page.text(path) if "&lt;script&gt;" in page.text(path) else "", "what is hostile")
    assert HOSTILE not in body
    server.redis.hset(names.gateway_key("fra"), mapping={"region": "eu", "endpoint": ""})
    server.redis.hdel(names.alarms_key("fra"), "drill")


def test_every_page_leads_to_the_gateways(page: Page) -> None:
    for path in ("/workers", "/tasks", "/broker", "/gateways"):
        assert 'href="/gateways"' in page.text(path)


def test_a_workers_own_page_tells_of_it_dead_or_alive(page: Page) -> None:
    status, body = page.get(f"/worker/{node(page, 'iad')}", user=page.USER)
    assert status == 200
    text = words(body)
    assert "gateway.iad.bulk" in text
    assert "state active" in text
    assert "last sign of life" in text
    status, body = page.get("/worker/fra@gone", user=page.USER)
    assert (status, "state down" in words(body)) == (200, True)


def test_an_observer_has_a_page_too(page: Page) -> None:
    observer = eventually(
        lambda: next((n for n in json.loads(page.text("/api/workers")) if n.startswith("iad-observer@")), None),
        "the observer among the workers",
    )
    assert "last sweep" in words(page.text(f"/worker/{observer}"))


def test_the_broker_page_shows_all_lanes_of_all_gateways(page: Page) -> None:
    lengths = {
        queue["name"]: queue["messages"] for queue in json.loads(page.text("/api/queues/length"))["active_queues"]
    }
    lanes = {queue(name) for name in ("fra", "iad") for queue in (names.lane_queue, names.bulk_queue)}
    assert lanes <= set(lengths)
    assert lengths["gateway.fra"] == 3
    text = words(page.text("/broker"))
    assert "gateway.fra 3" in text
    assert "gateway.iad 0 &mdash; 0 1 " in text, "its one writer takes what comes"


def test_the_broker_page_reads_redis_as_everything_of_peerlane_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By a unix socket, as a user with a password and no more rights than Flower's."""
    with fenced(printed(capsys, "iad", "--passwords")) as server:
        server.redis.sadd(names.GATEWAYS_KEY, "iad")
        server.redis.hset(names.gateway_key("iad"), mapping=DEAD)
        server.redis.lpush(names.lane_queue("iad"), "a", "b")
        with flower(server.url_of("flower"), tmp_path) as page:
            eventually(lambda: "gateway.iad 2" in words(page.text("/broker")), "the lane")
            lengths = json.loads(page.text("/api/queues/length"))["active_queues"]
            assert {"name": "gateway.iad", "messages": 2} in lengths
            shown_by = words(page.text("/broker"))
            assert f"unix://flower:(hidden)@{server.socket}" in shown_by
            assert server.passwords["flower"] not in shown_by
            assert server.redis.acl_log() == []
            server.stop()
            assert page.status("/api/queues/length", user=page.USER) == 503
            assert "No queue data is available" in page.text("/broker")


def test_a_refusal_is_shown_as_its_code_and_sentence(page: Page) -> None:
    text = words(page.text(f"/task/{refused_task(page)}"))
    assert "Result conflict" in text
    assert "conflict: " in text
    assert "Traceback" not in text


def test_state_outlives_a_restart(server: RedisServer, page: Page, tmp_path: Path) -> None:
    assert KEY in page.text("/api/tasks")
    app = PeerlaneApp(read(redis_url=server.url))
    with flower(server.url, tmp_path) as first:
        # It hears of requests while it runs.
        eventually(lambda: "iad@" in first.text("/workers"), "a gateway")
        Gateway("iad", app=app).create_peer(KEY, allowed_ips=["10.8.0.5/32"])
        eventually(lambda: KEY in first.text("/api/tasks"), "the create")
        before = json.loads(first.text("/api/tasks")).keys()
    close(app)
    with flower(server.url, tmp_path) as second:
        assert before <= json.loads(second.text("/api/tasks")).keys()
    assert "Failed to load state" not in second.log.read_text()


def test_a_removed_gateway_leaves(server: RedisServer, page: Page) -> None:
    redis = server.redis
    redis.hset(names.gateway_key("zed"), mapping=DEAD | {"region": ""})
    redis.sadd(names.GATEWAYS_KEY, "zed")
    eventually(lambda: "gateway.zed" in page.text("/broker"), "the new gateway's lane")
    redis.srem(names.GATEWAYS_KEY, "zed")
    redis.delete(names.gateway_key("zed"))
    eventually(lambda: "gateway.zed" not in page.text("/broker"), "its leaving the broker page")
    assert "zed" not in page.text("/gateways?json=1")
    assert page.status("/worker/zed@gone", user=page.USER) == 404


def test_without_redis_it_is_not_healthy_and_every_page_says_why(own_redis: RedisServer, tmp_path: Path) -> None:
    with flower(own_redis.url, tmp_path) as page:
        own_redis.stop()
        eventually(lambda: page.status("/healthcheck") == 503, "an unhealthy Flower")
        for path in ("/workers", "/tasks", "/broker", "/gateways"):
            assert "What is shown may be old: " in words(page.text(path))
        assert "reached" in fleet_document(page)["trouble"]
        assert page.get("/healthcheck")[1] == "Redis does not answer"
        own_redis.start()
        eventually(lambda: page.status("/healthcheck") == 200, "a healthy Flower")
        assert "What is shown may be old" not in page.text("/workers")
    log = page.log.read_text()
    assert (log.count("the fleet cannot be read"), log.count("the fleet can be read again")) == (1, 1)


# Refusals


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (repr(Conflict("the key is there")), ("conflict", "the key is there")),
        (repr(errors.Unavailable("it's full", 5.0)), ("unavailable", "it's full")),
        (repr(errors.OutcomeUnknown('say "x"', "iad.1")), ("outcome_unknown", 'say "x"')),
        ("Conflict('cut off in the mid...)", ("conflict", "'cut off in the mid...")),
        ("Conflict()", ("conflict", "")),
        (repr(errors.WriterError("unforeseen")), None),
        ("ValueError('x')", None),
        ("<SomeObject at 0x7f>", None),
        (None, None),
    ],
)
def test_an_errors_repr_tells_code_and_message(exception: str | None, expected: tuple[str, str] | None) -> None:
    assert refusal(exception) == expected


@pytest.mark.parametrize(
    ("kwargs", "result", "expected"),
    [
        ("{'public_key': 'K='}", "'created K= 10.8.0.2/32 fd00:8::2/128'", ("K=", "created 10.8.0.2/32 fd00:8::2/128")),
        ("{'public_key': 'K='}", "'absent K='", ("K=", "absent")),
        ("{'public_key': 'K='}", None, ("K=", None)),
        ("{'public_key': 'K='}", "'created L= 10.8.0.2/32'", ("K=", "'created L= 10.8.0.2/32'")),
        ("{'wishes': '64'}", "'listed 64'", ("{'wishes': '64'}", "'listed 64'")),
    ],
)
def test_a_request_for_one_peer_is_shown_in_few_words(
    kwargs: str, result: str | None, expected: tuple[str, str | None]
) -> None:
    task = SimpleNamespace(kwargs=kwargs, result=result, exception=None, traceback=None)
    shown_task = formatted(task)
    assert (shown_task.kwargs, shown_task.result) == expected


def test_an_unforeseen_error_keeps_its_traceback() -> None:
    task = SimpleNamespace(exception="ValueError('x')", traceback="Traceback ...", result=None)
    assert formatted(task).traceback == "Traceback ..."
    task = SimpleNamespace(exception=repr(Conflict("x")), traceback="Traceback ...", result=None)
    assert (formatted(task).result, task.traceback) == ("conflict", None)


def test_a_look_that_does_not_end_is_told_on_every_page(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = FleetView(own_redis.redis)
    assert fleet.trouble == "nothing has been read from Redis yet"
    assert fleet.look()
    assert (fleet.trouble, fleet.healthy) == ("", True)
    monkeypatch.setattr(fleet, "_looked", time.monotonic() - 60)
    assert (fleet.trouble, fleet.healthy) == ("nothing has been read from Redis for 60 s", False)
