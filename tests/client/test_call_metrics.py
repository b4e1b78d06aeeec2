"""Counters of callers: what only they see, for threads and asyncio alike, and nothing where nobody shows it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

import prometheus_client
import pytest
from gateways import GatewayProcess, MakeClient
from keys import some_key
from servers import RedisServer
from waiting import PATIENCE

from peerlane import AsyncGateway, Conflict, Invalid, TimedOut, Unavailable
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.lane import telemetry
from peerlane.tasks.lane.telemetry import MOST_GATEWAYS, REQUESTS, SECONDS, counted


def calls(gateway: str, code: str) -> float:
    sample: Any = prometheus_client.REGISTRY.get_sample_value(REQUESTS, {"gateway": gateway, "code": code})
    return float(sample or 0)


def durations(gateway: str) -> float:
    sample: Any = prometheus_client.REGISTRY.get_sample_value(f"{SECONDS}_count", {"gateway": gateway})
    return float(sample or 0)


def test_calls_are_counted_by_how_they_end(shared_gateway: GatewayProcess, client: MakeClient) -> None:
    peers, name, key = client(shared_gateway), shared_gateway.name, some_key()
    before, codes = durations(name), ("ok", "conflict", "invalid")
    counts = [calls(name, code) for code in codes]
    peers.create_peer(key)
    with pytest.raises(Conflict):
        peers.create_peer(key, keepalive=25)
    with pytest.raises(Invalid):
        peers.create_peer("no key")
    peers.delete_peer(key)
    assert [calls(name, code) - count for code, count in zip(codes, counts, strict=True)] == [2, 1, 1]
    assert durations(name) - before == 4
    shared_gateway.pause(alive=True)
    with pytest.raises(TimedOut):
        peers.delete_peer(key, timeout=0.2)
    shared_gateway.resume()
    assert calls(name, "timed_out") >= 1


@pytest.mark.usefixtures("redis_server")
def test_a_refusal_that_no_gateway_sees_is_counted(client: MakeClient) -> None:
    with pytest.raises(Unavailable):
        client("tnowhere").create_peer(some_key())
    assert calls("tnowhere", "unavailable") == 1


def test_calls_of_asyncio_are_counted_too(shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    name = shared_gateway.name
    before, cancelled = calls(name, "ok"), calls(name, "cancelled")

    async def life() -> None:
        async with AsyncGateway(name, app=app) as gateway:
            key = some_key()
            await asyncio.gather(*(gateway.create_peer(each) for each in (key, some_key(), some_key())))
            await gateway.delete_peer(key)
            shared_gateway.pause(alive=True)
            given_up = asyncio.create_task(gateway.create_peer(some_key(), timeout=PATIENCE))
            await asyncio.sleep(0)  # it has begun
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            shared_gateway.resume()

    asyncio.run(life())
    assert calls(name, "ok") - before == 4
    assert calls(name, "cancelled") - cancelled == 1


def test_names_beyond_a_number_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller chooses the name, and each would be another series."""
    monkeypatch.setattr(telemetry, "_seconds", dict(telemetry._seconds))  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - put back afterwards
    for number in range(MOST_GATEWAYS + 5):
        with counted(f"tmany{number}"):
            pass
    assert calls("other", "ok") >= 5
    assert calls(f"tmany{MOST_GATEWAYS + 4}", "ok") == 0


def test_what_nobody_foresaw_is_counted_as_that() -> None:
    with pytest.raises(ZeroDivisionError), counted("tbroken"):
        raise ZeroDivisionError
    assert calls("tbroken", "unforeseen") == 1


def test_a_process_that_does_not_use_prometheus_client_does_not_load_it(redis_server: RedisServer) -> None:
    program = """
import sys
from peerlane import Gateway, Unavailable
try:
    Gateway("tnowhere").create_peer(sys.argv[1])
except Unavailable:
    print("prometheus_client" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", program, some_key()],
        env={"PEERLANE_REDIS_URL": redis_server.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said.stdout == "False\n"


def test_the_first_calls_of_many_threads_are_counted_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry takes a name once: whoever comes second must not fail for it."""
    registry = prometheus_client.CollectorRegistry()

    class Library:
        Histogram = staticmethod(partial(prometheus_client.Histogram, registry=registry))

        @staticmethod
        def Counter(*about: Any) -> Any:  # noqa: N802 - the library's name
            made = prometheus_client.Counter(*about, registry=registry)
            time.sleep(0.05)  # so that the others come meanwhile
            return made

    monkeypatch.setattr(telemetry, "_made", list[Any]())
    for name in ("_series", "_seconds"):
        monkeypatch.setattr(telemetry, name, dict[Any, Any]())
    monkeypatch.setitem(sys.modules, "prometheus_client", Library)
    start = threading.Barrier(4)

    def call() -> None:
        start.wait(PATIENCE)
        with counted("iad"):
            pass

    with ThreadPoolExecutor(4) as threads:
        for ended in [threads.submit(call) for _ in range(4)]:
            ended.result(PATIENCE)
    assert registry.get_sample_value(REQUESTS, {"gateway": "iad", "code": "ok"}) == 4


def test_a_library_that_is_being_imported_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_made", [])
    monkeypatch.setitem(sys.modules, "prometheus_client", ModuleType("prometheus_client"))
    with counted("iad"):
        pass


def test_a_tracer_that_is_being_imported_traces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opentelemetry.trace", "opentelemetry.propagate"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert telemetry.trace_headers() == {}
    with counted("iad"):
        pass
