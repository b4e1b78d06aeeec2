"""Traces calls by OpenTelemetry, if the process has set it up.

OpenTelemetry is not imported here, as prometheus_client is not. redis-py imports its API where it is installed: as long
as no tracer provider is set there are no spans, and a call pays only for the look.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError


def trace_headers() -> dict[str, str]:
    """The message header for the current span; empty if there is no span."""
    propagate: Any = sys.modules.get("opentelemetry.propagate")
    if propagate is None:
        return {}
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name: text for name, text in carrier.items() if name == names.TRACEPARENT}


def is_set_up() -> bool:
    """Whether a tracer provider is set in this process."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


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
