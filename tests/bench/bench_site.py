"""What benches set up alike: a server in a directory of its own, gateways on it, their callers, a no-op worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gateways import ROOT, GatewayProcess, clean_environment, close
from keys import some_key
from program_path import PROGRAM_PATH
from servers import RedisServer
from waiting import PATIENCE

from peerlane import Gateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read

#: The gateway that is measured, where there is one.
NAME = "bench"


class Site:
    """A running server and what is made on it; ``site`` ends all of it."""

    def __init__(self, directory: Path, server: RedisServer, ends: ExitStack) -> None:
        self.directory, self.server = directory, server
        self._ends = ends
        self.app = PeerlaneApp(read(redis_url=server.url))
        ends.callback(close, self.app)

    def gateway(self, name: str = NAME, *, dataplane: str = "memory", **settings: Any) -> GatewayProcess:
        """A gateway that is not started yet. A WireGuard device is removed at the end."""
        made = GatewayProcess(name, self.server.url, self.directory, dataplane=dataplane, **settings)
        if dataplane == "kernel":
            self._ends.callback(_remove_device, settings["interface"])
        self._ends.callback(made.finish)
        return made

    def stock(self) -> Stock:
        """A no-op worker that takes requests."""
        made = Stock(self.server)
        self._ends.callback(made.end)
        made.start()
        return made

    @property
    def client(self) -> Gateway:
        """A caller of the gateway that is measured."""
        return Gateway(NAME, app=self.app, timeout=PATIENCE)


@contextmanager
def site(appendfsync: str = "everysec", *, parent: Path | None = None) -> Generator[Site]:
    """A server that syncs its append-only file so; its directory is below ``parent``, where one is named."""
    with ExitStack() as ends:
        directory = Path(tempfile.mkdtemp(prefix="peerlane-bench-", dir=parent))
        ends.callback(shutil.rmtree, directory, ignore_errors=True)
        server = RedisServer(directory, appendfsync=appendfsync)
        ends.callback(server.kill)
        server.start()
        yield Site(directory, server, ends)


def _remove_device(interface: str) -> None:
    subprocess.run(["ip", "link", "del", interface], check=False, capture_output=True)


class Stock:
    """A stock Celery worker as a process of its own."""

    _COMMAND = (
        *(sys.executable, "-m", "celery", "-A", "bench_stock_worker", "worker", "-l", "warning", "-Q", "stock"),
        *("--without-gossip", "--without-mingle"),
    )

    def __init__(self, server: RedisServer) -> None:
        # The process has them, and clients that are started later.
        os.environ |= {"STOCK_BROKER": f"redis+socket://{server.socket}", "STOCK_EVENTS": "1"}
        from bench_stock_worker import nothing  # noqa: PLC0415 - reads the environment when imported

        self.task: Any = nothing
        self._process = subprocess.Popen(
            self._COMMAND,
            cwd=ROOT / "tests" / "bench",
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def start(self) -> None:
        """Return once it has answered a request."""
        self.send().get(timeout=30)

    def send(self) -> Any:
        """One request."""
        return self.task.apply_async(kwargs={"gateway": NAME, "public_key": some_key()})

    def end(self) -> None:
        """Stop the worker, if it still runs."""
        self._process.terminate()
        self._process.wait(20)


def program_environment() -> dict[str, str]:
    """For a file of the benches that is run as a process: no setting of ours, and where it finds what it imports."""
    return clean_environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), PROGRAM_PATH])}


def start_program(script: str, *words: str) -> subprocess.Popen[bytes]:
    """A file of the benches as a process of its own, told by ``words`` what to do."""
    return subprocess.Popen([sys.executable, script, *words], cwd=ROOT, env=program_environment())
