"""Processes that begin with their imports done: forked from one that has imported what a gateway and a command need.

Nine tenths of what a writer's, an observer's or a command's start costs is imports, and the tests start some hundreds
of them. What is forked is a process in a session of its own, with the environment, the directory and the files that it
is given, and runs the module as ``python -m`` does. Where a variable tells the interpreter or a module something that
it reads before, or something else is to run than Celery's program or Peerlane's, a new interpreter is started.

Run as a program, this is the process that forks: it is asked on its standard input, a socket.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol

#: The composition roots: each makes its app when it is imported, and is imported by the process that is to have it.
_ROOTS = ("peerlane.workers.gateway", "peerlane.workers.observer")
#: What Celery imports as late as it can.
_LATE = (
    *("celery.bin.celery", "celery.bin.worker", "celery.bin.beat", "celery.apps.worker", "celery.apps.beat"),
    *("celery.worker.consumer", "celery.concurrency.solo", "celery.backends.redis", "kombu.transport.redis"),
)
#: What can be run.
_PROGRAMS = ("celery", "peerlane.workers.cli")
#: Packages whose modules are imported when a command is given that needs them.
_COMMANDS = ("peerlane.tasks.cli", "peerlane.workers.cli")
#: Variables that the interpreter reads at its start, or a module when it is imported.
_READ_EARLY = ("PYTHON", "LC_", "LANG", "PEERLANE_TEST_")
#: The module that reads such a variable and nothing else: it is loaded anew where the variable is given.
_READ_ANEW = {"PEERLANE_TEST_FAILPOINTS": "peerlane.workers.failpoints"}
_STATUS = struct.Struct("i")
_LONGEST = 1 << 20


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    early = {name: value for name, value in environment.items() if name.startswith(_READ_EARLY)}
    return {name: value for name, value in early.items() if name not in _READ_ANEW}


#: As the process that forks has them. Variables of the test run itself (PEERLANE_TEST_KERNEL) are not passed on.
_AT_FIRST = {name: value for name, value in os.environ.items() if name.startswith(_READ_EARLY[:3])}


class Running(Protocol):
    """What tests use of subprocess.Popen."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Forked:
    """A forked process, as subprocess.Popen shows one."""

    def __init__(self, pid: int, ended: socket.socket) -> None:
        """``ended`` tells the status once the process has ended."""
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(["forked", str(self.pid)], timeout or 0.0)
        return status

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            try:
                os.kill(self.pid, sig)
            except ProcessLookupError:  # it has just ended
                return

    def terminate(self) -> None:
        self.send_signal(15)

    def kill(self) -> None:
        self.send_signal(9)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            status = self._ended.recv(_STATUS.size)
            assert status, "the process that forks is gone"
            self.returncode = int(_STATUS.unpack(status)[0])
            self._ended.close()
        return self.returncode

    def __del__(self) -> None:
        self._ended.close()


class _Forks:
    """This process' way to the one that forks, which is started when it is first asked."""

    def __init__(self) -> None:
        self.enabled = False
        self._asked = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], files: Sequence[int]) -> Forked:
        ours, theirs = socket.socketpair()
        with self._asked, theirs:
            control = self._open()
            asked = json.dumps({"words": list(words), "cwd": str(cwd), "environment": dict(environment)}).encode()
            socket.send_fds(control, [struct.pack("I", len(asked))], [*files, theirs.fileno()])
            control.sendall(asked)
            answer = control.recv(_STATUS.size)
            assert answer, "the process that forks is gone"
        return Forked(int(_STATUS.unpack(answer)[0]), ours)

    def _open(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair()
            with theirs:
                others = {name: value for name, value in os.environ.items() if not name.startswith(_READ_EARLY)}
                command, environment = [sys.executable, __file__], others | _AT_FIRST
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), env=environment, start_new_session=True
                )
            atexit.register(self.close)
        return self._control

    def close(self) -> None:
        """End the process that forks. What it has forked lives on."""
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait()
            self._control = self._process = None


_forks = _Forks()


def enable() -> None:
    """From now on ``start`` forks where it can. Benchmarks measure whole processes, and leave this alone."""
    _forks.enabled = True


