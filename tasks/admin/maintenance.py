"""What a gateway's observer is asked: sweep, reconcile. The tasks, and the calls of operators."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast

from celery import Task
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp
from peerlane.tasks.connection import reason
from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError, TimedOut, Unavailable, WriterError
from peerlane.tasks.lane.admission import lanes_of
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.wire.model import parse
from peerlane.tasks.wire.upkeep import ReconcileGateway, SweepGateway

#: Milliseconds without a sign of life after which an observer counts as gone; a long reading keeps it silent a while.
OBSERVER_LIVE_FOR_MS = 15_000


class Observes(Protocol):
    """What the tasks need of a gateway's observer. It returns the result or raises the refusal."""

    def carry_out(self, task: str, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]: ...


class UpkeepTask(Task[..., dict[str, Any]]):
    """A task of a gateway's observer. Its id is ``GATEWAY.<token>``; its arguments are keywords only."""

    abstract = True
    typing = False
    throws = (PeerlaneError,)
    ignore_result = False
    #: Set on an observer only (peerlane.workers.observer).
    observer: ClassVar[Observes | None] = None

    def run(self, **arguments: Any) -> dict[str, Any]:
        """On the gateway: look, decide, and have the writer do it."""
        if self.observer is None:
            raise WriterError("this worker is no gateway's observer: start it with `peerlane gateway run`")
        return self.observer.carry_out(self.name, str(self.request.id), arguments)


class SweepTask(UpkeepTask):
    """Arguments as in SweepGateway."""

    name = names.SWEEP


class ReconcileTask(UpkeepTask):
    """Arguments as in ReconcileGateway."""

    name = names.RECONCILE


def register(application: PeerlaneApp, observer: Observes) -> None:
    """Give an observer's app its tasks."""
    for title, kind in (("SweepTask", SweepTask), ("ReconcileTask", ReconcileTask)):
        fields = {"observer": observer, "Strategy": "peerlane.workers.lane.strategy:LaneStrategy"}
        application.register_task(cast("UpkeepTask", type(title, (kind,), fields)()))


def sweep(
    app: PeerlaneApp, gateway: str, *, dry_run: bool = False, force: bool = False, timeout: float = 600.0
) -> dict[str, Any]:
    """Have a gateway's observer sweep now; its report.

    Raises:
        Unavailable: the gateway is unknown, or nobody observes it.
        TimedOut: no report within ``timeout``; the sweep stops, what it had removed stays removed.
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
    lanes = lanes_of(app)
    request_id = names.request_id(gateway, str(uuid.uuid4()))
    try:
        _check(lanes.redis, gateway)
        arguments["deadline"] = lanes.clock.now_ms() + int(timeout * 1000)
    except RedisError as error:
        raise OutcomeUnknown(f"Redis could not be reached ({reason(error)}); nothing was sent") from error
    try:
        app.send_task(task, kwargs=arguments, task_id=request_id)
    except (OperationalError, RedisError, OSError, RuntimeError) as error:
        raise OutcomeUnknown("Redis could not be reached: whether it was asked is unknown", request_id) from error
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
    known, beat, (seconds, micros) = cast("tuple[int, bytes | None, tuple[int, int]]", tuple(pipe.execute()))
    if not known:
        raise Unavailable(f"no gateway {gateway} is registered; `peerlane gateway list` shows those that are")
    silent_for = seconds * 1000 + micros // 1000 - int(beat or 0)
    if silent_for > OBSERVER_LIVE_FOR_MS:
        raise Unavailable(f"the gateway {gateway} has no live observer; `peerlane gateway run` starts one", 5.0)
