"""What an operator sees of each event, and where: Flower, ``gateway list``, ``top``, ``doctor``, alerts, the log.

Played by hand, for the table of docs/runbooks.md: ``make night`` plays all events by the rules as they are shipped, for
an hour, and prints after how many seconds each is seen. Without PEERLANE_TEST_NIGHT=field the rules wait for less.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from commands import processes_of_session
from keys import some_key
from night import FIELD, Night, View, night
from waiting import eventually

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane.tasks import task_of

pytestmark = [
    pytest.mark.slow("waits for each of several events to be seen in every place"),
    pytest.mark.needs("prometheus", "unshare", "nsenter"),
    pytest.mark.timeout(1200 if FIELD else 400),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    with night(tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("r")) as made:
        yield made


def test_a_writer_that_is_killed_and_started_again(site: Night) -> None:
    log = site.logged("was killed by SIGKILL")
    for _ in range(3):
        pid = site.writer_pid()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: site.writer_pid() != pid, "another writer", within=60)
        site.gateway.await_serving(within=60)
        if "writer killed, started again" not in site.noted:
            views = {
                "Flower": site.page_says("The writer of iad was started again"),
                "list": site.says("its writer was started again", "gateway", "list"),
                "top": site.says("writers that were started again: iad", "top", "--once", "--interval", "0.2"),
                "doctor": lambda: "its writer was started again" in site.doctor(),
                **log,
            }
            site.watch("writer killed, started again", views)
    site.watch("writer killed three times", site.alert("PeerlaneWriterRestarts"))
    site.well()


def test_a_gateway_whose_host_is_gone(site: Night) -> None:
    for pid in [site.gateway.pid, site.writer_pid(), site.observer_pid()]:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes_of_session(site.gateway.pid), "no process of it being left")
    site.watch("gateway gone", {**site.shown_as("down"), **site.alert("PeerlaneGatewayDown")})
    site.gateway.start()
    site.well()


def test_a_frozen_writer(site: Night) -> None:
    pid = site.writer_pid()
    os.kill(pid, signal.SIGSTOP)
    views = {**site.shown_as("down"), **site.alert("PeerlaneGatewayDown"), **site.logged("the writer hangs")}
    site.watch("writer frozen", views, over=lambda: site.writer_pid() != pid)
    eventually(lambda: site.writer_pid() != pid, "another writer", within=90)
    site.well()


def test_a_main_thread_that_hangs(site: Night) -> None:
    pid = site.writer_pid()
    site.failpoints.write_text("before_apply:hang\n")
    create = task_of(site.app, names.CREATE_PEER)
    create.apply_async(kwargs={"gateway": "iad", "public_key": some_key()}, expires=600)
    views = {**site.shown_as("stuck"), **site.alert("PeerlaneWriterStuck"), **site.logged("the writer hangs")}
    site.watch("main thread hangs", views, over=lambda: site.writer_pid() != pid)
    site.failpoints.write_text("")
    eventually(lambda: site.writer_pid() != pid, "another writer", within=90)
    assert "the stacks of the writer" in site.gateway.log
    site.well()


def test_a_full_lane(site: Night) -> None:
    """More is asked for than a slow device takes: callers are refused."""
    create, over, refused = task_of(site.app, names.CREATE_PEER), threading.Event(), threading.Event()

    def flood() -> None:
        while not over.wait(0.02):
            try:
                create.apply_async(kwargs={"gateway": "iad", "public_key": some_key()}, expires=600)
            except PeerlaneError:
                refused.set()

    site.failpoints.write_text("before_apply:sleep:2\n")
    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        assert refused.wait(60)
        views = {
            "Flower": site.page_says("The lane of iad is full"),
            "list": site.says("its lane is full", "gateway", "list"),
            "top": site.says("full lanes, which refuse requests: iad", "top", "--once", "--interval", "0.2"),
            "doctor": lambda: "its lane is full" in site.doctor(),
            **site.alert("PeerlaneLaneFilling"),
        }
        site.watch("lane full", views)
    finally:
        site.failpoints.write_text("")
        over.set()
        flooding.join(30)
    site.well()


def redis_is_away(site: Night) -> dict[str, View]:
    return {
        "Flower": lambda: "What is shown may be old" in site.page.text("/workers"),
        "Flower's health": lambda: site.page.status("/healthcheck") == 503,
        "list": lambda: "error" in site.ask("gateway", "list"),
        "top": lambda: "error" in site.ask("top", "--once", "--interval", "0.2"),
        "doctor": lambda: "Redis: cannot be used" in site.doctor(),
        **site.alert("PeerlaneRedisUnreachable"),
        **site.logged("Redis is away"),
    }


@pytest.mark.parametrize(("end", "again"), [("stop", "start"), ("pause", "resume")], ids=["stopped", "frozen"])
def test_redis_is_away(site: Night, end: str, again: str) -> None:
    views = redis_is_away(site)
    getattr(site.server, end)()
    site.watch(f"Redis {'stopped' if end == 'stop' else 'frozen'}", views)
    getattr(site.server, again)()
    site.well()


def test_a_full_disk_ends_redis_that_syncs_always(site: Night) -> None:
    """It ends at its first write, whoever starts it again, until there is room; nothing confirmed is lost."""
    views = redis_is_away(site)
    site.disk.fill()
    site.manager.go()
    try:
        site.watch("disk full, appendfsync always", views)
    finally:
        site.disk.free()
        site.manager.stop()
    assert "Can't recover from AOF write error when the AOF fsync policy is 'always'" in site.server.log
    site.well()


def test_a_full_disk_has_redis_that_syncs_each_second_refuse(site: Night) -> None:
    site.server.redis.config_set("appendfsync", "everysec")
    log = site.logged("MISCONF")
    site.disk.fill()
    try:
        views = {
            "Flower": lambda: site.flower()["state"] == "down",
            "list": lambda: site.listed()["state"] == "down",
            "top": lambda: site.top()["state"] == "down",
            "doctor": lambda: "durability" in site.doctor() and "write" in site.doctor(),
            **site.alert("PeerlaneRedisPersistence"),
            **log,
        }
        site.watch("disk full, appendfsync everysec", views)
    finally:
        site.disk.free()
    site.well()
    site.server.redis.config_set("appendfsync", "always")


def test_messages_set_aside(site: Night) -> None:
    log = site.logged("was set aside: ")
    site.server.redis.lpush(names.lane_queue("iad"), "no message")
    views = {
        "Flower": site.page_says("has set 1 message aside"),
        "list": lambda: site.listed()["set_aside"] == 1,
        "top": lambda: site.top()["set_aside"] == 1,
        "doctor": lambda: "set aside" in site.doctor(),
        **site.alert("PeerlaneSetAside"),
        **log,
    }
    site.watch("message set aside", views)
    site.ask("gateway", "poison", "iad", "--drop-all")
    site.well()


def test_a_gateway_that_was_stopped(site: Night) -> None:
    log = site.logged("ending, because of SIGTERM")
    assert site.gateway.stop() == 0
    views = {**site.shown_as("stopped"), **log}
    # A quarter of an hour in the field.
    site.watch("gateway stopped", views if FIELD else {**views, **site.alert("PeerlaneGatewayStopped")})
    site.gateway.start()
    site.well()


def test_a_frozen_observer(site: Night) -> None:
    """It is replaced before an alert would fire."""
    pid = site.observer_pid()
    log = site.logged("the observer hangs")
    os.kill(pid, signal.SIGSTOP)
    views = {
        "Flower": lambda: site.flower()["observer_silent_for"] > 15,
        "list": site.says("its observer has been silent", "gateway", "list"),
        "top": lambda: site.top()["observer_silent_for"] > 15,
        "doctor": lambda: "observer" in site.doctor(),
        **site.alert("PeerlaneObserverAway"),
        **log,
    }
    site.watch("observer frozen", views, over=lambda: site.observer_pid() != pid)
    eventually(lambda: site.observer_pid() != pid, "another observer", within=90)
    site.well()


def test_beat_stopped(site: Night) -> None:
    log = site.logged("unattended")
    site.stop_beat()
    if not FIELD:  # five minutes ago
        earlier = int(site.server.redis.time()[0]) - 400
        site.server.redis.hset(names.observer_key("iad"), "asked_at", earlier)
    views = {
        "Flower": site.page_says("is one running?"),
        "list": site.says("is one running?", "gateway", "list"),
        "top": site.says("is one running?", "top", "--once", "--interval", "0.2"),
        "doctor": lambda: "is one running?" in site.doctor(),
        **site.alert("PeerlaneBeatMissing"),
        **(log if FIELD else {}),
    }
    site.watch("beat stopped", views)
    site.start_beat()
    site.well()
