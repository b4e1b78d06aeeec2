"""The Celery tasks that a gateway's observer runs: sweep, reconcile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, cast

from celery import Task

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import PeerlaneError, WriterError


class Observes(Protocol):
    """The part of a gateway's observer that the tasks call. It returns the result or raises the refusal."""

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
        """Run on the gateway: the observer looks, decides, and has the writer act."""
        if self.observer is None:
            raise WriterError("this worker is no gateway's observer: start it with `peerlane gateway run`")
        return self.observer.carry_out(self.name, str(self.request.id), arguments)


class SweepTask(UpkeepTask):
    """Arguments as in peerlane.tasks.wire.upkeep.SweepGateway."""

    name = names.SWEEP


class ReconcileTask(UpkeepTask):
    """Arguments as in peerlane.tasks.wire.upkeep.ReconcileGateway."""

    name = names.RECONCILE


def register(application: PeerlaneApp, observer: Observes) -> None:
    """Give an observer's app its tasks."""
    for title, kind in (("SweepTask", SweepTask), ("ReconcileTask", ReconcileTask)):
        fields = {"observer": observer, "Strategy": "peerlane.workers.lane.strategy:LaneStrategy"}
        application.register_task(cast("UpkeepTask", type(title, (kind,), fields)()))
