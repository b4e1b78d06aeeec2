"""An observer or a beat as operators start it, in a process of its own; a traceback in its log fails the test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import preloaded
from gateways import ROOT, GatewayProcess, as_variable, clean_environment
from redis import Redis
from waiting import PATIENCE, eventually

from peerlane.config import names


class Process:
    """``celery -A APPLICATION COMMAND`` with settings as variables."""

    def __init__(self, words: Sequence[str], log: Path, settings: dict[str, Any], prefix: Sequence[str] = ()) -> None:
        self._log = log
        environment = clean_environment() | {
            f"PEERLANE_{key.upper()}": as_variable(value) for key, value in settings.items()
        }
        with log.open("ab") as output:
            command = [*prefix, sys.executable, "-m", "celery", *words, "-l", "info"]
            self._process: preloaded.Running = preloaded.start(command, ROOT, environment, output)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def says(self, text: str, *, within: float = PATIENCE) -> None:
        """Return once it has said this."""

        def said() -> bool:
            assert self.status is None, f"it ended with status {self.status}:\n{self.log[-4000:]}"
            return text in self.log

        eventually(said, f"the log to say {text!r}", within=within)

    def await_end(self, *, within: float = PATIENCE) -> int:
        """Its status, once it has ended by itself."""
        return self._process.wait(within)

    def stop(self) -> int:
        """Ask it to end, as systemd would; its status."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not end:\n{self.log[-4000:]}") from None

    def pause(self) -> None:
        """Freeze it."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a word."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Observer(Process):
    """One gateway's observer, once it has started."""

    def __init__(
        self,
        gateway: GatewayProcess,
        *,
        wait: bool = True,
        application: str = "peerlane.workers.observer",
        **settings: Any,
    ) -> None:
        """It has the gateway's settings, and ``settings`` over them."""
        self.name = gateway.name
        self._redis = Redis.from_url(str(gateway.settings["redis_url"]), decode_responses=True)
        super().__init__(
            ["-A", application, "worker"],
            gateway.directory / "observer.log",
            gateway.settings | settings,
            gateway.prefix,
        )
        if wait:
            self.says("ready.")
        if wait and gateway.status is None:
            # The one that it makes by itself at its start is over: the next is the test's.
            eventually(lambda: self.report("sweep"), "the first sweep")

    def report(self, field: str) -> dict[str, Any]:
        """What it has told last of ``reading``, ``sweep`` or ``reconcile``; nothing while it has not."""
        document: dict[str, Any] = json.loads(str(self._redis.hget(names.observer_key(self.name), field) or "{}"))
        return document

    def alarms(self) -> dict[str, dict[str, Any]]:
        """The alarms that stand, by kind."""
        records = self._redis.hgetall(names.alarms_key(self.name))
        return {str(kind): json.loads(str(record)) for kind, record in records.items()}

    def close(self) -> None:
        """Let go of the test's own connection."""
        self._redis.close()


@contextmanager
def ending(*processes: Process) -> Generator[None]:
    """End the processes, whatever happens; AssertionError if one had shown a traceback."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            if isinstance(process, Observer):
                process.close()
    for process in processes:
        assert "Traceback (most recent call last)" not in process.log, process.log[-8000:]


def beat(redis_url: str, log: Path, **settings: Any) -> Process:
    """A beat."""
    return Process(
        ["-A", "peerlane.config.celery.app", "beat", "--pidfile="], log, {"redis_url": redis_url, **settings}
    )
