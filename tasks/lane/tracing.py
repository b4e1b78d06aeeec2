"""Traces calls by OpenTelemetry, if the process has imported it.

OpenTelemetry is not imported here, as prometheus_client is not: a process that does not import it sends no traces.
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


@contextmanager
def traced(gateway: str) -> Generator[None]:
    """A span around a call, which the request carries to the gateway."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield
        return
    tracer, attributes = trace.get_tracer("peerlane"), {"peerlane.gateway": gateway}
    with tracer.start_as_current_span(
        "peerlane.call", kind=trace.SpanKind.CLIENT, attributes=attributes, record_exception=False
    ) as span:
        try:
            yield
        except PeerlaneError as error:
            span.set_attribute("peerlane.code", error.code)
            raise
