"""The main job on real parts: the real queue, a real Redis server, real worker processes, the real kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from devices import run
from gateways import MakeClient, MakeGateway
from keys import some_key
from servers import RedisServer
from sites import ENDPOINT, Sites, peerlane, sites, steady_ping
from waiting import eventually

from peerlane.config import names
from peerlane.tasks.errors import Invalid
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import Peer

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

MANY = 20_000


@pytest.fixture
def hosts() -> Iterator[Sites]:
    with sites() as made:
        yield made


def lost(words: Sequence[str]) -> tuple[int, int]:
    """(sent, lost) of a steady ping."""
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", "\n".join(words))
    assert counts, words
    return int(counts[1]), int(counts[1]) - int(counts[2])


class TestAClientWithNothingButItsFile:
    def test_gets_traffic_through_from_the_confirmed_create_to_the_confirmed_delete(
        self, hosts: Sites, gateway: MakeGateway, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT)
        conf = tmp_path / "pl0.conf"
        made = peerlane("peer", "create", site.name, "--conf", str(conf), redis_url=redis_server.url)
        assert made["outcome"] == "created"
        with hosts.tunnel(conf):
            assert hosts.reaches("10.8.0.1")
            assert hosts.reaches("fd00:8::1"), "IPv6 goes through the same tunnel"
            assert hosts.session(made["public_key"])[0] > 0, "there was a handshake"
            peerlane("peer", "delete", site.name, made["public_key"], redis_url=redis_server.url)
            assert not hosts.reaches("10.8.0.1", tries=2)
            assert not hosts.reaches("fd00:8::1", tries=2)
        assert hosts.on_gateway("wg", "show", "wg0", "peers") == ""

    def test_has_its_preshared_key_and_keepalive_on_both_sides(
        self, hosts: Sites, gateway: MakeGateway, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT)
        conf = tmp_path / "pl0.conf"
        made = peerlane(
            *("peer", "create", site.name, "--conf", str(conf), "--preshared-key", "--keepalive", "25"),
            redis_url=redis_server.url,
        )
        (row,) = [line.split("\t") for line in hosts.on_gateway("wg", "show", "wg0", "dump").splitlines()[1:]]
        assert row[0] == made["public_key"]
        assert row[7] == "25"
        assert f"PresharedKey = {row[1]}" in conf.read_text()
        with hosts.tunnel(conf):
            assert hosts.reaches("10.8.0.1")
            wrong = re.sub(r"PresharedKey = .*", f"PresharedKey = {some_key()}", conf.read_text())
        conf.write_text(wrong)
        with hosts.tunnel(conf):
            assert not hosts.reaches("10.8.0.1", tries=2), "another preshared key is another peer"

    def test_may_bring_prefixes_beyond_the_pools_whose_routes_come_and_go_with_it(
        self, hosts: Sites, gateway: MakeGateway, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT, serves=("10.77.0.0/16", "fd77::/48"))
        conf = tmp_path / "pl0.conf"
        wanted = ("10.8.0.9/32", "fd00:8::9/128", "10.77.5.0/24", "fd77::5:0/112")
        made = peerlane(
            *("peer", "create", site.name, "--conf", str(conf)),
            *(part for prefix in wanted for part in ("--allowed-ip", prefix)),
            redis_url=redis_server.url,
        )
        assert set(made["allowed_ips"]) == set(wanted)
        assert "10.77.5.0/24" in hosts.on_gateway("ip", "route", "show", "dev", "wg0")
        assert "fd77::5:0/112" in hosts.on_gateway("ip", "-6", "route", "show", "dev", "wg0")
        with hosts.tunnel(conf):
            hosts.on_client("ip", "addr", "add", "10.77.5.1/32", "dev", "lo")
            assert hosts.reaches("10.8.0.1", source="10.77.5.1"), "the gateway answers by the peer's own route"
        peerlane("peer", "delete", site.name, made["public_key"], redis_url=redis_server.url)
        assert "10.77.5.0/24" not in hosts.on_gateway("ip", "route", "show", "dev", "wg0")
        assert "fd77::5:0/112" not in hosts.on_gateway("ip", "-6", "route", "show", "dev", "wg0")


class TestOtherPeersSessions:
    def test_live_on_through_creates_deletes_and_restarts_of_the_writer(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT)
        conf = tmp_path / "pl0.conf"
        mine = peerlane("peer", "create", site.name, "--conf", str(conf), redis_url=redis_server.url)["public_key"]
        api = client(site)
        with hosts.tunnel(conf):
            assert hosts.reaches("10.8.0.1")
            before = hosts.session(mine)
            with steady_ping(hosts, "10.8.0.1") as words:
                keys = [some_key() for _ in range(50)]
                for key in keys:
                    assert api.create_peer(key, timeout=20).outcome == "created"
                for key in keys[:25]:
                    assert api.delete_peer(key, timeout=20).outcome == "deleted"
                site.stop()
                site.start()
                site.kill()
                site.start()
            sent, missing = lost(words)
            after = hosts.session(mine)
        assert sent > 100
        assert missing == 0
        assert after[0] == before[0], "no new handshake was forced"
        assert after[1] > before[1]
        assert after[2] > before[2], "no counter was reset"
        assert len(hosts.on_gateway("wg", "show", "wg0", "peers").split()) == 26


class TestADeviceWithManyPeers:
    def test_gets_them_all_back_and_a_restart_touches_none_of_them(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, start=False, pools=("10.8.0.0/15", "fd00:8::/64"))
        peers = [
            Peer(
                public_key=some_key(),
                allowed_ips=(
                    Prefix.host(4, Prefix.parse("10.8.0.0/15").network + 16 + number),
                    *((Prefix.host(6, Prefix.parse("fd00:8::/64").network + 16 + number),) if number % 3 else ()),
                ),
                preshared_key=some_key() if number % 5 == 0 else None,
                keepalive=25 if number % 7 == 0 else 0,
                created_at=1,
            )
            for number in range(MANY)
        ]
        pipe = redis_server.redis.pipeline(transaction=False)
        for peer in peers:
            pipe.hset(names.peers_key(site.name), peer.public_key, peer.record())
            for prefix in peer.allowed_ips:
                pipe.hset(names.addresses_key(site.name), str(prefix), peer.public_key)
        pipe.execute()

        site.start()
        assert f"{MANY} peers, {MANY} missing" in site.log
        eventually(lambda: not int(site.look().facts.get("recovering") or 0), "the last peer being back")
        dump = hosts.on_gateway("wg", "show", "wg0", "dump")
        rows = {row[0]: row for row in (line.split("\t") for line in dump.splitlines()[1:])}
        assert len(rows) == MANY
        for peer in peers:
            row = rows[peer.public_key]
            assert row[1] == (peer.preshared_key or "(none)")
            assert set(row[3].split(",")) == {str(prefix) for prefix in peer.allowed_ips}
            assert row[7] == (str(peer.keepalive) if peer.keepalive else "off")

        site.stop()
        site.start()
        assert f"{MANY} peers, nothing to mend" in site.log
        api = client(site)
        assert api.create_peer(some_key(), timeout=20).allowed_ips[0] == "10.8.0.2/32"
        assert api.delete_peer(peers[7].public_key, timeout=20).outcome == "deleted"
        assert peers[7].public_key not in hosts.on_gateway("wg", "show", "wg0", "peers")


class TestWhatTheKernelWouldSilentlyAccept:
    def test_is_refused_before_the_kernel_is_touched(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix)
        api = client(site)
        api.create_peer(some_key(), allowed_ips=["10.8.1.0/28"], timeout=20)
        before = hosts.on_gateway("wg", "show", "wg0", "dump")
        own_key = api.info().public_key
        with pytest.raises(Invalid, match=r"gateway .* itself"):
            api.create_peer(own_key, timeout=20)
        for prefix in ("10.8.1.0/28", "10.8.1.3/32", "10.8.0.0/23", "10.8.0.1/32", "10.9.0.0/24"):
            with pytest.raises(Exception, match=re.escape(prefix)):
                api.create_peer(some_key(), allowed_ips=[prefix], timeout=20)
        assert hosts.on_gateway("wg", "show", "wg0", "dump") == before


class TestASecondWriterOfTheDevice:
    def test_says_who_has_it_exits_and_takes_no_request(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient
    ) -> None:
        first = gateway(dataplane="kernel", prefix=hosts.prefix)
        second = gateway(first.name, dataplane="kernel", prefix=hosts.prefix, start=False)
        second.start(wait=False)
        assert second.await_end() == 1
        assert f"process {first.pid}" in second.log
        assert client(first).create_peer(some_key(), timeout=20).outcome == "created"

    def test_in_another_network_namespace_is_no_second_writer(self, hosts: Sites, gateway: MakeGateway) -> None:
        gateway(dataplane="kernel", prefix=hosts.prefix)
        other = gateway(dataplane="kernel", prefix=["ip", "netns", "exec", hosts.client])
        assert other.look().state == "active"


class TestADeviceThatIsDeletedUnderTheWriter:
    def test_comes_back_with_all_its_peers(self, hosts: Sites, gateway: MakeGateway, client: MakeClient) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix)
        api = client(site)
        kept = {api.create_peer(some_key(), timeout=20).public_key for _ in range(20)}
        run("ip", "-n", hosts.gateway, "link", "del", "wg0")

        def back() -> bool:
            if "wg0" not in hosts.on_gateway("ip", "-br", "link"):
                return False
            return set(hosts.on_gateway("wg", "show", "wg0", "peers").split()) == kept

        eventually(back, "the device and its peers")
        assert api.create_peer(some_key(), timeout=20).outcome == "created"
