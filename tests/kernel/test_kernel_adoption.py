"""A device made by hand, with thousands of peers and traffic on it, becomes a gateway's: not a packet is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confs import rendered
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import key_number
from observers import Observer, ending
from servers import RedisServer
from sites import ENDPOINT, Sites, peerlane, sites, steady_ping
from waiting import Stopwatch

from peerlane.config import names
from peerlane.tasks.values.keys import KeyPair, make_key_pair, make_preshared_key
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wgfile.parser import parse_conf
from peerlane.tasks.wire.stored_peer import Peer

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(280)]

MANY = 5_000
CLIENT = "10.8.200.1"


@dataclass(frozen=True)
class LiveDevice:
    """wg0 on the gateway's host, as an administrator left it, and the file it was made from."""

    hosts: Sites
    own: KeyPair
    client: KeyPair
    file: Path
    peers: dict[str, Peer]

    def shown(self) -> dict[str, list[str]]:
        """Public key → preshared key, allowed IPs, keepalive, as ``wg`` has them."""
        rows = [line.split("\t") for line in self.hosts.on_gateway("wg", "show", "wg0", "dump").splitlines()[1:]]
        return {row[0]: [row[1], row[3], row[7]] for row in rows}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveDevice]:
    own, client = make_key_pair(), make_key_pair()
    peers = [
        Peer(
            public_key=key_number(number + 1),
            allowed_ips=(Prefix.host(4, (10 << 24) + (8 << 16) + 256 + number),),
            preshared_key=make_preshared_key() if number % 3 == 0 else None,
            keepalive=25 if number % 7 == 0 else 0,
            labels={"name": f"Peer {number}"} if number % 2 else {},
        )
        for number in range(MANY - 1)
    ]
    peers.append(Peer(public_key=client.public_key, allowed_ips=(Prefix.parse(CLIENT),), labels={"name": "Client"}))
    file = tmp_path / "wg0.conf"
    file.write_bytes(rendered(peers, f"[Interface]\nPrivateKey = {own.private_key}\nListenPort = 51820"))
    theirs = tmp_path / "client.conf"
    theirs.write_text(
        f"[Interface]\nPrivateKey = {client.private_key}\n[Peer]\nPublicKey = {own.public_key}\n"
        f"Endpoint = {ENDPOINT}\nAllowedIPs = 10.8.0.0/16\n"
    )
    with sites() as hosts:
        for host, conf, address in ((hosts.on_gateway, file, "10.8.0.1/16"), (hosts.on_client, theirs, f"{CLIENT}/16")):
            host("ip", "link", "add", "wg0", "type", "wireguard")
            host("wg", "setconf", "wg0", str(conf))
            host("ip", "addr", "add", address, "dev", "wg0")
            host("ip", "link", "set", "wg0", "up")
        yield LiveDevice(hosts, own, client, file, {peer.public_key: peer for peer in peers})


def start(gateway: MakeGateway, live: LiveDevice) -> GatewayProcess:
    return gateway(dataplane="kernel", prefix=live.hosts.prefix, endpoint=ENDPOINT, listen_port=51820)


@pytest.mark.parametrize("how", ["file", "live"])
def test_a_running_device_is_adopted_without_one_lost_packet(
    live: LiveDevice, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, how: str
) -> None:
    assert live.hosts.reaches("10.8.0.1", source=CLIENT)
    before, session = live.shown(), live.hosts.session(live.client.public_key)
    watch = Stopwatch()
    with steady_ping(live.hosts, "10.8.0.1", every=0.01) as words:
        site = start(gateway, live)
        assert live.shown() == before, "a start wipes nothing that Redis does not know"
        assert client(site).info().public_key == live.own.public_key
        assert Path(site.settings["private_key_file"]).read_text().strip() == live.own.private_key
        watch.restart()
        source = ["--live"] if how == "live" else [str(live.file)]
        done = peerlane("gateway", "import", site.name, *source, redis_url=redis_server.url)
        seconds = watch.seconds
        assert (done["outcome"], done["created"], done["existing"]) == ("imported", MANY, 0)
        assert live.shown() == before
        site.stop()
        site.start()
        exported = peerlane("gateway", "export", site.name, redis_url=redis_server.url)["config"]
        assert live.shown() == before
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", "\n".join(words))
    assert counts, words
    sent, received = int(counts[1]), int(counts[2])
    print(  # noqa: T201 - the figure, for pytest -rA
        f"\n{MANY} peers adopted from {how} in {seconds:.1f} s; pings {sent}, lost {sent - received}"
    )
    assert sent > 200
    assert sent == received, f"{words}: packets were lost"
    assert live.hosts.session(live.client.public_key)[1] > session[1], "the counters went on"
    wanted = live.peers
    if how == "live":
        wanted = {key: peer.model_copy(update={"labels": {}}) for key, peer in live.peers.items()}
    conf = parse_conf(exported.encode())
    assert not conf.problems
    assert {entry.peer.public_key: entry.peer.model_copy(update={"created_at": 0}) for entry in conf.peers} == wanted


def test_peers_without_allowed_ips_are_told_before_anything_is_taken_or_lost(
    live: LiveDevice, gateway: MakeGateway, redis_server: RedisServer
) -> None:
    bare = [key_number(MANY + number) for number in range(1, 4)]
    for key in bare:
        live.hosts.on_gateway("wg", "set", "wg0", "peer", key)
    before = live.shown()
    site = start(gateway, live)

    def ask(*words: str, expect: int = 0) -> Any:
        return peerlane("gateway", "import", site.name, "--live", *words, redis_url=redis_server.url, expect=expect)

    for words in ((), ("--dry-run",)):
        refused = ask(*words, expect=1)["error"]
        assert {conflict["public_key"]: conflict["message"] for conflict in refused["conflicts"]} == dict.fromkeys(
            bare, "it has no allowed IPs"
        )
        assert live.shown() == before
        assert not redis_server.redis.exists(names.peers_key(site.name)), "nothing was imported"
    would = ask("--leave-out", "--dry-run")
    assert (would["outcome"], would["created"], len(would["left_out"])) == ("would_import", MANY, 3)
    assert not redis_server.redis.exists(names.peers_key(site.name))

    done = ask("--leave-out")
    assert (done["outcome"], done["created"]) == ("imported", MANY)
    assert sorted(entry["public_key"] for entry in done["left_out"]) == sorted(bare)
    assert live.shown() == before, "they are on the device still"
    report = _reconciled(site, redis_server)
    assert live.shown() == before, "and no reconciliation of this writer's takes them away"
    assert report["found"] == {"unknown": 3}
    for key in bare:
        live.hosts.on_gateway("wg", "set", "wg0", "peer", key, "remove")
    assert ask()["left_out"] == []


def _reconciled(site: GatewayProcess, server: RedisServer) -> Any:
    observer = Observer(site)
    with ending(observer):
        return peerlane("gateway", "reconcile", site.name, redis_url=server.url)


def test_a_device_whose_key_is_another_than_the_files_is_left_alone(live: LiveDevice, gateway: MakeGateway) -> None:
    site = gateway(dataplane="kernel", prefix=live.hosts.prefix, endpoint=ENDPOINT, listen_port=51820, start=False)
    other = make_key_pair()
    file = Path(site.settings["private_key_file"])
    file.touch(mode=0o600)
    file.write_text(other.private_key + "\n")
    site.start(wait=False)
    assert site.await_end(within=60) == 2
    assert live.own.public_key in site.log
    assert other.public_key in site.log
    assert live.own.private_key not in site.log
    assert live.hosts.reaches("10.8.0.1", source=CLIENT)
