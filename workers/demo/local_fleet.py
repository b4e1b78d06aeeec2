"""Runs a fleet on this machine for the demo: Redis, gateways, beat and Flower as child processes.

If the kernel has WireGuard and this process may use it, each gateway uses it in its own network namespace, so that they
disturb neither each other nor the host's devices and routes. Otherwise they keep their peers in memory.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import peerlane
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.admission.lanes import close_app, lanes_of
from peerlane.tasks.client.gateway import Gateway
from peerlane.tasks.status.fleet_snapshot import read_gateway
from peerlane.workers.demo.process import Child
from peerlane.workers.demo.redis_server import EmbeddedServer
from peerlane.workers.demo.signals import Ending, Undisturbed

NAMES = ("iad", "fra", "sin", "gru", "syd", "nrt", "jnb", "lhr")

#: Seconds in which a process has to be ready, on a slow machine that starts all of them at once.
START = 90.0
#: Seconds in which everything has to end before it is made to.
GRACE = 10.0

#: Called with the name of the part that is being started.
Report = Callable[[str], None]


def choose_dataplane() -> tuple[str, str]:
    """``kernel`` or ``memory``, and why, as the end of a sentence."""
    from peerlane.workers.dataplane.kernel import kernel_available  # noqa: PLC0415 - of no use to who only reads the names

    missing = kernel_available()
    if missing is not None:
        return "memory", f"because {missing}"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return (
            "memory",
            "because unshare and nsenter (util-linux) are not installed, and the host's own network is left alone",
        )
    return "kernel", "each gateway in a network namespace of its own"


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Fleet:
    """The fleet, as a context manager: it ends all processes and removes all files."""

    def __init__(
        self,
        gateways: Sequence[str],
        dataplane: str,
        *,
        flower: bool = True,
        ending: Ending | None = None,
    ) -> None:
        """``ending`` is checked while the start waits, and defers signals while a process is started."""
        self.names = tuple(gateways)
        self.dataplane = dataplane
        # The demo's data is not kept, so syncing to this machine's disk would only slow the figures.
        self.server = EmbeddedServer(appendfsync="everysec")
        self.gateways: dict[str, Child] = {}
        self.flower_url: str | None = None
        self._ending = ending or Ending()
        self._with_flower = flower and find_spec("flower") is not None
        self._others: list[Child] = []
        self._directory: Path | None = None
        self._app: PeerlaneApp | None = None

    @property
    def directory(self) -> Path:
        """The directory of keys and logs, which is removed at the end."""
        if self._directory is None:
            raise RuntimeError("the fleet was not started")
        return self._directory

    @property
    def url(self) -> str:
        """The server's, for ``PEERLANE_REDIS_URL``."""
        return self.server.url

    @property
    def app(self) -> PeerlaneApp:
        """A client's Celery app for this fleet."""
        if self._app is None:
            self._app = PeerlaneApp(read(redis_url=self.url))
        return self._app

    def gateway(self, name: str) -> Gateway:
        """A client's Gateway for one of the gateways."""
        return Gateway(name, app=self.app)

    def __enter__(self) -> Self:
        return self

    def start(self, report: Report = lambda _: None) -> None:
        """Start everything, and return once all of it is ready.

        Raises:
            StartFailed: a part did not come up; says what it said last.
        """
        with self._ending.undivided():
            self._directory = Path(tempfile.mkdtemp(prefix="peerlane-demo-"))
            self.server.start()
        report("gateways")
        environment = self.environment
        for number, name in enumerate(self.names):
            with self._ending.undivided():
                self.gateways[name] = Child(name, self._writer_command(number, name), self.directory, environment)
        report("beat" + (" and Flower" if self._with_flower else ""))
        celery = [sys.executable, "-P", "-m", "celery", "-A", "peerlane.config.celery.app"]
        beat = [*celery, "beat", "--pidfile=", "--loglevel=info"]
        with self._ending.undivided():
            self._others.append(Child("beat", beat, self.directory, environment))
        observers: dict[str, Child] = {}
        port = free_port() if self._with_flower else 0
        if self._with_flower:
            words = ["flower", "--address=127.0.0.1", f"--port={port}", "--read_only", "--enable_events=False"]
            columns = "--tasks_columns=name,uuid,state,received,runtime,result,kwargs"
            with self._ending.undivided():
                self._others.append(Child("flower", [*celery, *words, columns], self.directory, environment))
        for name, child in self.gateways.items():
            report(f"gateway {name}")
            child.until("its lane was served", lambda name=name: self._active(name), within=START)
            observer, command = f"{name}-observer", self._observer_command(child.pid, name)
            with self._ending.undivided():
                observers[name] = Child(observer, command, self.directory, environment)
                self._others.append(observers[name])
        report("beat")
        began = self._others[0]
        began.until("it had a schedule", lambda: "gateways are looked after" in began.log.read_text(), within=START)
        if self._with_flower:
            report("Flower")
            url = f"http://127.0.0.1:{port}"
            self._others[1].until("its page answered", lambda: _healthy(url), within=START)
            self.flower_url = url
        for name, child in observers.items():
            report(f"observer of {name}")
            child.until("it observed", lambda name=name: self._observed(name), within=START)

    def _writer_command(self, number: int, name: str) -> list[str]:
        command = [*self._gateway_command(name, "writer"), "--interface", "wg0"]
        command += ["--pool", f"10.{8 + number}.0.0/16", "--pool", f"fd00:{8 + number}::/64"]
        command += ["--endpoint", f"{name}.example.net:51820"]
        command += ["--private-key-file", str(self.directory / f"{name}.key")]
        # A namespace of its own, and the socket of the server is a file: it can be reached from there.
        return (["unshare", "--net", "--"] if self.dataplane == "kernel" else []) + command

    def _observer_command(self, writer: int, name: str) -> list[str]:
        command = [*self._gateway_command(name, "observer"), "--interface", "wg0"]
        # Where the writer's device is. unshare became the writer, so the namespace is that of its process.
        return (["nsenter", f"--net=/proc/{writer}/ns/net", "--"] if self.dataplane == "kernel" else []) + command

    def _gateway_command(self, name: str, only: str) -> list[str]:
        command = [sys.executable, "-P", "-m", "peerlane.workers.cli", "gateway", "run", name, "--only", only]
        return [*command, "--dataplane", self.dataplane]

    @property
    def environment(self) -> dict[str, str]:
        """This process' environment without Peerlane's settings; the host's settings do not change the demo."""
        empty = self.directory / "empty.toml"
        empty.touch()
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PEERLANE_", "FLOWER_", "CELERY_"))
        }
        # Packages are imported from where this process has them, installed or not.
        path = os.pathsep.join(
            part for part in (str(Path(peerlane.__file__).parents[1]), inherited.get("PYTHONPATH")) if part
        )
        return inherited | {
            "PEERLANE_SETTINGS": str(empty),
            "PEERLANE_REDIS_URL": self.url,
            "PYTHONPATH": path,
            "PYTHONWARNINGS": "ignore",
        }

    def _active(self, name: str) -> bool:
        self._ending.check()
        return lanes_of(self.app).look(name).state == "active"

    def _observed(self, name: str) -> bool:
        self._ending.check()
        return read_gateway(self.app, name).observed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything, the server last, and remove every file. Takes seconds; signals are deferred."""
        with Undisturbed():
            if self._app is not None:
                app, self._app = self._app, None
                close_app(app)
            children = [*self.gateways.values(), *self._others]
            self.gateways, self._others = {}, []
            for child in children:
                child.ask_to_stop()
            for child in children:
                child.stop(grace=GRACE)
            self.server.stop()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthcheck", timeout=2) as answer:  # noqa: S310 - http on loopback
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
