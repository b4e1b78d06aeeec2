"""What Redis itself says it was told: the commits of a fault run, read off MONITOR, independent of the product."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from fault_checker import Commit

from config import names

_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_SCRIPT = re.compile(rb"^\+\d+\.\d+ \[\d+ lua\]")


class Monitor:
    """Listens all the while, across restarts of the server. ``taken`` gives what came since it was last asked."""

    def __init__(self, path: Path, gateway: str) -> None:
        self._path, self._gateway = path, gateway
        self._peers = names.peers_key(gateway).encode()
        self._epochs = names.epoch_key(gateway).encode()
        self._prefix = f"{names.RESULT_PREFIX}{gateway}.".encode()
        self._commits: list[Commit] = []
        self._newest = 0
        #: The commit whose script is being carried out: (request, epoch, wrote, changed).
        self._running: tuple[str, int, bool, bool] | None = None
        self._ended = threading.Event()
        #: Set while the server tells.
        self.listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="monitor", daemon=True)
        self._thread.start()

    def taken(self) -> Sequence[Commit]:
        """Commits since the last call."""
        self._finish()
        found, self._commits = self._commits, []
        return found

    def forget_epochs(self) -> None:
        """Redis has lost its last second, and may give an epoch again."""
        self._newest = 0

    def close(self) -> None:
        """Listen no more."""
        self._ended.set()
        self._thread.join(5)

    def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
                link.settimeout(1)
                link.connect(str(self._path))
                link.sendall(b"MONITOR\r\n")
                self._read(link)
            self.listening.clear()
            self._ended.wait(0.05)

    def _read(self, link: socket.socket) -> None:
        rest = b""
        while not self._ended.is_set():
            try:
                piece = link.recv(65_536)
            except TimeoutError:
                continue
            if not piece:
                return
            self.listening.set()
            *lines, rest = (rest + piece).split(b"\r\n")
            for line in lines:
                self._heard(line)

    def _heard(self, line: bytes) -> None:
        words = _WORD.findall(line)
        if not words:
            return
        command = words[0].upper()
        if _SCRIPT.match(line):
            if self._running is not None:
                request, epoch, wrote, changed = self._running
                wrote = wrote or (command == b"SET" and words[1] == names.result_key(request).encode())
                changed = changed or (command in (b"HSET", b"HDEL") and words[1] == self._peers)
                self._running = (request, epoch, wrote, changed)
            return
        self._finish()
        if command in (b"INCR", b"INCRBY") and words[1] == self._epochs:
            self._newest += 1
        elif command in (b"FCALL", b"EVALSHA", b"EVAL") and self._peers in words:
            keys = int(words[2])
            if words[3].startswith(self._prefix):
                request = words[3].decode().removeprefix(names.RESULT_PREFIX)
                self._running = (request, int(words[3 + keys]), False, False)

    def _finish(self) -> None:
        if self._running is not None:
            request, epoch, wrote, changed = self._running
            self._newest = max(self._newest, epoch)
            # A script that wrote nothing was refused, whatever its epoch.
            newest = self._newest if wrote or changed else epoch
            self._commits.append(Commit(request, epoch, newest, wrote=wrote, changed=changed))
            self._running = None
