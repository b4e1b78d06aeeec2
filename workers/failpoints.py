"""Named points at which a test makes a gateway's process fail. Off unless ``PEERLANE_TEST_FAILPOINTS`` names a file.

Each line of the file is ``POINT:ACTION[:N]``. It is read again whenever it changes, so that a test can switch points
while the process runs:

    before_commit:kill:3     at the third time from now the process is killed, as by kill -9
    after_commit:stop        the process stops itself (SIGSTOP) at the next time, until it gets SIGCONT
    after_apply:raise        an unexpected error
    before_commit:sleep:0.05 every time, so many seconds
    before_apply:hang        the thread goes no further until the line is gone from the file
    before_commit.removed:kill   only before the commit of a request with this outcome: a slice of a sweep

A line is removed from the file before its action: the process that follows a killed one does not die of the same line,
and the test sees that it happened. The writer's points: before_apply, after_apply, before_commit, after_commit,
before_acknowledge, between_batches of a recovery and between_fillings after it. The observer's: after_decision and
between_slices of a sweep, between_looks of a reconciliation. A group that the writer carries out has the outcome
``group`` at its points.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "PEERLANE_TEST_FAILPOINTS"


class FailpointError(Exception):
    """The error of ``raise``. No product code handles it."""


@dataclass(slots=True)
class _Line:
    text: str
    point: str
    action: str
    argument: float


class Failpoints:
    """The content of the control file, and how often each point was passed since it was read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[int, int] | None = None
        self._lines: list[_Line] = []
        self._passed: dict[str, int] = {}

    def reach(self, point: str, outcome: str = "") -> None:
        """Do the actions of this point, and of this point with this outcome."""
        self._refresh()
        reached = (point, f"{point}.{outcome}") if outcome else (point,)
        for name in reached:
            self._passed[name] = self._passed.get(name, 0) + 1
        for line in list(self._lines):
            if line.point not in reached:
                continue
            if line.action == "sleep":
                time.sleep(line.argument)
            elif line.action == "hang":
                while self._path.exists() and line.text in self._path.read_text():
                    time.sleep(0.05)
            elif self._passed[line.point] == int(line.argument):
                self._strike_out(line)
                _act(line.action, point)

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            if (stamp := (status.st_mtime_ns, status.st_ino)) == self._read:
                return
            text = self._path.read_text()
        except FileNotFoundError:
            stamp, text = None, ""
        self._read, self._passed = stamp, {}
        self._lines = [_parse(line) for line in text.split()]

    def _strike_out(self, line: _Line) -> None:
        self._lines.remove(line)
        left = self._path.with_suffix(".left")
        left.write_text("\n".join(other.text for other in self._lines))
        left.replace(self._path)
        status = self._path.stat()
        self._read = (status.st_mtime_ns, status.st_ino)


def _parse(text: str) -> _Line:
    point, action, *rest = text.split(":")
    if action not in ("kill", "stop", "raise", "sleep", "hang") or len(rest) > 1:
        raise ValueError(f"no such failpoint: {text}")
    return _Line(text, point, action, float(rest[0]) if rest else 1.0)


def _act(action: str, point: str) -> None:
    if action == "raise":
        raise FailpointError(point)
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


_named = os.environ.get(VARIABLE)
_failpoints = Failpoints(Path(_named)) if _named else None


def reach(point: str, outcome: str = "") -> None:
    """Reach a point: does nothing, except in a test that asks for it. ``outcome`` is the outcome to come."""
    if _failpoints is not None:
        _failpoints.reach(point, outcome)
