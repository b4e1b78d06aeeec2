"""A client process of ``bench_callers``: asks in a closed loop for some seconds, and tells what came of it as JSON.

python tests/bench/bench_callers_client.py '{"kind": "threads", "url": ..., "callers": 32, "seconds": 4, ...}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench_report import quantile
from gateways import close
from keys import some_key

from peerlane import AsyncGateway, Gateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.errors import PeerlaneError

#: The gateway that is asked.
NAME = "bench"
#: Seconds that a refused caller waits where the refusal names none.
PAUSE = 0.5
#: Requests before anything is counted.
WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Load:
    """What a client process is to do."""

    #: ``threads`` or ``asyncio`` of Peerlane's client; ``stock`` threads, or its ``window``, of the no-op Celery task.
    kind: str
    url: str
    callers: int
    seconds: float
    timeout: float


@dataclass(slots=True)
class Came:
    """What came of it."""

    waits: list[float] = field(default_factory=list[float])
    errors: dict[str, int] = field(default_factory=dict[str, int])
    began: float = 0.0
    cpu: float = 0.0

    def begin(self) -> None:
        """Count from here on."""
        self.began, self.cpu = time.monotonic(), time.process_time()

    def failed(self, error: Exception) -> float:
        """Count a failure; the seconds after which to ask again."""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1
        return (error.retry_after or PAUSE) if isinstance(error, PeerlaneError) and error.code == "unavailable" else 0.0

    def document(self) -> dict[str, Any]:
        """The figures, of what was done until now."""
        took, done = time.monotonic() - self.began, len(self.waits)
        waits = [wait * 1000 for wait in self.waits] or [float("inf")]
        return {
            "done": done,
            "per_s": round(done / took, 1),
            "p50_ms": round(quantile(waits, 0.5), 2),
            "p99_ms": round(quantile(waits, 0.99), 2),
            "client_us": round((time.process_time() - self.cpu) / max(done, 1) * 1e6, 1),
            "errors": self.errors,
        }


def by_threads(load: Load, ask: Callable[[], object]) -> Came:
    """Each caller a thread."""
    for _ in range(WARM_UP):
        ask()
    came, until = Came(), time.monotonic() + load.seconds

    def caller() -> None:
        while (began := time.monotonic()) < until:
            try:
                ask()
                came.waits.append(time.monotonic() - began)
            except Exception as error:  # noqa: BLE001 - a failure is a figure
                time.sleep(min(came.failed(error), max(0.0, until - time.monotonic())))

    threads = [threading.Thread(target=caller) for _ in range(load.callers)]
    came.begin()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return came


def by_window(load: Load, send: Callable[[], Any]) -> Came:
    """Celery has no asyncio client: so many requests are sent ahead, and answered in order."""
    for _ in range(WARM_UP):
        send().get(timeout=load.timeout)
    came, until = Came(), time.monotonic() + load.seconds
    outstanding: deque[tuple[Any, float]] = deque()
    came.begin()
    while outstanding or time.monotonic() < until:
        while len(outstanding) < load.callers and (began := time.monotonic()) < until:
            outstanding.append((send(), began))
        if outstanding:
            sent, began = outstanding.popleft()
            sent.get(timeout=load.timeout)
            came.waits.append(time.monotonic() - began)
    return came


async def by_tasks(load: Load, app: PeerlaneApp) -> Came:
    """Each caller an asyncio task."""
    async with AsyncGateway(NAME, app=app, timeout=load.timeout) as gateway:
        for _ in range(WARM_UP):
            await gateway.create_peer(some_key(), timeout=60)
        came, until = Came(), time.monotonic() + load.seconds

        async def caller() -> None:
            while (began := time.monotonic()) < until:
                try:
                    await gateway.create_peer(some_key())
                    came.waits.append(time.monotonic() - began)
                except PeerlaneError as error:
                    await asyncio.sleep(min(came.failed(error), max(0.0, until - time.monotonic())))

        came.begin()
        await asyncio.gather(*(caller() for _ in range(load.callers)))
        return came


def run(load: Load) -> dict[str, Any]:
    """Ask, and count."""
    if load.kind in ("stock", "window"):
        from bench_stock_worker import nothing  # noqa: PLC0415 - reads the environment when imported

        def send() -> Any:
            return nothing.apply_async(kwargs={"gateway": NAME, "public_key": some_key()})

        came = by_window(load, send) if load.kind == "window" else by_threads(load, lambda: send().get(load.timeout))
        return came.document()
    app = PeerlaneApp(read(redis_url=load.url))
    try:
        if load.kind == "asyncio":
            return asyncio.run(by_tasks(load, app)).document()
        gateway = Gateway(NAME, app=app, timeout=load.timeout)
        return by_threads(load, lambda: gateway.create_peer(some_key())).document()
    finally:
        close(app)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Load(**json.loads(sys.argv[1])))) + "\n")
