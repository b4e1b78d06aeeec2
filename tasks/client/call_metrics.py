"""Counts the calls of a process that has imported prometheus_client; otherwise nothing.

Only a caller sees ``Unavailable``, ``TimedOut`` and the time on the network. The counters are in prometheus_client's
own registry, with the others of an API process. It is not imported here: a process that does not import it pays one
look into a dictionary for each call.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane.tracing import traced

#: The families; ``code`` is ``ok``, an error's code, ``cancelled`` or ``unforeseen``.
REQUESTS, SECONDS = "peerlane_client_requests_total", "peerlane_client_request_seconds"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Gateways that have labels of their own; the names are the caller's to choose.
MOST_GATEWAYS = 200

_made: list[tuple[Any, Any]] = []
_series: dict[tuple[str, str], Any] = {}
_seconds: dict[str, Any] = {}


@contextmanager
def counted(gateway: str) -> Generator[None]:
    """Count and time the call inside the block; trace it, if the process uses OpenTelemetry."""
    with counted_for((gateway,)), traced(gateway):
        yield


@contextmanager
def counted_for(gateways: Collection[str]) -> Generator[None]:
    """Count the calls inside, one of each gateway, and how long they take."""
    library = sys.modules.get("prometheus_client")
    began, code = time.monotonic(), "unforeseen"
    try:
        yield
        code = "ok"
    except PeerlaneError as error:
        code = error.code
        raise
    except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        code = "cancelled"
        raise
    finally:
        if library is not None:
            for gateway in gateways:
                _count(library, gateway, code, time.monotonic() - began)


def _count(library: Any, gateway: str, code: str, seconds: float) -> None:
    if not _made:
        _made.append(
            (
                library.Counter(REQUESTS, "Calls by how they ended.", ["gateway", "code"]),
                library.Histogram(SECONDS, "From the call to its answer.", ["gateway"], buckets=_BUCKETS),
            )
        )
    requests, durations = _made[0]
    if gateway not in _seconds and len(_seconds) >= MOST_GATEWAYS:
        gateway = "other"
    if gateway not in _seconds:
        _seconds[gateway] = durations.labels(gateway)
    series = _series.get((gateway, code))
    if series is None:
        series = _series[gateway, code] = requests.labels(gateway, code)
    series.inc()
    _seconds[gateway].observe(seconds)
