"""What a start on a real kernel refuses: pools of another device, IPv6 that is off, another key than clients have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from gateways import ROOT, GatewayProcess, MakeClient, MakeGateway, clean_environment
from keys import some_key
from servers import RedisServer
from sites import ENDPOINT, Sites, sites
from waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]


@pytest.fixture
def hosts() -> Iterator[Sites]:
    with sites() as made:
        yield made


def refusal(site: GatewayProcess) -> str:
    """What a start says that is refused because of its settings."""
    site.start(wait=False)
    assert site.await_end() == 2, site.log[-2000:]
    return site.log


class TestPoolsThatAreTakenOnThisHost:
    def test_by_another_gateway_are_refused_though_they_are_a_part_of_its_own(
        self, hosts: Sites, gateway: MakeGateway
    ) -> None:
        gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT)
        second = gateway(
            dataplane="kernel",
            prefix=hosts.prefix,
            endpoint="192.0.2.1:51821",
            interface="wg1",
            listen_port=51821,
            pools=("10.8.3.0/24",),
            start=False,
        )
        assert "PEERLANE_POOLS: 10.8.3.0/24 overlaps 10.8.0.0/16, which leads to wg0, a WireGuard device" in refusal(
            second
        )
        assert "wg1" not in hosts.on_gateway("ip", "-br", "link")
        second.start(pools=("10.9.0.0/16", "fd00:9::/64"))

    def test_by_a_foreign_device_are_refused_and_a_wider_network_elsewhere_is_none(
        self, hosts: Sites, gateway: MakeGateway
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT, start=False)
        hosts.on_gateway("ip", "route", "add", "10.0.0.0/8", "via", "192.0.2.2")
        hosts.on_gateway("ip", "route", "add", "default", "via", "192.0.2.2")
        hosts.on_gateway("ip", "link", "add", "br7", "type", "dummy")
        hosts.on_gateway("ip", "addr", "add", "10.8.7.1/24", "dev", "br7")
        assert "PEERLANE_POOLS: 10.8.0.0/16 overlaps 10.8.7.0/24, which leads to br7 on this host" in refusal(site)
        hosts.on_gateway("ip", "link", "del", "br7")
        site.start()

    def test_do_not_keep_a_device_that_was_lost_from_coming_back(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT)
        hosts.on_gateway("ip", "link", "add", "br7", "type", "dummy")
        hosts.on_gateway("ip", "addr", "add", "10.8.7.1/24", "dev", "br7")
        hosts.on_gateway("ip", "link", "del", "wg0")
        eventually(lambda: "wg0" in hosts.on_gateway("ip", "-br", "link"), "the device being made again")
        assert client(site).create_peer(some_key(), timeout=20).outcome == "created"


class TestIPv6ThatIsOff:
    def test_is_named_with_the_pools_that_work(self, hosts: Sites, gateway: MakeGateway) -> None:
        hosts.on_gateway("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT, start=False)
        said = refusal(site)
        assert "IPv6 is switched off here (net.ipv6.conf.default.disable_ipv6 is 1)" in said
        assert "PEERLANE_POOLS=10.8.0.0/16" in said
        assert "Permission denied" not in said
        site.start(pools=("10.8.0.0/16",))


class TestAKeyThatIsLost:
    def test_comes_from_the_device_while_that_is_there_and_is_refused_once_it_is_gone(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT)
        before = client(site).info().public_key
        client(site).create_peer(some_key(), timeout=20)
        site.stop()
        file = site.directory / f"{site.name}.key"
        file.unlink()
        site.start()
        assert client(site).info().public_key == before
        site.stop()
        file.unlink()
        hosts.on_gateway("ip", "link", "del", "wg0")
        assert f"clients were given {before}" in refusal(site)
        assert "wg0" not in hosts.on_gateway("ip", "-br", "link")


def test_doctor_finds_the_port_bound_while_the_device_is_there(
    hosts: Sites, gateway: MakeGateway, redis_server: RedisServer
) -> None:
    site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT)

    def port() -> str:
        words = [*hosts.prefix, sys.executable, "-m", "peerlane.workers.cli", "doctor", site.name, "--json"]
        key = {"PEERLANE_REDIS_URL": redis_server.url, "PEERLANE_PRIVATE_KEY_FILE": str(site.directory / "none.key")}
        asked = subprocess.run(words, cwd=ROOT, env=clean_environment() | key, capture_output=True, check=False)
        (check,) = [check for check in json.loads(asked.stdout)["checks"] if check["what"] == "UDP port"]
        return str(check["verdict"])

    assert port() == "ok"
    site.stop()
    hosts.on_gateway("ip", "link", "del", "wg0")
    assert port() == "failed"
