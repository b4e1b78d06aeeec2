"""``peerlane gateway run``: runs writer and observer as two processes, restarts one that dies, ends both together.

A writer that must not run (its lane is another's, its settings are wrong, it fails before any has served) ends with a
status that is passed on. Any other end of a process is a crash: it is restarted, at first after a second, later after
up to 30. A process that hangs (``pulse``) is made to print its stacks, killed and restarted.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from peerlane.tasks.errors import LaneHeld
from peerlane.workers.host.parts import FOLLOWING, HEALTHY, HELD, LONGEST, Part, pause_after
from peerlane.workers.host.pulse import LONG
from peerlane.workers.host.service_manager import VARIABLES, ServiceManager

log = logging.getLogger(__name__)

#: Seconds that processes are given to end before they are killed: a writer finishes what it has begun within five.
ENDING = 12.0
#: Seconds that a hanging process is given to go on after all, and to end after SIGABRT.
GRACE = 5.0
#: Seconds between two looks at what a watched process says, and until the needed ones serve.
LISTENING, LISTENING_CLOSELY = 1.0, 0.2

#: Bytes of a process' stacks that are logged.
MOST_OF_STACKS = 32_768

#: What a watched process says: within how many seconds it will say so again, and whether it serves.
_WORD = re.compile(rb"(\d{1,6}(?:\.\d+)?) (\w+)\n")
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(slots=True)
class _Running:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    #: Where a watched process says that it goes on, and by when it is to do so again, on the monotonic clock.
    pulse: int | None = None
    awaited: float = 0.0
    serving: bool = False
    #: Whether this process or an earlier one of the part has served.
    has_served: bool = False
    #: What else it wrote there: the stacks of a process that ends by a signal.
    stacks: bytes = b""
    #: When a hanging process is ended: by SIGABRT first, then by SIGKILL; None while it does not hang.
    condemned: float | None = None
    aborted: bool = False
    began: float = 0.0
    crashes: int = 0
    starts: int = 0
    #: When it is to be started, on the monotonic clock.
    due: float = 0.0

    def __post_init__(self) -> None:
        self.due = time.monotonic() + (FOLLOWING if self.part.follows else 0.0)


def supervise(
    parts: Sequence[Part],
    environment: Mapping[str, str] | None = None,
    *,
    hear: Callable[[bytes], None] | None = None,
) -> int:
    """Run the parts until a signal (SIGTERM, SIGINT, SIGHUP) or a final end; returns the exit status.

    ``hear`` is given what that one had written to its standard output, at most what a pipe holds (64 KiB).

    To be called from the main thread. Nothing of what it has started outlives it, however it ends.
    """
    manager = ServiceManager.of(environment or {})
    environment = {name: value for name, value in (environment or os.environ).items() if name not in VARIABLES}
    awaited = _SIGNALS | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    # Ignored, it would not wake sigtimedwait.
    handler = signal.signal(signal.SIGCHLD, _woken)
    running = [_Running(part) for part in parts]
    ready = False
    try:
        while True:
            for child in running:
                if child.process is None and time.monotonic() >= child.due:
                    _start(child, environment, before, piped=hear is not None)
            pause = min(_left(running, closely=not ready), manager.asks_every or LONGEST)
            signalled = signal.sigtimedwait(awaited, max(0.0, pause))
            if signalled is not None and signalled.si_signo in _SIGNALS:
                log.info("ending, because of %s", signal.Signals(signalled.si_signo).name)
                manager.tell("STOPPING=1", "STATUS=ending")
                return 0
            for child in running:
                _judge(child)
                if (status := _ended(child, hear)) is not None:
                    return status
            if not ready and all(child.serving for child in running if child.part.watched and child.part.needed):
                ready = True
                manager.tell("READY=1", "STATUS=the lane is served")
                _start_now(running)
            if manager.asks_every is not None:
                manager.tell("WATCHDOG=1")
    finally:
        _end(running)
        signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(
    child: _Running, environment: Mapping[str, str] | None, mask: set[int] | set[signal.Signals], *, piped: bool
) -> None:
    parent = os.getpid()

    def in_the_child() -> None:
        # Between fork and exec, in a process that has one thread.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    child.began = time.monotonic()
    child.starts += 1
    command, pipe = list(child.part.command), None
    if child.part.watched:
        child.pulse, pipe = os.pipe()
        os.set_blocking(child.pulse, False)
        command += ["--pulse", str(pipe)]
        child.awaited, child.condemned, child.aborted, child.stacks = child.began + LONG, None, False, b""
    try:
        child.process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=() if pipe is None else (pipe,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else None,
            process_group=0,  # Ctrl-C in a terminal reaches this process, which passes it on once
            preexec_fn=in_the_child,  # noqa: PLW1509 - see there
        )
    except (OSError, subprocess.SubprocessError) as error:
        if child.starts == 1:
            raise
        # No memory or process is left, or the program is being replaced: it was there, and the other part goes on.
        pause = _later(child, lived=0.0, status=1)
        log.error("the %s could not be started (%s); trying again in %.0f s", child.part.name, error, pause)
    finally:
        if pipe is not None:
            os.close(pipe)
        if child.process is None and child.pulse is not None:
            os.close(child.pulse)
            child.pulse = None


def _judge(child: _Running) -> None:
    """Check a watched process. End one that hangs: by SIGABRT, at which it prints its stacks, then by SIGKILL.

    Not at once: what was silent because the host stood still goes on first.
    """
    if child.process is None or child.pulse is None:
        return
    _hear(child)
    now = time.monotonic()
    if now < child.awaited and not child.aborted:
        child.condemned = None
    elif child.condemned is None:
        child.condemned = now + GRACE
    elif now >= child.condemned and not child.aborted:
        log.critical("the %s hangs: it was silent for longer than it had said; its stacks follow", child.part.name)
        child.condemned, child.aborted = now + GRACE, True
        child.process.send_signal(signal.SIGABRT)
    elif now >= child.condemned:
        log.critical("the %s is killed", child.part.name)
        child.process.kill()
        child.process.wait()


def _hear(child: _Running) -> None:
    """Read the reports of a watched process: the last step counts; other text is about its end."""
    said = b""
    with suppress(BlockingIOError):
        while child.pulse is not None and (more := os.read(child.pulse, 65536)):
            said += more
    for line in said.splitlines(keepends=True):
        if (words := _WORD.fullmatch(line)) is None:
            child.stacks = (child.stacks + line)[:MOST_OF_STACKS]
            continue
        child.awaited = time.monotonic() + float(words[1])
        child.serving = child.serving or words[2] == b"serving"
        child.has_served = child.has_served or child.serving


def _ended(child: _Running, hear: Callable[[bytes], None] | None) -> int | None:
    """The status to end with, if this part's end is final; after a crash, set the time of its restart."""
    if child.process is None or (status := child.process.poll()) is None:
        return None
    said = b""
    if child.process.stdout is not None:
        with child.process.stdout as stream:
            said = stream.read()
    child.process = None
    if child.pulse is not None:
        _hear(child)
        if child.stacks:
            log.critical("the stacks of the %s:\n%s", child.part.name, child.stacks.decode(errors="replace").rstrip())
        os.close(child.pulse)
        child.pulse, child.serving = None, False
    lived = time.monotonic() - child.began
    decided = child.part.decides and child.starts == 1 and status > 0 and bool(said)
    if decided or child.part.final(status, math.inf if child.has_served else lived):
        if hear is not None:
            hear(said)
        again = "the first start failed" if decided else "which it would again"
        log.critical("the %s ended with status %d, %s", child.part.name, status, again)
        return LaneHeld.exit_code if status == HELD else status
    pause = _later(child, lived, status)
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    log.warning("the %s %s after %.0f s; starting it again in %.0f s", child.part.name, how, lived, pause)
    return None


