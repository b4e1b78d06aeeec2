"""Makes OpenTelemetry spans of a traced request and its stages, if OpenTelemetry is loaded.

They are made after the request has its outcome, from times that are measured anyway. A request that is not traced
costs one look at its header.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from peerlane.config import names
from peerlane.tasks.values.metrics import STAGES

log = logging.getLogger(__name__)


def tell(request_id: str, traceparent: str, kind: tuple[str, str, str], moments: Sequence[float]) -> None:
    """Make the spans of a request. ``kind`` is operation, outcome and code.

    ``moments`` are when each of STAGES began, and when the last one ended, on the monotonic clock.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    propagate: Any = sys.modules.get("opentelemetry.propagate")
    if trace is None or propagate is None:
        return
    try:
        _tell((trace, propagate), request_id, traceparent, kind, moments)
    except Exception as error:  # noqa: BLE001 - the request has its outcome: whatever a tracer does changes nothing
        log.warning("request %s: its spans could not be made (%s)", request_id, type(error).__name__)


def _tell(
    library: tuple[Any, Any], request_id: str, traceparent: str, kind: tuple[str, str, str], moments: Sequence[float]
) -> None:
    trace, propagate = library
    now, began, ended = time.time_ns(), moments[0], moments[-1]

    def wall(moment: float) -> int:
        return now - int((ended - moment) * 1e9)

    tracer = trace.get_tracer("peerlane")
    operation, outcome, code = kind
    attributes = {"peerlane.request": request_id, "peerlane.outcome": outcome}
    if code:
        attributes["peerlane.code"] = code
    parent = propagate.extract({names.TRACEPARENT: traceparent})
    whole = tracer.start_span(
        f"peerlane.{operation}",
        context=parent,
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
        start_time=wall(began),
    )
    within = trace.set_span_in_context(whole, parent)
    for stage, begins, ends in zip(STAGES, moments[:-1], moments[1:], strict=True):
        if ends > begins:
            tracer.start_span(stage, context=within, start_time=wall(begins)).end(wall(ends))
    whole.end(now)
