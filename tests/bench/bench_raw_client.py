"""A client process of ``bench_overload`` that asks a lane for more than it can do, and is refused by nobody.

python tests/bench/bench_raw_client.py '{"url": ..., "callers": 4000, "seconds": 4, "timeout": 1.0, "deletes": 0.02}'

Its messages are those of our client, pushed into Redis without a look at the lane. Each caller asks again as soon
as it is answered or its time is up, and does not cancel: what it has left behind is the writer's affair.
"""

from __future__ import annotations

import json
import random
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench_callers_client import NAME
from bench_report import quantile
from gateways import close
from raw_messages import RawMessages
from redis import Redis

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read

#: A message of a channel in RESP2, up to what it says.
_MESSAGE = re.compile(rb"\*3\r\n\$7\r\nmessage\r\n\$\d+\r\n[^\r]+\r\n\$(\d+)\r\n")
#: Messages pushed in one step.
TOGETHER = 256


@dataclass(frozen=True, slots=True)
class RawLoad:
    """What the process is to do."""

    url: str
    callers: int
    seconds: float
    timeout: float
    #: The share of the requests that are deletes.
    deletes: float = 0.0
    #: Seconds that are not counted: the lane fills.
    warm_up: float = 1.0


@dataclass(slots=True)
class Counted:
    """What came of one kind of request after the warm-up."""

    waits: list[float] = field(default_factory=list[float])
    late: int = 0

    def document(self) -> dict[str, Any]:
        waits = [wait * 1000 for wait in self.waits] or [float("inf")]
        return {
            "in_time": len(self.waits),
            "late": self.late,
            "p50_ms": round(quantile(waits, 0.5), 2),
            "p99_ms": round(quantile(waits, 0.99), 2),
        }


class Heard:
    """The messages of one channel, read as they come: a client's own way to them costs more than all the rest."""

    def __init__(self, path: str, channel: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(f"SUBSCRIBE {channel}\r\n".encode())
        self._buffer = b""
        self._read(5.0)
        assert b"subscribe" in self._buffer
        self._buffer = b""

    def messages(self, timeout: float) -> Iterator[bytes]:
        """What has come, once anything has, or ``timeout`` has passed."""
        self._read(timeout)
        at = 0
        while (head := _MESSAGE.match(self._buffer, at)) is not None:
            ends = head.end() + int(head[1])
            if len(self._buffer) < ends + 2:
                break
            yield self._buffer[head.end() : ends]
            at = ends + 2
        self._buffer = self._buffer[at:]

    def _read(self, timeout: float) -> None:
        if select.select([self._socket], [], [], timeout)[0]:
            self._buffer += self._socket.recv(1 << 20)

    def close(self) -> None:
        self._socket.close()


class Raw:
    """All callers of the process, in one loop."""

    def __init__(self, app: PeerlaneApp, load: RawLoad) -> None:
        self._load = load
        self._redis = Redis.from_url(load.url)
        self._messages = RawMessages(app, self._redis, NAME)
        self._queue = names.lane_queue(NAME)
        self._random = random.Random(1)
        self.counted = {name: Counted() for name in (names.CREATE_PEER, names.DELETE_PEER)}
        #: By number: task, when it was asked; and those in the order in which their time is up.
        self._open: dict[int, tuple[str, float]] = {}
        self._asked: deque[tuple[float, int]] = deque()
        self._count = 0

    def run(self) -> dict[str, Any]:
        """Ask; the figures."""
        path = self._load.url.removeprefix("unix://")
        heard = Heard(path, names.result_key(names.request_id(NAME, self._messages.token)))
        began = time.monotonic()
        counts_from, until = began + self._load.warm_up, began + self._load.warm_up + self._load.seconds
        sent = 0
        while (now := time.monotonic()) < until:
            while self._asked and self._asked[0][0] <= now:
                _, number = self._asked.popleft()
                if (asked := self._open.pop(number, None)) is not None and asked[1] >= counts_from:
                    self.counted[asked[0]].late += 1
            if few := min(self._load.callers - len(self._open), TOGETHER):
                self._redis.lpush(self._queue, *(self._next(now) for _ in range(few)))
                sent += few if now >= counts_from else 0
            for record in heard.messages(0.0 if few else 0.002):
                self._hear(record, counts_from)
        took = time.monotonic() - counts_from
        heard.close()
        self._redis.close()
        kinds = {name.rsplit(".", 1)[1]: counted.document() for name, counted in self.counted.items()}
        answered = sum(kind["in_time"] for kind in kinds.values())
        return {"per_s": round(answered / took, 1), "offered_per_s": round(sent / took, 1), **kinds}

    def _next(self, now: float) -> str:
        self._count += 1
        name = names.DELETE_PEER if self._random.random() < self._load.deletes else names.CREATE_PEER
        self._open[self._count] = name, now
        self._asked.append((now + self._load.timeout, self._count))
        return self._messages.message(name, self._count, self._load.timeout)

    def _hear(self, record: bytes, counts_from: float) -> None:
        document = json.loads(record)
        number = int(document["task_id"].rsplit("_", 1)[1])
        asked = self._open.pop(number, None)
        if asked is None or asked[1] < counts_from:
            return
        counted = self.counted[asked[0]]
        if document["status"] == "SUCCESS":
            counted.waits.append(time.monotonic() - asked[1])
        else:
            counted.late += 1


def main(load: RawLoad) -> dict[str, Any]:
    """Ask, and count."""
    app = PeerlaneApp(read(redis_url=load.url))
    try:
        return Raw(app, load).run()
    finally:
        close(app)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(RawLoad(**json.loads(sys.argv[1])))) + "\n")