def _later(child: _Running, lived: float, status: int) -> float:
    """Have a part started again after a pause, which is returned."""
    child.crashes = 1 if lived >= HEALTHY else child.crashes + 1
    pause = pause_after(child.crashes, status)
    child.due = time.monotonic() + pause
    return pause


def _start_now(running: Sequence[_Running]) -> None:
    """Have the parts started that have followed the others."""
    for child in running:
        if not child.starts:
            child.due = time.monotonic()


def _left(running: Sequence[_Running], *, closely: bool) -> float:
    """Seconds until the next start, or until the next check of a watched process."""
    now, every = time.monotonic(), LISTENING_CLOSELY if closely else LISTENING
    starts = [child.due - now for child in running if child.process is None]
    return min([*starts, *(every for child in running if child.pulse is not None), LONGEST])


def _end(running: Sequence[_Running]) -> None:
    left = [child for child in running if child.process is not None]
    for child in left:
        if child.process is not None:
            child.process.terminate()
    until = time.monotonic() + ENDING
    for child in left:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("the %s did not end within %.0f s and was killed", child.part.name, ENDING)
            child.process.kill()
            child.process.wait()
    for child in left:
        if child.process is not None and child.process.stdout is not None:
            child.process.stdout.close()


def _woken(_number: int, _frame: object) -> None:
    """Handler of SIGCHLD. Does nothing, but without a handler sigtimedwait never returns the signal."""
