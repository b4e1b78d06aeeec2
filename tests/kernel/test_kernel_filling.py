"""A start on a real kernel that serves before all peers are back: what is asked, killed and lost in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import key_number, some_key
from servers import RedisServer
from sites import ENDPOINT, Sites, sites
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.workers.start.recovery import AT_ONCE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

PEERS = AT_ONCE + 600
#: Each slice takes so long: all that follows happens amid the filling.
SLOWLY = "between_fillings:sleep:0.5"


@pytest.fixture
def hosts() -> Iterator[Sites]:
    with sites() as made:
        yield made


@pytest.fixture
def filling(hosts: Sites, gateway: MakeGateway, redis_server: RedisServer) -> GatewayProcess:
    """A gateway that has started on an empty device, and adds peers slowly."""
    site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT, start=False)
    site.settings["test_failpoints"] = control = site.directory / "failpoints"
    control.write_text(SLOWLY)
    peers: Any = {
        key_number(n): f'{{"v":1,"allowed_ips":["10.8.{n >> 8}.{n & 255}/32"]}}' for n in range(10, 10 + PEERS)
    }
    owners: Any = {f"10.8.{n >> 8}.{n & 255}/32": key_number(n) for n in range(10, 10 + PEERS)}
    redis_server.redis.hset(names.peers_key(site.name), mapping=peers)
    redis_server.redis.hset(names.addresses_key(site.name), mapping=owners)
    site.start(wait=False)
    site.await_serving(within=120)
    assert coming(site) > 0, "the lane is served while peers are still to be added"
    return site


def coming(site: GatewayProcess) -> int:
    return int(site.look().facts.get("recovering") or 0)


def on_device(hosts: Sites) -> set[str]:
    return set(hosts.on_gateway("wg", "show", "wg0", "peers").split())


def missing(hosts: Sites) -> list[str]:
    """Peers that are still to come."""
    there = on_device(hosts)
    return [key for n in range(10, 10 + PEERS) if (key := key_number(n)) not in there]


def start_again(site: GatewayProcess) -> None:
    before = int(site.look().facts["epoch"])
    site.start(wait=False)
    site.await_serving(since_epoch=before, within=120)


def agree(site: GatewayProcess, hosts: Sites, client: Gateway) -> None:
    """Once all are back, the device holds what Redis does."""
    (site.directory / "failpoints").write_text("")
    eventually(lambda: coming(site) == 0, "the last peer being back", within=120)
    eventually(
        lambda: on_device(hosts) == {peer.public_key for peer in client.peers()}, "device and Redis agreeing", within=60
    )


def test_who_is_asked_for_or_deleted_is_settled_at_once(
    filling: GatewayProcess, hosts: Sites, client: MakeClient
) -> None:
    caller = client(filling)
    asked, gone = missing(hosts)[-1], missing(hosts)[-2]
    assert caller.create_peer(asked, timeout=20).outcome == "existing"
    assert asked in on_device(hosts)
    assert caller.delete_peer(gone, timeout=20).outcome == "deleted"
    made = caller.create_peer(some_key(), timeout=20)
    assert made.public_key in on_device(hosts)
    agree(filling, hosts, caller)
    assert gone not in on_device(hosts)


@pytest.mark.parametrize("how", ["killed", "ended", "device deleted"])
def test_what_befalls_it_on_the_way_costs_no_peer(
    filling: GatewayProcess, hosts: Sites, client: MakeClient, how: str
) -> None:
    caller = client(filling)
    asked = missing(hosts)[-1]
    caller.create_peer(asked, timeout=20)
    if how == "killed":
        (filling.directory / "failpoints").write_text("between_fillings:kill")
        filling.await_end()
        start_again(filling)
    elif how == "ended":
        assert filling.stop() == 0
        start_again(filling)
    else:
        hosts.on_gateway("ip", "link", "del", "wg0")
        eventually(lambda: "wg0" in hosts.on_gateway("ip", "-br", "link"), "the device being made again")
    fresh = caller.create_peer(some_key(), timeout=20)
    agree(filling, hosts, caller)
    assert {asked, fresh.public_key} <= on_device(hosts)
