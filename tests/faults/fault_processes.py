"""The processes of a fault run: those that are started again whenever they end, and the callers, who are not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fault_choices import Ask
from gateways import ROOT

#: Seconds until a process that ended is started again, as systemd's RestartSec.
RESTART_AFTER = 0.3


class Supervised:
    """A process that is started again whenever it ends: the service manager of these runs."""

    def __init__(self, name: str, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.name, self.command, self.environment = name, list(command), dict(environment)
        self.log = directory / f"{name}.log"
        self.starts = 0
        #: Seconds until the next start; a test that wants an outage makes it longer.
        self.restart_after = RESTART_AFTER
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._supervise, name=f"supervises-{name}", daemon=True)

    def start(self) -> None:
        """Start it, and from now on again."""
        self._spawn()
        self._thread.start()

    def _spawn(self) -> None:
        with self._lock, self.log.open("ab") as log:
            if self._ended.is_set():
                return
            self.starts += 1
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _supervise(self) -> None:
        while not self._ended.is_set():
            process = self._process
            if process is not None and process.poll() is None:
                time.sleep(0.02)
            elif not self._ended.wait(self.restart_after):
                self._spawn()

    @property
    def pid(self) -> int:
        """The process that runs now, or ran last."""
        assert self._process is not None
        return self._process.pid

    @property
    def said(self) -> str:
        """Everything it has said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: int) -> None:
        """Send it a signal; nothing if it has ended."""
        with self._lock:
            process = self._process
            if process is not None and process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """As kill -9 does."""
        self.signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it with SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on. A failpoint is struck out before it stops the process: a SIGCONT before that would be lost."""
        until = time.monotonic() + 2.0
        while self._runs() and time.monotonic() < until:
            time.sleep(0.005)
        self.signal(signal.SIGCONT)

    def _runs(self) -> bool:
        process = self._process
        try:
            return process is not None and Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2][1] in "RSD"
        except OSError:
            return False

    def leave(self) -> None:
        """Ask it to end for good, and wait until it has."""
        self._ended.set()
        self.signal(signal.SIGTERM)
        if self._process is not None:
            self._process.wait(20)
        self._thread.join(5)

    def stop(self) -> None:
        """End it for good, at once."""
        self._ended.set()
        self.kill()
        if self._process is not None:
            self._process.wait(10)
        if self._thread.is_alive():
            self._thread.join(5)


class Callers:
    """The callers' process (tests/faults/fault_calls.py)."""

    def __init__(self, redis_url: str, gateway: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._given = (redis_url, gateway)
        self.directory, self.environment = directory, dict(environment)
        self._number = 0
        self._process: subprocess.Popen[str] | None = None
        self._history = ""

    @property
    def pid(self) -> int:
        """The callers' process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start them; also anew, after they were killed."""
        self.end()
        self._number += 1
        redis_url, gateway = self._given
        with (self.directory / "callers.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, str(ROOT / "tests" / "faults" / "fault_calls.py"), "--redis", redis_url),
                    *("--gateway", gateway, "--histories", str(self.directory), "--name", f"c{self._number}"),
                ],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.answer()

    def write_to(self, name: str) -> Path:
        """From now on calls go to this history."""
        self._history = f"{name}-c{self._number}"
        self.order(do="history", name=self._history)
        self.answer()
        return self.directory / f"{self._history}.jsonl"

    def order(self, **order: Any) -> None:
        """Give an order; ``answer`` waits for its end."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """What the last order came to; None if the callers were killed meanwhile."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return cast("dict[str, Any]", json.loads(line)) if line else None

    def ask(self, asks: Sequence[Ask]) -> Sequence[str]:
        """Make these calls now; how each ended."""
        self.order(do="ask", asks=[ask.as_dict() for ask in asks])
        answer = self.answer()
        assert answer is not None, "the callers have died"
        return cast("list[str]", answer["ends"])

    def signal(self, number: int) -> None:
        """Send them a signal."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """End them."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
