"""What Redis and the device of a site hold, looked at from outside; and hands that change the device from there."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Literal, cast

import fault_device
from devices import run
from fault_evidence import Facts, Final, Life, PeerState
from redis import Redis

from peerlane.config import names
from peerlane.config.settings import read
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import RemovePeer, SetPeer
from peerlane.workers.dataplane.factory import device_spec

Plane = Literal["kernel", "memory"]

INTERFACE = "wg0"
SERVES = ("10.77.0.0/16", "fd77::/48")


class Outside:
    """One gateway's peers, as stored and as on the device."""

    def __init__(self, redis: Redis, gateway: str, plane: Plane, *, namespace: str, device: Path, key: Path) -> None:
        """``namespace`` and the interface in it are looked at on the kernel's plane, the file ``device`` else."""
        self._redis, self._gateway, self._plane = redis, gateway, plane
        self._namespace, self._device, self._key = namespace, device, key

    def in_redis(self) -> tuple[dict[str, PeerState], dict[str, str]]:
        """Peers and owners of addresses, as stored."""
        records = cast("dict[str, str]", self._redis.hgetall(names.peers_key(self._gateway)))
        owners = cast("dict[str, str]", self._redis.hgetall(names.addresses_key(self._gateway)))
        peers: dict[str, PeerState] = {}
        for key, text in records.items():
            record = json.loads(text)
            peers[key] = PeerState(
                frozenset(record["allowed_ips"]),
                record.get("preshared_key", ""),
                record.get("keepalive", 0),
                Life(record.get("expires_at"), record.get("pinned", False), record["created_at"]),
            )
        return peers, owners

    def on_device(self) -> tuple[dict[str, PeerState], frozenset[str]]:
        """Peers and per-peer routes, as the device holds them."""
        if self._plane == "memory":
            spec, _, _ = device_spec(read(gateway=self._gateway, private_key_file=self._key, serves=SERVES))
            peers, routes = fault_device.look(self._device, spec)
            installed = {
                key: PeerState(frozenset(map(str, peer.allowed_ips)), peer.preshared_key or "", peer.keepalive)
                for key, peer in peers.items()
            }
            return installed, frozenset(map(str, routes))
        script = (
            f"wg show {INTERFACE} dump; echo ==; ip -4 route show dev {INTERFACE}; ip -6 route show dev {INTERFACE}"
        )
        dump, _, routing = run("ip", "netns", "exec", self._namespace, "sh", "-c", script).partition("==\n")
        installed: dict[str, PeerState] = {}
        for row in (line.split("\t") for line in dump.splitlines()[1:]):
            addresses = frozenset(row[3].split(",")) if row[3] != "(none)" else frozenset[str]()
            secret = "" if row[1] == "(none)" else row[1]
            installed[row[0]] = PeerState(addresses, secret, 0 if row[7] == "off" else int(row[7]))
        return installed, frozenset(filter(_served, (line.split()[0] for line in routing.splitlines() if line)))

    def facts(self, writer: int | None = None) -> Facts:
        """What the gateway's hash tells, and what is so; ``writer`` is the process that serves, where that is known."""
        fields = cast("dict[str, str]", self._redis.hgetall(names.gateway_key(self._gateway)))
        epoch = int(cast("str", self._redis.get(names.epoch_key(self._gateway)) or "0"))
        if self._plane == "memory":
            return Facts(fields, epoch, writer)
        script = f"wg show {INTERFACE} public-key; wg show {INTERFACE} listen-port"
        key, port = run("ip", "netns", "exec", self._namespace, "sh", "-c", script).split()
        return Facts(fields, epoch, writer, key, int(port))

    def final(self, writer: int | None = None) -> Final:
        """What is there now: looked at again, for a while, if a request was carried out meanwhile."""
        until = time.monotonic() + 3.0
        while True:
            before = self._in_hand()
            final = self._look(writer)
            if (before == self._in_hand() and not any(before[1:])) or time.monotonic() > until:
                return final

    def _in_hand(self) -> tuple[str | None, int, int, int]:
        """The commit sequence, and how many messages are taken or wait."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hget(names.gateway_key(self._gateway), "seq")
        pipe.zcard(names.unacked_key(self._gateway, "_index"))
        pipe.llen(names.lane_queue(self._gateway))
        pipe.llen(names.bulk_queue(self._gateway))
        return tuple(pipe.execute())

    def _look(self, writer: int | None) -> Final:
        seconds, micros = self._redis.time()
        now, steady = seconds + micros / 1e6, time.monotonic()
        stored, owners = self.in_redis()
        installed, routes = self.on_device()
        needed = frozenset(address for peer in stored.values() for address in peer.addresses if _served(address))
        return Final(stored, owners, installed, routes, needed, now, now - steady, self.facts(writer))

    def delete_device(self) -> None:
        """As somebody's ``ip link del``."""
        if self._plane == "kernel":
            subprocess.run(["ip", "-n", self._namespace, "link", "del", INTERFACE], check=False, capture_output=True)
        else:
            self._device.unlink(missing_ok=True)

    def take_off(self, key: str) -> None:
        """Take a peer off the device behind its writer's back."""
        if self._plane == "kernel":
            run("ip", "netns", "exec", self._namespace, "wg", "set", INTERFACE, "peer", key, "remove")
        else:
            fault_device.tamper(self._device, [RemovePeer(key)])

    def put_on(self, key: str, address: str) -> None:
        """Put a peer that nobody knows on the device, or give one other addresses."""
        if self._plane == "kernel":
            run("ip", "netns", "exec", self._namespace, "wg", "set", INTERFACE, "peer", key, "allowed-ips", address)
        else:
            fault_device.tamper(self._device, [SetPeer(key, frozenset({Prefix.parse(address)}))])


def _served(text: str) -> bool:
    """Whether a prefix lies in what is served beyond the pools, and so has a route of its own."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return False
    areas = (ipaddress.ip_network(area) for area in SERVES)
    return any(network.version == area.version and network.subnet_of(cast("Any", area)) for area in areas)
