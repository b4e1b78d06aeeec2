"""A gateway whose process listens to Celery's signals, as an instrumentation does: each is a line in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from celery import signals

from peerlane.workers.gateway import app

__all__ = ["app"]

_FILE = Path(os.environ["LISTENING_GATEWAY_FILE"])


def _note(signal: Any = None, task_id: str | None = None, request: Any = None, **_: Any) -> None:
    # task_success names the request as its task's, task_received as Celery's own object.
    sender = cast("Any", _.get("sender"))
    identity = task_id or getattr(request, "id", None) or sender.request.id
    with _FILE.open("a") as sink:
        sink.write(f"{signal.name} {identity}\n")


for _signal in (
    signals.task_received,
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
    signals.task_failure,
):
    cast("Any", _signal).connect(_note, weak=False)
