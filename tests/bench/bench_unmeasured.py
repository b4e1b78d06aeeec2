"""A writer that measures nothing, for bench_measurements.py: ``celery -A bench_unmeasured worker``."""

from __future__ import annotations

from typing import Any, cast

from peerlane.workers.gateway import GatewayApp
from peerlane.workers.request.request import Measurements
from peerlane.workers.writer import heartbeat


def _nothing(*_: Any) -> None:
    """In place of measuring and of what it tells."""


cast("Any", Measurements).answered = _nothing
cast("Any", heartbeat).encoded = _nothing

app = GatewayApp()
