"""What the benches time alike: drains, round trips, single creates, and what a process uses of a processor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_report import Figures, quantile
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names


def drain(server: RedisServer, pid: int, queue: str, send: Callable[[], Any], requests: int) -> float:
    """Requests per second of one worker that finds ``requests`` waiting: it is frozen while they are sent."""
    os.kill(pid, signal.SIGSTOP)
    sent = [send() for _ in range(requests)]
    last = str(sent[-1].id)
    began = time.perf_counter()
    os.kill(pid, signal.SIGCONT)
    eventually(
        lambda: server.redis.llen(queue) == 0 and server.redis.exists(names.result_key(last)),
        "the queue being drained",
        within=300,
        every=0.005,
    )
    took = time.perf_counter() - began
    for result in sent:
        result.backend.remove_pending_result(result)
    return requests / took


def round_trips(send: Callable[[], Any], requests: int) -> list[float]:
    """Milliseconds of requests that are awaited one after the other, sorted."""
    return sorted(timed(lambda: send().get(timeout=30)) for _ in range(requests))


def one_create(client: Gateway) -> float:
    """Milliseconds that one interactive create takes."""
    key = some_key()
    return timed(lambda: client.create_peer(key))


def timed(act: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def spread(times: Sequence[float], *shares: int, digits: int = 2) -> Figures:
    """How many, and their quantiles in percent, 50 and 99 unless named."""
    if not times:
        return {"count": 0}
    at = {f"p{share}": round(quantile(times, share / 100), digits) for share in shares or (50, 99)}
    return {"count": len(times), **at}


def quantiles(times: Sequence[float], prefix: str = "") -> Figures:
    """The p50 and the p99 of milliseconds, under the names that begin so."""
    return {f"{prefix}p{share}_ms": round(quantile(times, share / 100), 3) for share in (50, 99)}


def processor_seconds(pid: int) -> float:
    """What a process has used of a processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
