"""A fleet behind Sentinels: real servers, real Sentinels, a real failover, with the end of the stream lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flowers import flower
from gateways import ROOT, MakeClient, MakeGateway, MakeSettings, clean_environment
from keys import some_key
from replicated import Replicated
from servers import server_directory
from waiting import eventually

from peerlane import AsyncGateway, Gateway, OutcomeUnknown, PeerlaneError
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.config.redis.failures import failure
from peerlane.config.redis.sentinels import NoPrimary, Sentinels, sentinels
from peerlane.config.redis.url import celery_url, shown_url
from peerlane.config.settings import BadSettings, read
from peerlane.tasks.status.alarms import read_alarms

SLOW = pytest.mark.slow("five servers a test, and failovers that take seconds")


@pytest.fixture
def fleet() -> Iterator[Replicated]:
    directory = server_directory()
    made = Replicated(directory, password="data-pw", sentinel_password="watch-pw")
    yield made
    made.end()
    shutil.rmtree(directory, ignore_errors=True)


class Caller(threading.Thread):
    """Creates and deletes until told to end; notes what was confirmed."""

    def __init__(self, lane: Gateway) -> None:
        super().__init__(daemon=True)
        self._lane = lane
        self.ended = threading.Event()
        #: By key: whether the last confirmed word was that it is there; a key without a word is not in it.
        self.there: dict[str, bool] = {}
        self.broken: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            key = some_key()
            if not self._asked(lambda key=key: self._lane.create_peer(key, timeout=3)):
                continue
            self.there[key] = True
            if len(self.there) % 3 == 0:
                if self._asked(lambda key=key: self._lane.delete_peer(key, timeout=3)):
                    self.there[key] = False
                else:
                    del self.there[key]

    def _asked(self, call: object) -> bool:
        try:
            call()  # type: ignore[operator] - a lambda
        except PeerlaneError:
            return False
        except Exception as error:  # noqa: BLE001 - anything else is what the test looks for
            self.broken.append(repr(error))
            return False
        return True


def confirmed_is_true(callers: list[Caller], stored: set[str]) -> tuple[list[str], list[str]]:
    """Creates that are lost, and deletes that are back."""
    words = {key: there for caller in callers for key, there in caller.there.items()}
    return (
        [key for key, there in words.items() if there and key not in stored],
        [key for key, there in words.items() if not there and key in stored],
    )


@SLOW
def test_a_failover_that_loses_the_end_of_the_stream_loses_no_create_and_brings_no_delete_back(
    fleet: Replicated, gateway: MakeGateway, client: MakeClient
) -> None:
    site = gateway(redis_url=fleet.url)
    first = client(site)
    first.create_peer(some_key())
    callers = [Caller(client(site)) for _ in range(3)]
    for caller in callers:
        caller.start()
    time.sleep(0.5)
    fleet.cut_stream()
    before = sum(len(caller.there) for caller in callers)
    until = time.monotonic() + 20
    while sum(len(caller.there) for caller in callers) < before + 60 and time.monotonic() < until:
        time.sleep(0.02)
    during = sum(len(caller.there) for caller in callers) - before
    assert during > 20, "there is something to lose"
    fleet.primary.kill()
    fleet.await_failover()
    after = sum(len(caller.there) for caller in callers)
    until = time.monotonic() + 30
    back = 0  # the most at one moment: callers delete, too
    while back < after + 20 and time.monotonic() < until:
        back = max(back, sum(len(caller.there) for caller in callers))
        time.sleep(0.02)
    for caller in callers:
        caller.ended.set()
    for caller in callers:
        caller.join(20)
    assert back >= after + 20, f"the lane came back: {site.log[-3000:]}"
    assert [caller.broken for caller in callers] == [[], [], []]
    assert site.status is None, "the writer lives"
    stored = {peer.public_key for peer in first.peers()}
    assert confirmed_is_true(callers, stored) == ([], [])
    assert "Redis is behind its writer" in site.log
    with connect(read(redis_url=fleet.url)) as redis:
        assert [alarm.kind for alarm in read_alarms(redis, site.name)] == []


@SLOW
def test_a_planned_failover_ends_no_writer_and_callers_heal_by_themselves(
    fleet: Replicated, gateway: MakeGateway, client: MakeClient
) -> None:
    """No connection is cut by it: the old primary goes on as a replica and says READONLY."""
    site = gateway(redis_url=fleet.url)
    lane, key = client(site), some_key()
    lane.create_peer(key)
    fleet.sentinels[0].redis.execute_command("SENTINEL FAILOVER", "peers")
    fleet.await_failover()
    deadline = time.monotonic() + 30
    while True:
        try:
            assert lane.create_peer(some_key(), timeout=5).outcome == "created"
            break
        except PeerlaneError:
            assert time.monotonic() < deadline, site.log[-3000:]
    assert site.status is None
    assert key in {peer.public_key for peer in lane.peers()}
    assert "a newer writer" not in site.log


@SLOW
def test_every_part_finds_the_primary(fleet: Replicated, gateway: MakeGateway, settings: MakeSettings) -> None:
    site = gateway(redis_url=fleet.url)

    async def ask() -> str:
        async with AsyncGateway(site.name, app=PeerlaneApp(settings(redis_url=fleet.url))) as lane:
            return (await lane.create_peer(some_key(), timeout=10)).outcome

    assert asyncio.run(ask()) == "created"
    environment = clean_environment() | {"PEERLANE_REDIS_URL": fleet.url}
    for command in (["gateway", "list"], ["gateway", "show", site.name], ["peer", "list", site.name], ["doctor"]):
        result = subprocess.run(
            [sys.executable, "-m", "peerlane.workers.cli", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0 or command == ["doctor"], result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert "data-pw" not in result.stdout + result.stderr
        assert "watch-pw" not in result.stdout + result.stderr
    assert "data-pw" not in site.log
    assert "watch-pw" not in site.log


@SLOW
def test_flowers_broker_page_finds_the_primary(fleet: Replicated, tmp_path: Path) -> None:
    redis = fleet.primary.redis
    redis.lpush(names.lane_queue("iad"), "a", "b", "c")
    redis.hset(names.gateway_key("iad"), mapping={"heartbeat": "1000", "phase": "serving"})
    redis.sadd(names.GATEWAYS_KEY, "iad")
    with flower(fleet.url, tmp_path) as page:
        lane = {"name": "gateway.iad", "messages": 3}
        eventually(lambda: lane in json.loads(page.text("/api/queues/length"))["active_queues"], "the lane")
        assert "peers/0" in page.text("/broker")
        assert "pw" not in page.text("/broker").partition("broker-url")[2].partition("</p>")[0]


def test_sentinels_that_name_nobody_are_named(client: MakeClient) -> None:
    url = "redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:2/peers?sentinel_password=hush"
    lane = client("iad", redis_url=url)
    with pytest.raises(OutcomeUnknown) as caught:
        lane.create_peer(some_key(), timeout=2)
    message = str(caught.value)
    assert "no Sentinel names a primary of the service peers; 127.0.0.1:1, 127.0.0.1:2: nobody listens there" in message
    assert "secret" not in message
    assert "hush" not in message


@pytest.mark.parametrize(
    ("url", "celery", "shown"),
    [
        ("redis+sentinel://a:1,b:2,c/peers", "redis://peers/0", "redis+sentinel://a:1,b:2,c/peers"),
        ("redis+sentinel://u:p%2Fw@a/peers/3", "redis://u:p%2Fw@peers/3", "redis+sentinel://u:(hidden)@a/peers/3"),
        (
            "rediss+sentinel://:p@[::1]:5/peers?sentinel_username=x&sentinel_password=y",
            "rediss://:p@peers/0",
            "rediss+sentinel://:(hidden)@[::1]:5/peers?sentinel_username=x&sentinel_password=(hidden)",
        ),
    ],
    ids=["plain", "password", "tls"],
)
def test_a_url_of_sentinels_is_taken_apart(url: str, celery: str, shown: str) -> None:
    chosen = read(redis_url=url)
    assert celery_url(chosen) == celery
    assert shown_url(url) == shown
    asked = sentinels(chosen)
    assert asked is not None
    assert asked.service == "peers"
    assert bool(asked.tls) == url.startswith("rediss")
    assert "y" not in repr(asked).replace("peers", "").replace("hosts", "").replace("username", "")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis+sentinel://a:1",
            "redis+sentinel:///peers",
            "redis+sentinel://a:0/peers",
            "redis+sentinel://a:x/peers",
        ),
        *("redis+sentinel://a,a/peers", "redis+sentinel://a/peers/x", "redis+sentinel://a/peers?password=geheim"),
        *(
            "redis+sentinel://a/peers?sentinel_password=",
            "redis+sentinel://a/peers?sentinel_username=geheim",
            "redis+sentinel://a/pe ers",
            "redis+sentinel://gehe/im@a/peers",
        ),
    ],
)
def test_a_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read(redis_url=url)
    assert "PEERLANE_REDIS_URL" in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("service", ["auth-db", "AUTH"])
def test_a_name_is_not_taken_for_a_refused_password(service: str) -> None:
    with pytest.raises(NoPrimary) as caught:
        Sentinels((("127.0.0.1", 1),), service).primary()
    assert "nobody listens there" in failure(caught.value)
    assert "password" not in failure(caught.value)
