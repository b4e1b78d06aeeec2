"""What becomes of peers after their creation, on a real device: counters, sweeps, drift, a device that is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import MakeClient, MakeGateway
from keys import some_key
from observers import Observer, ending
from servers import RedisServer
from sites import ENDPOINT, Sites, peerlane, sites, steady_ping
from stale import SETTINGS, create_during_a_sweep, crowd, quiet_creates, summary
from waiting import eventually

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin import maintenance as upkeep
from peerlane.workers.store.activity import StoredActivity, decode

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

PEERS, STALE_SHARE = 5_000, 0.9


@pytest.fixture
def hosts() -> Iterator[Sites]:
    with sites() as made:
        yield made


def activity(server: RedisServer, name: str, key: str) -> StoredActivity:
    """What the observer has stored of a peer."""
    stored = server.redis.hget(names.seen_key(name), key)
    return (decode(stored) if stored else None) or StoredActivity(0, 0, 0, 0, 0, 0)


def device(hosts: Sites) -> dict[str, list[str]]:
    """``wg show``: public key → preshared key, endpoint, allowed IPs, handshake, rx, tx, keepalive."""
    rows = [line.split("\t") for line in hosts.on_gateway("wg", "show", "wg0", "dump").splitlines()[1:]]
    return {row[0]: row[1:] for row in rows}


class TestCounters:
    def test_outlive_restarts_and_a_new_device_and_last_seen_stays(
        self, hosts: Sites, gateway: MakeGateway, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT, observe_every=1)
        conf = tmp_path / "pl0.conf"
        key = peerlane("peer", "create", site.name, "--conf", str(conf), redis_url=redis_server.url)["public_key"]

        def known(since: StoredActivity, awaited: str) -> StoredActivity:
            """Once more has gone by than ``since``."""
            eventually(lambda: activity(redis_server, site.name, key).rx > since.rx, awaited)
            return activity(redis_server, site.name, key)

        observer = Observer(site)
        with ending(observer), hosts.tunnel(conf):
            assert hosts.reaches("10.8.0.1")
            first = known(StoredActivity(0, 0, 0, 0, 0, 0), "traffic to be counted")
            assert first.last_seen > 0
            assert first.endpoint.startswith("192.0.2.2:")

            site.stop()
            site.start()
            assert hosts.reaches("10.8.0.1")
            second = known(first, "traffic after the writer's restart")
            assert (second.tx >= first.tx, second.last_seen) == (True, first.last_seen)

            hosts.on_gateway("ip", "link", "del", "wg0")
            eventually(lambda: activity(redis_server, site.name, key).raw_handshake == 0, "the new device")
            third = activity(redis_server, site.name, key)
            assert (third.rx, third.tx, third.last_seen) >= (second.rx, second.tx, second.last_seen)
            observer.stop()
        again = Observer(site)
        with ending(again), hosts.tunnel(conf):
            assert hosts.reaches("10.8.0.1")
            fourth = known(third, "traffic through the new device")
            assert fourth.raw_rx < fourth.rx
            assert fourth.tx > third.tx
            assert fourth.last_seen > third.last_seen


class TestDrift:
    def test_is_listed_and_mended_by_the_smallest_change(
        self,
        hosts: Sites,
        gateway: MakeGateway,
        client: MakeClient,
        redis_server: RedisServer,
        app: PeerlaneApp,
        tmp_path: Path,
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, endpoint=ENDPOINT, serves=("10.77.0.0/16",))
        conf = tmp_path / "pl0.conf"
        mine = peerlane("peer", "create", site.name, "--conf", str(conf), redis_url=redis_server.url)["public_key"]
        peers = client(site)
        removed, widened, rekeyed, keeping, routed = (some_key() for _ in range(5))
        for key in (removed, widened, rekeyed, keeping):
            peers.create_peer(key, preshared_key=some_key(), keepalive=25)
        peers.create_peer(routed, allowed_ips=["10.77.5.0/24"])
        unknown = some_key()
        with ending(Observer(site)), hosts.tunnel(conf):
            assert hosts.reaches("10.8.0.1")
            before, received = device(hosts), hosts.session(mine)[1]
            assert upkeep.reconcile(app, site.name, timeout=30)["found"] == {}
            with steady_ping(hosts, "10.8.0.1") as words:
                (tmp_path / "psk").write_text(some_key())
                wg = ("wg", "set", "wg0", "peer")
                hosts.on_gateway(*wg, removed, "remove", "peer", unknown, "allowed-ips", "10.8.200.0/24")
                hosts.on_gateway(*wg, widened, "allowed-ips", "10.8.100.0/24")
                hosts.on_gateway(*wg, rekeyed, "preshared-key", str(tmp_path / "psk"))
                hosts.on_gateway(*wg, keeping, "persistent-keepalive", "off")
                hosts.on_gateway("ip", "route", "del", "10.77.5.0/24", "dev", "wg0")
                hosts.on_gateway("ip", "route", "add", "10.77.9.0/24", "dev", "wg0", "proto", "157")
                expected = {
                    **dict.fromkeys(("missing", "unknown", "allowed_ips", "preshared_key", "keepalive"), 1),
                    **dict.fromkeys(("missing_route", "unknown_route"), 1),
                }
                listed = upkeep.reconcile(app, site.name, dry_run=True, timeout=30)
                assert (listed["outcome"], listed["found"]) == ("listed", expected)
                assert {drift["subject"] for drift in listed["drifts"]} == {
                    *(removed, unknown, widened, rekeyed, keeping, "10.77.5.0/24", "10.77.9.0/24")
                }
                assert unknown in device(hosts)
                report = upkeep.reconcile(app, site.name, timeout=30)
                assert report["found"] == expected
                assert report["mended"] == {"removed": 1, "set": 4, "routes": 2}
            after = device(hosts)
            assert {key: (row[0], row[2], row[6]) for key, row in after.items()} == {
                key: (row[0], row[2], row[6]) for key, row in before.items()
            }
            routes = hosts.on_gateway("ip", "route", "show", "dev", "wg0")
            assert "10.77.5.0/24" in routes
            assert "10.77.9.0/24" not in routes
            assert upkeep.reconcile(app, site.name, timeout=30)["found"] == {}
            assert hosts.session(mine)[1] > received
            assert " 0% packet loss" in "\n".join(words)

    def test_a_device_that_is_down_or_lacks_an_address_is_set_up_again(
        self, hosts: Sites, gateway: MakeGateway, app: PeerlaneApp
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix)
        with ending(Observer(site)):
            hosts.on_gateway("ip", "link", "set", "wg0", "down")
            report = upkeep.reconcile(app, site.name, timeout=30)
            assert "the device is down" in report["device"]
            assert report["mended"]["device"] == 1
            assert "UP" in hosts.on_gateway("ip", "link", "show", "wg0").split("<")[1].split(">")[0].split(",")
            hosts.on_gateway("ip", "addr", "flush", "dev", "wg0", "scope", "global")
            assert upkeep.reconcile(app, site.name, timeout=30)["mended"]["device"] == 1
            assert "10.8.0.1/16" in hosts.on_gateway("ip", "addr", "show", "dev", "wg0")
            assert upkeep.reconcile(app, site.name, timeout=30)["device"] == []

    def test_of_key_port_and_mtu_is_told_alarmed_and_mended_and_sessions_come_back(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, tmp_path: Path
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, mtu=1400)
        api = client(site)
        info = api.info()
        with ending(observer := Observer(site)):
            assert upkeep.reconcile(app, site.name, timeout=30)["device"] == []
            (tmp_path / "other").write_text(private := some_key())
            other = hosts.on_gateway("sh", "-c", f"echo {private} | wg pubkey").strip()
            hosts.on_gateway("wg", "set", "wg0", "listen-port", "51999", "private-key", str(tmp_path / "other"))
            hosts.on_gateway("ip", "link", "set", "wg0", "mtu", "1300")
            expected = [
                f"the device's key is that of {other}, clients were given {info.public_key}",
                f"the device listens on UDP port 51999, and was registered with {info.listen_port}",
                "the device's MTU is 1300, PEERLANE_MTU is 1400",
            ]
            assert upkeep.reconcile(app, site.name, dry_run=True, timeout=30)["device"] == expected
            report = upkeep.reconcile(app, site.name, timeout=30)
            assert (report["device"], report["mended"]) == (expected, {"device": 1})
            assert hosts.on_gateway("wg", "show", "wg0", "listen-port").strip() == str(info.listen_port)
            assert hosts.on_gateway("wg", "show", "wg0", "public-key").strip() == info.public_key
            assert "mtu 1400" in hosts.on_gateway("ip", "link", "show", "wg0")
            assert "UDP port 51999" in observer.alarms()["device"]["message"]
            assert private not in observer.log + site.log
            report = upkeep.reconcile(app, site.name, timeout=30)
            assert (report["device"], report["found"]) == ([], {})
            assert "device" not in observer.alarms()
            hosts.on_gateway("wg", "set", "wg0", "private-key", "/dev/null")
            assert "key is gone" in upkeep.reconcile(app, site.name, timeout=30)["device"][0]
            assert hosts.on_gateway("wg", "show", "wg0", "public-key").strip() == info.public_key

    def test_is_mended_also_while_a_peer_is_there_that_cannot_be_adopted(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient, app: PeerlaneApp
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix, unknown_peers="adopt")
        key, outside, inside = some_key(), some_key(), some_key()
        client(site).create_peer(key)
        with ending(Observer(site)):
            hosts.on_gateway("wg", "set", "wg0", "peer", outside, "allowed-ips", "172.16.0.0/24", "peer", key, "remove")
            report = upkeep.reconcile(app, site.name, timeout=30)
            assert report["not_adopted"]["code"] == "conflict"
            assert report["mended"] == {"set": 1}
            assert device(hosts).keys() == {key, outside}
            hosts.on_gateway(
                "wg", "set", "wg0", "peer", outside, "remove", "peer", inside, "allowed-ips", "10.8.9.9/32"
            )
            report = upkeep.reconcile(app, site.name, timeout=30)
            assert ("not_adopted" in report, report["mended"]) == (False, {"adopted": 1})

    def test_peers_that_redis_has_forgotten_are_not_removed_but_an_alarm(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
    ) -> None:
        site = gateway(dataplane="kernel", prefix=hosts.prefix)
        peers = client(site)
        made = {some_key() for _ in range(20)}
        for key in made:
            peers.create_peer(key)
        with ending(observer := Observer(site)):
            for key in (names.peers_key(site.name), names.addresses_key(site.name)):
                redis_server.redis.delete(key)
            report = upkeep.reconcile(app, site.name, timeout=30)
            assert (report["found"], report["mended"]) == ({"unknown": 20}, {})
            assert "has it lost its data?" in observer.alarms()["unknown_peers"]["message"]
            assert device(hosts).keys() == made


class TestSweeps:
    def test_nothing_is_swept_while_the_device_is_not_what_redis_says(
        self, hosts: Sites, gateway: MakeGateway, redis_server: RedisServer, app: PeerlaneApp
    ) -> None:
        site = gateway(start=False, dataplane="kernel", prefix=hosts.prefix, **SETTINGS)
        expected = crowd(redis_server.redis, site.name, 100, stale=0.3)
        site.start()
        site.pause()
        hosts.on_gateway("ip", "link", "del", "wg0")
        with ending(observer := Observer(site)):
            report = upkeep.sweep(app, site.name, timeout=30)
            assert (report["outcome"], report["refusal"]["kind"]) == ("refused", "counters")
            hosts.on_gateway("ip", "link", "add", "wg0", "type", "wireguard")
            report = upkeep.sweep(app, site.name, timeout=30)
            assert (report["outcome"], report["refusal"]["kind"]) == ("refused", "counters")
            assert "shows 0 of the 100 peers" in observer.alarms()["counters"]["message"]
            hosts.on_gateway("ip", "link", "del", "wg0")
            site.resume()
            eventually(lambda: "wg0" in hosts.on_gateway("wg", "show", "interfaces"), "the device")

            def whole() -> dict[str, Any]:
                report = upkeep.sweep(app, site.name, timeout=30)
                return report if report["outcome"] == "swept" and "stopped" not in report else {}

            eventually(whole, "a sweep that goes through")
            # The observer sweeps by itself once the writer is back: the two share the stale peers.
            eventually(lambda: device(hosts).keys() == expected.staying, "exactly the stale peers gone")
            assert observer.alarms() == {}

    def test_exactly_the_stale_peers_go_while_a_caller_creates_others(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
    ) -> None:
        site = gateway(start=False, dataplane="kernel", prefix=hosts.prefix, **SETTINGS)
        expected = crowd(redis_server.redis, site.name, PEERS, stale=STALE_SHARE)
        site.start()
        peers = client(site)
        with ending(Observer(site)):
            quiet: list[float] = []
            busy: list[float] = []
            made = quiet_creates(peers, 3, quiet)
            report, more = create_during_a_sweep(app, peers, redis_server.redis, busy)
            print(summary("nothing else goes on", quiet), summary("during the sweep", busy), sep="\n")  # noqa: T201 - asked for
            assert report["removed"] == {reason: len(expected.stale) // 3 for reason in ("expired", "never", "idle")}
            assert report["kept"] == {}
            left = expected.staying | {*made, *more}
            assert {peer.public_key for peer in peers.peers()} == left
            assert device(hosts).keys() == left
            assert len(more) >= 10

    def test_an_observer_left_behind_on_the_host_of_an_earlier_writer_removes_nobody(
        self, hosts: Sites, gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, app: PeerlaneApp
    ) -> None:
        settings: dict[str, Any] = {**SETTINGS, "sweep_never_after": 1, "dataplane": "kernel"}
        site = gateway(prefix=hosts.prefix, **settings)
        behind = gateway(site.name, prefix=["ip", "netns", "exec", hosts.client], start=False, **settings)
        key, now = some_key(), int(redis_server.redis.time()[0])
        client(site).create_peer(key)
        # Its client has come, and the observer that is where it should be knows; the device left behind knows nothing.
        hosts.on_client("ip", "link", "add", "wg0", "type", "wireguard")
        hosts.on_client("wg", "set", "wg0", "peer", key, "allowed-ips", "10.8.0.2/32")
        with ending(observer := Observer(behind, wait=False)):
            observer.says("this observer does nothing meanwhile")
            eventually(lambda: int(redis_server.redis.time()[0]) > now + 3, "the peer's grace to be over")
            request = names.request_id(site.name, "asked-by-beat")
            slot = now // SETTINGS["sweep_every"]
            app.send_task(names.SWEEP, kwargs={"gateway": site.name, "slot": slot}, task_id=request)
            sent = int(redis_server.redis.time()[0])
            eventually(lambda: int(redis_server.redis.time()[0]) > sent + 3, "time in which it could have been taken")
            # It lies there for the observer beside the writer; this one takes nothing.
            assert redis_server.redis.llen(names.observer_queue(site.name)) == 1
            assert redis_server.redis.get(names.result_key(request)) is None
            assert device(hosts).keys() == {key}

    def test_counters_of_many_peers_are_read_quickly_and_in_little_memory(
        self, hosts: Sites, gateway: MakeGateway, redis_server: RedisServer
    ) -> None:
        settings: dict[str, Any] = {**SETTINGS, "observe_every": 1}
        site = gateway(start=False, dataplane="kernel", prefix=hosts.prefix, **settings)
        crowd(redis_server.redis, site.name, PEERS, stale=0)
        site.start()
        with ending(observer := Observer(site)):
            reading: dict[str, Any] = eventually(lambda: observer.report("reading"), "a reading")
            assert reading["peers"] == PEERS
            assert reading["seconds"] < 2
            size = resident(observer)
            eventually(lambda: observer.report("reading")["at"] > reading["at"] + 5, "five more readings")
            assert resident(observer) < size * 1.1


def resident(process: Observer) -> int:
    """KiB of memory."""
    size = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(), flags=re.MULTILINE)
    assert size
    return int(size[1])
