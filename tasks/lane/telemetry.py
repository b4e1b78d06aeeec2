"""Counts and traces the calls of a process that has imported prometheus_client or OpenTelemetry; otherwise nothing.

Only a caller sees ``Unavailable``, ``TimedOut`` and the time on the network. The counters are in prometheus_client's
own registry, with the others of an API process. Neither library is imported here: a process that does not import them
pays one look into a dictionary for each call.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Collection, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError

#: The families; ``code`` is ``ok``, an error's code, ``cancelled`` or ``unforeseen``.
REQUESTS, SECONDS = "peerlane_client_requests_total", "peerlane_client_request_seconds"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Gateways that have labels of their own; the names are the caller's to choose.
MOST_GATEWAYS = 200

_made: list[tuple[Any, Any]] = []
#: Threads make the first calls at once, and the registry takes each name once.
_making = threading.Lock()
_series: dict[tuple[str, str], Any] = {}
_seconds: dict[str, Any] = {}

#: For calls that are neither counted nor traced.
_UNWATCHED = nullcontext()


def counted(gateway: str) -> AbstractContextManager[None]:
    """Count and time the call inside the block; trace it, if the process uses OpenTelemetry."""
    return _watched(gateway) if "prometheus_client" in sys.modules or is_set_up() else _UNWATCHED


@contextmanager
def _watched(gateway: str) -> Generator[None]:
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
    with _making:
        if not _made:
            if not hasattr(library, "Histogram"):
                return  # another thread is importing it
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


@contextmanager
def traced(gateway: str) -> Generator[None]:
    """A span around a call, which the request carries to the gateway."""
    if not is_set_up():
        yield
        return
    trace: Any = sys.modules["opentelemetry.trace"]
    tracer, attributes = trace.get_tracer("peerlane"), {"peerlane.gateway": gateway}
    with tracer.start_as_current_span(
        "peerlane.call", kind=trace.SpanKind.CLIENT, attributes=attributes, record_exception=False
    ) as span:
        try:
            yield
        except PeerlaneError as error:
            span.set_attribute("peerlane.code", error.code)
            raise


def is_set_up() -> bool:
    """Whether a tracer provider is set in this process. redis-py imports OpenTelemetry's API where it is installed."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    # While another thread imports it, it is there and has not all of its names.
    return hasattr(trace, "get_tracer_provider") and not isinstance(
        trace.get_tracer_provider(), trace.ProxyTracerProvider
    )


def trace_headers() -> dict[str, str]:
    """The message header for the current span; empty if there is no span."""
    propagate: Any = sys.modules.get("opentelemetry.propagate")
    if not hasattr(propagate, "set_global_textmap"):  # its last name, as above
        return {}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name: text for name, text in carrier.items() if name == names.TRACEPARENT}
