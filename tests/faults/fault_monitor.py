"""What Redis itself says it was told, read off MONITOR, without the product: commits, and what observers wrote."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fault_evidence import Commit, Life, Sighting

from peerlane.config import names

_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_MOMENT = re.compile(rb"^\+(\d+\.\d+) ")
_SCRIPT = re.compile(rb"^\+\d+\.\d+ \[\d+ lua\]")


class Monitor:
    """Listens all the while, across restarts of the server. ``taken`` gives what came since it was last asked."""

    def __init__(self, path: Path, gateway: str) -> None:
        self._path, self._gateway = path, gateway
        self._peers = names.peers_key(gateway).encode()
        self._epochs = names.epoch_key(gateway).encode()
        self._prefix = f"{names.RESULT_PREFIX}{gateway}.".encode()
        self._seen = names.seen_key(gateway).encode()
        self._lane = {names.lane_queue(gateway).encode(), names.bulk_queue(gateway).encode()}
        self._observer = names.observer_key(gateway).encode()
        self._commits: list[Commit] = []
        self._sightings: list[Sighting] = []
        #: When the observer last gave a sign of life, on this machine's monotonic clock, in order.
        self.beats: list[float] = []
        #: Until when each request may be carried out: the latest word of those who have asked for it.
        self._deadlines: dict[str, float] = {}
        self._newest = 0
        #: The commits whose script is being carried out, by request.
        self._running: dict[str, Commit] = {}
        self._ended = threading.Event()
        #: Set while the server tells.
        self.listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="monitor", daemon=True)
        self._thread.start()

    def taken(self) -> Sequence[Commit]:
        """Commits since the last call."""
        assert self._thread.is_alive(), "nobody reads what Redis says"
        self._finish()
        commits, self._commits = self._commits, []
        return commits

    def sightings(self) -> Sequence[Sighting]:
        """What the observer has written down since the last call."""
        sightings, self._sightings = self._sightings, []
        return sightings

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
            self._heard_of_script(command, words)
            return
        self._finish()
        if command in (b"INCR", b"INCRBY") and words[1] == self._epochs:
            self._newest += 1
        elif command in (b"FCALL", b"EVALSHA", b"EVAL") and self._peers in words:
            count = int(words[2])
            keys, arguments = words[3 : 3 + count], words[3 + count :]
            # Six keys of the gateway, two of each request. Arguments: 4, then 7 of each (commit); 5, then 5 (redo).
            requests = keys[6::2]
            if keys[1] == self._peers and requests and requests[0].startswith(self._prefix):
                again = len(arguments) == 5 + 5 * len(requests)
                first, each = (5, 5) if again else (4, 7)
                for number, key in enumerate(requests):
                    own = arguments[first + number * each : first + (number + 1) * each]
                    self._commit(line, key, arguments[0], own[1 if again else 3], again=again)
        elif command == b"LPUSH" and words[1] in self._lane:
            request, deadline = _asked(words[2])
            self._deadlines[request] = max(deadline, self._deadlines.get(request, 0.0))
        elif command == b"HSET" and words[1] == self._seen:
            self._sightings += [_sighting(*pair) for pair in zip(words[2::2], words[3::2], strict=True)]
        elif command == b"HSET" and words[1] == self._observer and words[2] == b"heartbeat" and words[3] != b"0":
            self.beats.append(time.monotonic())

    def _heard_of_script(self, command: bytes, words: Sequence[bytes]) -> None:
        if command in (b"INCR", b"INCRBY") and words[1] == self._epochs:
            self._newest += int(words[2]) if len(words) > 2 else 1
        for request, running in self._running.items():
            wrote = command == b"SET" and words[1] == names.result_key(request).encode()
            changed = command in (b"HSET", b"HDEL") and words[1] == self._peers
            changed = changed and words[2].decode() in {*running.stores, *running.removes}
            self._running[request] = replace(running, wrote=running.wrote or wrote, changed=running.changed or changed)

    def _commit(self, line: bytes, result_key: bytes, epoch: bytes, changes: bytes, *, again: bool) -> None:
        """``again``: it was in time when it was made, and is made true again."""
        moment = _MOMENT.match(line)
        records = cast("list[dict[str, Any]]", json.loads(_plain(changes)))
        request = result_key.decode().removeprefix(names.RESULT_PREFIX)
        self._running[request] = Commit(
            request=request,
            epoch=int(epoch),
            newest=0,
            wrote=False,
            changed=False,
            at=float(moment[1]) if moment else 0.0,
            deadline=0.0 if again else self._deadlines.get(request, 0.0),
            stores={change["key"]: _life(change["record"]) for change in records if "record" in change},
            removes=frozenset(change["key"] for change in records if "record" not in change and not change.get("kept")),
        )

    def _finish(self) -> None:
        for running in self._running.values():
            self._newest = max(self._newest, running.epoch)
            # A script that wrote nothing was refused, whatever its epoch.
            newest = self._newest if running.wrote or running.changed else running.epoch
            self._commits.append(replace(running, newest=newest))
        self._running = {}


def _plain(word: bytes) -> str:
    """What MONITOR quotes."""
    return word.decode("unicode_escape").encode("latin-1").decode()


def _asked(message: bytes) -> tuple[str, float]:
    """The id and the deadline of a request as it was sent, in seconds on Redis' clock; 0 where it has none."""
    envelope = cast("dict[str, Any]", json.loads(_plain(message)))
    _, arguments, _ = json.loads(base64.b64decode(envelope["body"]))
    return envelope["headers"]["id"], arguments.get("deadline", 0) / 1000


def _life(record: str) -> Life:
    fields = cast("dict[str, Any]", json.loads(record))
    return Life(fields.get("expires_at"), fields.get("pinned", False), fields["created_at"])


def _sighting(key: bytes, stored: bytes) -> Sighting:
    _, last_seen, received, sent, *_ = stored.split(b" ")
    return Sighting(key.decode(), int(last_seen), int(received), int(sent))
