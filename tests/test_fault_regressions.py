"""Defects that fault runs have found, each as the smallest case that shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faultproxy import FaultProxy
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from servers import RedisServer
from waiting import eventually


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """The writer's way to Redis."""
    with FaultProxy(str(redis_server.socket)) as proxy:
        yield proxy


@pytest.fixture
def linked(gateway: MakeGateway, link: FaultProxy) -> GatewayProcess:
    """A gateway behind the proxy."""
    found = gateway(start=False)
    found.start(redis_url=link.url)
    return found


class TestAWriterWhoseAcknowledgementIsLost:
    def test_takes_the_next_request_all_the_same(
        self, linked: GatewayProcess, link: FaultProxy, client: MakeClient, redis_server: RedisServer
    ) -> None:
        api = client(linked.name, redis=redis_server)
        link.reset_mid_reply(to=b"\r\nZREM\r\n")
        assert api.create_peer(some_key()).outcome == "created"
        eventually(lambda: "could not be acknowledged" in linked.log, "the lost acknowledgement")
        assert api.create_peer(some_key(), timeout=20).outcome == "created"
