"""Asks a gateway's observer to sweep or reconcile now, and waits for the report."""

from __future__ import annotations

import uuid
from typing import Any, cast

from redis import Redis

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import unknown_gateway
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import TimedOut, Unavailable
from peerlane.tasks.lane.request import seconds_of
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.redis.errors import SEND_ERRORS, is_refused, may_not_send, reading, unknown
from peerlane.tasks.redis.server_clock import milliseconds
from peerlane.tasks.status.gateway_status import observer_is_live, observer_silence
from peerlane.tasks.wire.model import parse
from peerlane.tasks.wire.upkeep import ReconcileGateway, SweepGateway


def sweep(
    app: PeerlaneApp, gateway: str, *, dry_run: bool = False, force: bool = False, timeout: float = 600.0
) -> dict[str, Any]:
    """Have a gateway's observer sweep now; its report.

    Raises:
        Invalid: the gateway's name is none, or ``timeout`` no number of seconds above 0; nothing was sent.
        Unavailable: the gateway is unknown, or has no observer.
        TimedOut: no report within ``timeout``; the sweep stops, what it had removed stays removed.
        StorageError: Redis refuses this to this user; nothing was sent.
        OutcomeUnknown: Redis could not be reached.
    """
    return _ask(app, names.SWEEP, SweepGateway, gateway, timeout, dry_run=dry_run, force=force)


def reconcile(app: PeerlaneApp, gateway: str, *, dry_run: bool = False, timeout: float = 600.0) -> dict[str, Any]:
    """Have a gateway's observer compare its device with Redis now; its report. Raises as ``sweep`` does."""
    return _ask(app, names.RECONCILE, ReconcileGateway, gateway, timeout, dry_run=dry_run)


def _ask(
    app: PeerlaneApp,
    task: str,
    model: type[SweepGateway | ReconcileGateway],
    gateway: str,
    timeout: float,
    **flags: bool,
) -> dict[str, Any]:
    arguments: dict[str, Any] = {"gateway": gateway} | {name: True for name, value in flags.items() if value}
    parse(model, arguments)
    timeout = seconds_of(timeout)
    lanes = lanes_of(app)
    request_id = names.request_id(gateway, str(uuid.uuid4()))
    with reading("nothing was sent"):
        _check(lanes.redis, gateway)
        arguments["deadline"] = lanes.clock.now_ms() + int(timeout * 1000)
    try:
        app.send_task(task, kwargs=arguments, task_id=request_id)
    except SEND_ERRORS as error:
        if is_refused(error):
            raise may_not_send() from error
        raise unknown(error, "whether it was asked is unknown", request_id) from error
    result = LaneResult(request_id, backend=app.backend, app=app)
    result.deadline = arguments["deadline"]
    try:
        return result.get(timeout=timeout)
    except TimedOut:
        raise TimedOut(
            f"no report within {timeout:g} s: it was told to stop; what it had done until then stays done"
        ) from None


def _check(redis: Redis, gateway: str) -> None:
    pipe = redis.pipeline(transaction=False)
    pipe.exists(names.gateway_key(gateway))
    pipe.hget(names.observer_key(gateway), "heartbeat")
    pipe.time()
    known, beat, time_reply = cast("tuple[int, bytes | None, tuple[int, int]]", tuple(pipe.execute()))
    if not known:
        raise unknown_gateway(gateway)
    if not observer_is_live(observer_silence(beat, milliseconds(time_reply))):
        raise Unavailable(f"the gateway {gateway} has no live observer; `peerlane gateway run` starts one", 5.0)
