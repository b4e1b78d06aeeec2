"""Starts and ends child processes: each in its own session, with its output in a file, known by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peerlane.tasks.errors import PeerlaneError

#: Seconds between two looks at what is being waited for.
LOOK = 0.02


class StartFailed(PeerlaneError):
    """A process ended, or was not ready in time; the message ends with its output."""

    code = "start_failed"


class Child:
    """One process. In a session of its own, so that Ctrl-C in the terminal reaches its parent alone."""

    def __init__(
        self, name: str, command: Sequence[str | Path], directory: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it. Its output goes to ``directory/NAME.log``.

        Raises:
            StartFailed: the program cannot be run.
        """
        self.name = name
        self.log = directory / f"{name}.log"
        try:
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    [str(word) for word in command],
                    cwd=directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise StartFailed(f"{name} cannot be started: {error.strerror}") from None

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        return self._process.pid

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def tail(self, lines: int = 12) -> str:
        """The last lines of its output."""
        said = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"  {line}" for line in said) or "  (it said nothing)"

    def until(self, awaited: str, ready: Callable[[], bool], *, within: float) -> None:
        """Wait until ``ready`` returns true.

        Raises:
            StartFailed: it ended first, or ``within`` seconds passed.
        """
        deadline = time.monotonic() + within
        while not ready():
            if (status := self.status()) is not None:
                raise StartFailed(f"{self.name} ended with status {status} before {awaited}; it said:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name}: waited {within:g} s for {awaited} in vain; it said:\n{self.tail()}")
            time.sleep(LOOK)

    def pause(self) -> None:
        """Freeze it, as a stalled host would be."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it after ``pause``."""
        if self.status() is None:
            os.kill(self.pid, signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and continue it if it was paused."""
        if self.status() is None:
            self._process.terminate()
            self.resume()

    def stop(self, *, grace: float = 10.0) -> None:
        """End it by SIGTERM, after ``grace`` seconds by SIGKILL, and wait for its end."""
        self.ask_to_stop()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
