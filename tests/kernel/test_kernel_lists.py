"""Lists on a real kernel: what it refuses of one is answered for itself, and leaves the rest as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gateways import MakeClient, MakeGateway
from keys import some_key
from sites import ENDPOINT, Sites, sites

from peerlane.tasks.errors import KernelError

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]


@pytest.fixture
def hosts() -> Iterator[Sites]:
    with sites() as made:
        yield made


def kinds(answers: list[Any]) -> list[object]:
    """What became of each wish: its outcome, or the error's class."""
    return [type(each) if isinstance(each, Exception) else each.outcome for each in answers]


def test_a_wish_that_the_kernel_refuses_is_answered_for_itself(
    hosts: Sites, gateway: MakeGateway, client: MakeClient
) -> None:
    site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT, serves=("10.77.0.0/16",))
    lane = client(site)
    # A prefix beyond the pools needs a route of its own, and this one leads elsewhere: nobody knows but the kernel.
    hosts.on_gateway("ip", "route", "add", "10.77.5.0/24", "dev", "lo")
    keys = [some_key() for _ in range(80)]
    wishes: list[Any] = [{"public_key": key} for key in keys]
    wishes[30] |= {"allowed_ips": ["10.77.5.0/24"]}
    wishes[31] |= {"allowed_ips": ["10.77.6.0/24"]}
    created = kinds(lane.create_peers(wishes, timeout=60))
    assert created[30] is KernelError
    assert created[:30] + created[31:] == ["created"] * 79
    there = set(hosts.on_gateway("wg", "show", "wg0", "peers").split())
    assert there == {*keys} - {keys[30]} == {peer.public_key for peer in lane.peers()}
    routes = hosts.on_gateway("ip", "route", "show")
    assert "10.77.5.0/24 dev lo" in routes
    assert "10.77.6.0/24 dev wg0" in routes
    deleted = kinds(lane.delete_peers([*keys[20:40], keys[20], some_key()], timeout=60))
    assert deleted == [*["deleted"] * 10, "absent", *["deleted"] * 9, "absent", "absent"]
    there = set(hosts.on_gateway("wg", "show", "wg0", "peers").split())
    assert there == {*keys[:20], *keys[40:]} == {peer.public_key for peer in lane.peers()}
    assert "10.77.6.0/24" not in hosts.on_gateway("ip", "route", "show")
    assert "10.77.5.0/24 dev lo" in hosts.on_gateway("ip", "route", "show")
