"""Celery router: selects the queue from a task's ``gateway`` argument."""

from __future__ import annotations

from typing import Any

from peerlane.config import names

#: Tasks that go to the bulk queue whoever sends them.
BULK_TASKS = frozenset({names.REMOVE_PEERS, names.MEND_PEERS, names.IMPORT_PEERS})
#: Tasks of the observer, which never writes to the device.
OBSERVER_TASKS = frozenset({names.SWEEP, names.RECONCILE})
LANE_TASKS = frozenset({names.CREATE_PEER, names.DELETE_PEER}) | BULK_TASKS | OBSERVER_TASKS


def route_task(
    name: str,
    args: object,
    kwargs: dict[str, Any] | None,
    options: dict[str, Any],
    task: object = None,
    **_: object,
) -> dict[str, str] | None:
    """Celery router: ``gateway.NAME``, its ``.bulk`` or its ``.observer`` for lane tasks, None for any other.

    A ``queue`` that the sender names wins over this, which is how a list of creates goes to the bulk queue.

    Raises:
        ValueError: a lane task without a well-formed ``gateway`` keyword argument.
    """
    del args, options, task
    if name not in LANE_TASKS:
        return None
    gateway = (kwargs or {}).get("gateway")
    if not isinstance(gateway, str) or not names.GATEWAY_NAME.fullmatch(gateway):
        raise ValueError("a lane task needs the keyword argument gateway, a gateway's name")
    if name in OBSERVER_TASKS:
        return {"queue": names.observer_queue(gateway)}
    return {"queue": names.bulk_queue(gateway) if name in BULK_TASKS else names.lane_queue(gateway)}