def start(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    output: IO[bytes],
    *,
    errors: IO[bytes] | None = None,
    source: IO[bytes] | None = None,
) -> Running:
    """Start a command that writes to ``output``; forked where it is one of the programs for this very interpreter.

    What it says of errors goes to ``output``, too, unless told otherwise; and it reads nothing, or ``source``.
    """
    ours = list(command[:2]) == [sys.executable, "-m"] and command[2] in _PROGRAMS
    with Path(os.devnull).open("rb") as nothing:
        files = (source or nothing, output, errors or output)
        if _forks.enabled and ours and _read_early(environment) == _AT_FIRST:
            return _forks.start(command[2:], cwd, environment, [file.fileno() for file in files])
        return subprocess.Popen(
            list(command),
            cwd=cwd,
            env=dict(environment),
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            start_new_session=True,
        )


def run(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], *, source: bytes = b"", within: float = 60.0
) -> subprocess.CompletedProcess[bytes]:
    """Start a command, and wait for its end: its status and what it has said."""
    with TemporaryFile() as given, TemporaryFile() as output, TemporaryFile() as errors:
        given.write(source)
        given.seek(0)
        running = start(command, cwd, environment, output, errors=errors, source=given)
        try:
            status = running.wait(within)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            raise
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(list(command), status, output.read(), errors.read())


# The process that forks


def _names_of_what_is_needed() -> list[str]:
    """The modules that the roots import, found in a process that ends."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        for root in _ROOTS:
            importlib.import_module(root)
        for package in [name for name, module in sys.modules.items() if hasattr(module, "__path__")]:
            if package.startswith("peerlane.workers.") and not package.endswith(".dataplane"):
                for submodule in pkgutil.iter_modules(sys.modules[package].__path__, f"{package}."):
                    importlib.import_module(submodule.name)
        for package in _COMMANDS:
            for submodule in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
                if not submodule.name.endswith("__main__"):
                    importlib.import_module(submodule.name)
        with os.fdopen(writing, "w") as pipe:
            json.dump([name for name in sys.modules if name not in _ROOTS and name != "__main__"], pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        modules = json.load(pipe)
    os.wait()
    return modules


def _serve(control: socket.socket) -> tuple[list[str], str]:
    """Fork whenever asked, and tell how each ends. In a forked process: return what it is to run, and where."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([control.fileno(), *running], [], [])[0]:
            if ready != control.fileno():
                pid, ended = running.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.close(ready)
                with ended:
                    _tell(ended, status)
                continue
            head, descriptors = _received(control)
            if not head:
                os._exit(0)
            asked = json.loads(_all_of(control, struct.unpack("I", head)[0]))
            *files, last = descriptors
            ended = socket.socket(fileno=last)
            pid = os.fork()
            if pid == 0:
                return _become(asked, files)
            for file in files:
                os.close(file)
            running[os.pidfd_open(pid)] = pid, ended
            control.sendall(_STATUS.pack(pid))


def _received(control: socket.socket) -> tuple[bytes, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(control, 4, 4)
    return head, list(array.array("i", descriptors))


def _all_of(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += control.recv(min(_LONGEST, size - len(data)))
    return data


def _tell(ended: socket.socket, status: int) -> None:
    try:
        ended.sendall(_STATUS.pack(status))
    except OSError:  # nobody wants to know any more
        return


def _become(asked: Mapping[str, Any], files: Sequence[int]) -> tuple[list[str], str]:
    """What a new process has: a session, its three files and no other, its directory and its environment."""
    os.setsid()
    for standard, file in enumerate(files):
        os.dup2(file, standard)
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < _LONGEST else 4096)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    if hasattr(time, "tzset"):
        time.tzset()
    for variable, module in _READ_ANEW.items():
        if variable in os.environ:
            importlib.reload(sys.modules[module])
    return asked["words"], asked["cwd"]


def _main() -> None:
    for name in (*_names_of_what_is_needed(), *_LATE):
        with suppress(ImportError):  # a name that another module has made up for its own use
            importlib.import_module(name)
    assert threading.active_count() == 1, "a process with threads must not fork"
    gc.collect()
    gc.freeze()
    control = socket.socket(fileno=os.dup(0))
    (module, *words), cwd = _serve(control)
    control.detach()
    sys.path[0] = cwd
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
