"""A stock Celery worker with one task that does nothing: what ``bench_lane`` measures the writer beside."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("stock", broker=os.environ["STOCK_BROKER"], backend=os.environ["STOCK_BROKER"])
app.conf.update(
    worker_pool="solo",
    worker_concurrency=1,
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    worker_send_task_events=os.environ.get("STOCK_EVENTS") == "1",
    broker_connection_retry_on_startup=True,
    task_default_queue="stock",
)


@app.task(name="stock.nothing", bind=True)
def nothing(_task: object, **_arguments: object) -> dict[str, str]:
    """What a task costs that does nothing at all."""
    return {"outcome": "nothing"}
