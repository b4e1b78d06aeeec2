"""A gateway as operators start it, ``celery -A peerlane.workers.gateway worker``, as a process; and its clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import preloaded
from redis.exceptions import RedisError
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.config.settings import Settings, read
from peerlane.tasks.admission.lane_state import LIVE_FOR_MS, LaneState
from peerlane.tasks.admission.lanes import Lanes, close_app

ROOT = Path(__file__).resolve().parents[2]


def clean_environment() -> dict[str, str]:
    """This process' environment without any setting of Peerlane's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PEERLANE_")}


def named_endpoint() -> dict[str, str]:
    """The setting ``endpoint`` on a host without a name, as a guest's kernel starts with: a gateway needs one there."""
    return {} if socket.gethostname().strip("()") not in ("", "none") else {"endpoint": "vpn.example.com:51820"}


def as_variable(value: object) -> str:
    """A setting's value as its variable has it."""
    return ",".join(str(part) for part in cast("Sequence[object]", value)) if isinstance(value, tuple) else str(value)


class GatewayProcess:
    """One gateway's writer. The process is started by ``start``, and ended by ``stop`` or ``kill``."""

    def __init__(
        self, name: str, redis_url: str, directory: Path, *, prefix: Sequence[str] = (), **settings: Any
    ) -> None:
        """``settings`` become ``PEERLANE_*`` variables.

        ``prefix`` goes before the command, as in ``["ip", "netns", "exec", "site"]``; it has to replace itself with
        the command (exec), so that signals reach the worker.
        """
        self.name = name
        self.directory = directory
        self.prefix = list(prefix)
        self.settings = {
            "redis_url": redis_url,
            "gateway": name,
            "private_key_file": directory / f"{name}.key",
            **named_endpoint(),
            **settings,
        }
        #: For a test that makes the writer fail in an unforeseen way.
        self.may_show_tracebacks = False
        self.loglevel = "info"
        #: Which Python, and what it runs: the writer alone, unless a test says otherwise.
        self.interpreter = sys.executable
        self.program = ["-m", "celery", "-A", "peerlane.workers.gateway", "worker", "-l"]
        self._log = directory / f"{name}.log"
        tls = {name: value for name, value in settings.items() if name in ("redis_ca", "redis_client_cert")}
        self._redis = connect(read(redis_url=redis_url, **tls), timeout=10)
        self._lanes = Lanes(self._redis, result_ttl=600)
        self._process: preloaded.Running | None = None
        self._paused_at: float | None = None
        self._beats_faked = False

    @property
    def pid(self) -> int:
        """The running worker's process."""
        assert self._process is not None, "the gateway was not started"
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How the process ended; None while it runs."""
        assert self._process is not None, "the gateway was not started"
        return self._process.poll()

    @property
    def log(self) -> str:
        """All that this gateway's workers have said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def look(self) -> LaneState:
        """The lane as clients see it."""
        return self._lanes.look(self.name)

    def start(self, *, wait: bool = True, **settings: Any) -> None:
        """Start the worker and, unless told otherwise, return once its lane is served."""
        assert self._process is None or self._process.poll() is not None, "the gateway is running already"
        self.settings |= settings
        before = int(self._redis.get(names.epoch_key(self.name)) or 0) if wait else 0
        environment = clean_environment() | {
            f"PEERLANE_{key.upper()}": as_variable(value) for key, value in self.settings.items()
        }
        with self._log.open("ab") as log:
            command = [*self.prefix, self.interpreter, *self.program, self.loglevel]
            self._process = preloaded.start(command, ROOT, environment, log)
        if wait:
            self.await_serving(since_epoch=before)

    def await_serving(self, *, since_epoch: int = 0, within: float = PATIENCE) -> None:
        """Return once a writer that started after ``since_epoch`` serves the lane."""

        def serving() -> bool:
            assert self.status is None, f"the gateway ended with status {self.status}:\n{self.log[-4000:]}"
            lane = self.look()
            return lane.live and lane.facts.get("phase") == "serving" and int(lane.facts.get("epoch", 0)) > since_epoch

        eventually(serving, f"the lane of {self.name} being served", within=within)

    def stop(self, *, within: float = PATIENCE) -> int:
        """Ask the worker to end, as systemd would; its exit status."""
        return self._end(signal.SIGTERM, within)

    def kill(self) -> None:
        """End the worker without a word."""
        self._end(signal.SIGKILL, 10.0)

    def pause(self, *, alive: bool = False) -> None:
        """Freeze the worker; return once each of its threads stands still.

        ``alive``: callers go on taking it for a living one, however long the test takes.
        """
        self._paused_at = time.monotonic()
        os.kill(self.pid, signal.SIGSTOP)
        eventually(lambda: stands_still(self.pid), f"{self.name} standing still")
        if alive:
            self._tell_heartbeat(ahead=3600)

    def hold(self) -> None:
        """Freeze the worker so that what is sent stays in its lane: Redis has nobody waiting to hand it to.

        Callers go on taking it for a living one.
        """
        self.pause(alive=True)
        # Twice: what the worker had sent last, Redis may read only after the first question.
        for _ in range(2):
            clients: Any = self._redis.client_list()
            for connection in clients:
                if connection["cmd"] == "brpop":  # another gateway's asks again
                    self._redis.client_unblock(int(connection["id"]))

    def fall_silent(self) -> None:
        """Have the last sign of life of a killed or frozen worker be so old that nobody takes it for a living one."""
        self._tell_heartbeat(ahead=-LIVE_FOR_MS / 1000 - 1)
        if self._paused_at is not None:
            self._paused_at -= LIVE_FOR_MS / 1000

    def resume(self) -> None:
        """Let it go on after ``pause`` or ``hold``. After a long one, return once it serves again, or has ended."""
        paused_at, self._paused_at = self._paused_at, None
        long = paused_at is not None and time.monotonic() - paused_at > LIVE_FOR_MS / 1000 / 2
        if self._beats_faked:
            # Of before, so that what is waited for is a new one.
            self._tell_heartbeat(ahead=-LIVE_FOR_MS / 1000 if long else 0)
        os.kill(self.pid, signal.SIGCONT)
        if long:
            # Its first sign of life may still say that it has served nothing for long.
            eventually(self._serves_or_has_ended, f"{self.name} serving again")

    def _tell_heartbeat(self, *, ahead: float) -> None:
        """Have its last sign of life be so many seconds ahead of now."""
        now = float(self._redis.time()[0]) + ahead
        self._redis.hset(names.gateway_key(self.name), "heartbeat", int(now * 1000))
        self._beats_faked = ahead > 0

    def _serves_or_has_ended(self) -> bool:
        try:
            return self.status is not None or self.look().state not in {"down", "stuck"}
        except RedisError:
            return True  # nobody can tell

    def await_end(self, *, within: float = PATIENCE) -> int:
        """The exit status, once the worker has ended by itself."""
        assert self._process is not None, "the gateway was not started"
        return self._process.wait(within)

    def _end(self, how: signal.Signals, within: float) -> int:
        assert self._process is not None, "the gateway was not started"
        if self._beats_faked:
            with suppress(RedisError):
                self._tell_heartbeat(ahead=0)
        if self._process.poll() is None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.name} did not end within {within:g} s:\n{self.log[-4000:]}") from None

    def finish(self) -> None:
        """After the test: end the process if it still runs; AssertionError if it had shown an unexpected traceback."""
        if self._process is not None and self._process.poll() is None:
            self._end(signal.SIGKILL, 10.0)
        self._redis.close()
        if not self.may_show_tracebacks:
            assert "Traceback (most recent call last)" not in self.log, self.log[-8000:]


class MakeSettings(Protocol):
    def __call__(self, **overrides: Any) -> Settings: ...


class MakeGateway(Protocol):
    def __call__(
        self,
        name: str | None = None,
        *,
        redis: RedisServer | None = None,
        dataplane: str = "memory",
        prefix: Sequence[str] = (),
        start: bool = True,
        **settings: Any,
    ) -> GatewayProcess: ...


class MakeClient(Protocol):
    def __call__(
        self, gateway: GatewayProcess | str, *, redis: RedisServer | None = None, **settings: Any
    ) -> Gateway: ...


def stands_still(pid: int) -> bool:
    """Whether every thread of a process is stopped."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    try:
        return all(path.read_text().rsplit(")", 1)[1].split()[0] in "TZX" for path in threads)
    except OSError:  # a thread has ended meanwhile
        return False


def new_name() -> str:
    """A gateway's name that no other test uses; short enough for a device's."""
    return f"t{uuid.uuid4().hex[:10]}"


def close(app: PeerlaneApp) -> None:
    """Close an app's connections now: what the garbage collector closes is a warning, and so a failure."""
    close_app(app)
