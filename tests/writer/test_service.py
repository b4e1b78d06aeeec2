"""A gateway's service: its first start, and what it does once a second."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from gateways import MakeClient, MakeGateway, MakeSettings, new_name
from grouped_lane import GroupedLane
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane.config.settings import Settings
from peerlane.tasks.errors import KernelError, WriterError
from peerlane.tasks.status.alarms import read_alarms
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import AddRoute, SetPeer
from peerlane.workers.dataplane.memory import MemoryDataPlane, Method
from peerlane.workers.gateway import GatewayService


@pytest.fixture
def lane(redis_server: RedisServer, tmp_path: Path) -> Iterator[GroupedLane]:
    made = GroupedLane(redis_server, tmp_path)
    yield made
    made.close()


def service_on(settings: Settings, plane: MemoryDataPlane) -> GatewayService:
    """A gateway's service on a device that is there already."""
    made: Any = GatewayService(settings)
    made._plane = replace(made._plane, writer=plane)  # noqa: SLF001 - as a kernel's device, it outlives the service
    return cast("GatewayService", made)


@pytest.mark.parametrize("fails", ["open", "peers", "apply"])
def test_a_first_start_that_fails_leaves_the_peers_of_the_device_to_the_next(
    settings: MakeSettings, tmp_path: Path, fails: Method
) -> None:
    """An operator takes a device over that serves already, and corrects a setting at the second try."""
    options = settings(
        gateway=new_name(), dataplane="memory", private_key_file=tmp_path / "key", endpoint="vpn.example.com:51820"
    )
    plane = MemoryDataPlane()
    first = service_on(options, plane)
    plane.open(first.spec)
    theirs = some_key()
    plane.apply([SetPeer(theirs, frozenset({Prefix.parse("10.8.0.9/32")}))])
    if fails == "apply":  # something of the device has to be mended
        plane.apply([AddRoute(Prefix.parse("192.0.2.0/24"))])
    plane.fail_next(fails)
    with pytest.raises(KernelError):
        first.start()
    first.stop()
    second = service_on(options, plane)
    second.start()
    try:
        assert theirs in plane.peers()
        assert [alarm.kind for alarm in read_alarms(second.store.redis, second.name)] == ["unknown_peers"]
    finally:
        second.stop()
    third = service_on(options, plane)
    third.start()
    third.stop()
    plane.open(third.spec)
    assert theirs not in plane.peers(), "the gateway has served: what Redis does not know goes"


def test_the_lane_is_open_again_once_a_request_has_recovered_what_a_tick_could_not(lane: GroupedLane) -> None:
    plane = cast("MemoryDataPlane", lane.writer.plane)
    plane.fail_next("peers")
    lane.writer.recovery_needed = "the device is gone"
    lane.service.tick()
    assert lane.service.heartbeat.phase == "recovering"
    (sent,) = lane.send({})
    lane.wake()
    assert lane.kinds([sent]) == ["created"]
    assert lane.writer.recovery_needed is None
    lane.service.tick()
    assert lane.service.heartbeat.phase == "serving", "clients are let in again"


def test_a_writer_that_recovers_while_redis_is_away_ends_in_good_order(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, tmp_path: Path
) -> None:
    control = tmp_path / "failpoints"
    control.write_text("before_commit:raise\nbetween_batches:hang\n")
    site = gateway(redis=own_redis, test_failpoints=control)
    site.may_show_tracebacks = True  # of the unforeseen error, after which it recovers
    with pytest.raises(WriterError):
        client(site, redis=own_redis).create_peer(some_key())
    eventually(lambda: "recovering, because of an unforeseen failure" in site.log, "the recovery")
    own_redis.kill()
    os.kill(site.pid, signal.SIGTERM)
    control.write_text("")
    assert site.await_end() == 0
    assert "ShutdownRequested" not in site.log
