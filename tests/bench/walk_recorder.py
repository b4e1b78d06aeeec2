"""Runs a module as ``python -m`` does, and records which functions of Peerlane each request goes through.

    python tests/bench/walk_recorder.py FILE request|process MODULE [ARGUMENT...]

``request``: one JSON line in FILE for each Celery task that a worker runs, from the message's arrival to its
acknowledgement. ``process``: one line for the whole process. A line is a list of [file, function] in the order of the
calls. Only the main thread counts: the heartbeat's thread is not part of a request.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("config", "tasks", "workers")

Call = tuple[str, str]


class Recorder:
    """A profile function. ``calls`` are those since ``start``."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._files: dict[str, str | None] = {}

    def start(self) -> None:
        """Forget the calls so far; record those of this thread from now on."""
        self.calls = []
        sys.setprofile(self.see)

    def see(self, frame: FrameType, event: str, _: object) -> None:
        """Called by the interpreter."""
        if event == "call":
            path = frame.f_code.co_filename
            if path not in self._files:
                self._files[path] = own_file(path)
            if (file := self._files[path]) is not None:
                self.calls.append((file, frame.f_code.co_qualname))


class RequestRecorder(Recorder):
    """Writes a line for each message whose arrival has a request carried out, by Celery's tracer or without it."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self._output = output
        self._has_task = False

    def see(self, frame: FrameType, event: str, _: object) -> None:
        """Called by the interpreter. kombu reads one connection at a time; Celery runs the task in that call."""
        super().see(frame, event, _)
        name, path = frame.f_code.co_name, frame.f_code.co_filename
        if (name == "trace_task" and path.endswith("celery/app/trace.py")) or (
            frame.f_code.co_qualname == "LeanEnding.begin" and path.endswith("workers/lane/group.py")
        ):
            self._has_task = True
        elif frame.f_code.co_qualname == "Transport.on_readable" and path.endswith("kombu/transport/redis.py"):
            if event == "return" and self._has_task:
                write(self._output, self.calls)
            if event in {"call", "return"}:
                self.calls, self._has_task = [], False


def own_file(path: str) -> str | None:
    """The file's name from the repository's root, if it belongs to Peerlane."""
    name = os.path.relpath(os.path.realpath(path), ROOT)
    return name if Path(name).parts[0] in FOLDERS else None


def write(output: Path, calls: list[Call]) -> None:
    """Append one line."""
    with output.open("a") as file:
        file.write(json.dumps(calls) + "\n")


def main() -> None:
    """Record one process."""
    output, mode, module = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    recorder = RequestRecorder(output) if mode == "request" else Recorder()
    sys.argv = [module, *sys.argv[4:]]
    recorder.start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.setprofile(None)
        if mode == "process":
            write(output, recorder.calls)


if __name__ == "__main__":
    main()
