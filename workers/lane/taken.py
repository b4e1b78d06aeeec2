"""``TakenMessage``: a taken message with its outcome. ``LaneWriter``: the writer as Celery's tasks call it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery.exceptions import Reject, WorkerShutdown
from celery.worker import state as worker_state

from peerlane.config import names
from peerlane.tasks.errors import Fenced, PeerlaneError
from peerlane.workers import failpoints
from peerlane.workers.host.pulse import LONG, PULSE, SOON
from peerlane.workers.lane.taking import Dead
from peerlane.workers.request.request import Delivery, Outcome
from peerlane.workers.store.retry import ShutdownRequested
from peerlane.workers.writer.group import carry_out_many
from peerlane.workers.writer.shares import leave_shares
from peerlane.workers.writer.writer import Writer

#: Where a task finds the TakenMessage of its request: an attribute of Celery's ``self.request``.
TAKEN = "taken"


class TakenMessage:
    """A taken message: its delivery, and its request's outcome once there is one. The result backend reads it too."""

    def __init__(
        self, message: Any, delivery: Delivery, acknowledge: Callable[..., None], reject: Callable[..., None]
    ) -> None:
        self.delivery = delivery
        self.outcome: Outcome | None = None
        self._message, self._acknowledge = message, acknowledge
        self.reject = reject

    def acknowledge(self, *context: Any) -> None:
        """Acknowledge it, unless the commit of its request has."""
        if self.outcome is not None and self.outcome.acknowledged:
            self._message.channel.qos.acknowledged_elsewhere(self.delivery.tag)
        else:
            self._acknowledge(*context)

    def give_back(self, log: logging.Logger, errors: Any) -> None:
        """Put it back on its queue at once, because the event loop keeps no order."""
        self._message.reject_log_error(log, errors, requeue=True)


class LaneWriter:
    """The writer as the tasks call it. Errors that must stop the worker stop it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def takes(self, count: int, *, bulk: bool, full: bool) -> None:
        """Count messages that were taken together; ``full``: more wait."""
        self._writer.pace.taken(count, bulk=bulk, full=full)

    def carry_out(self, task: str, taken: TakenMessage, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carry a request out; returns its result.

        Raises:
            PeerlaneError: its outcome is this refusal.
        """
        PULSE.turn(SOON if task in (names.CREATE_PEER, names.DELETE_PEER) else LONG)
        try:
            if taken.outcome is None:  # else it was carried out in a group
                taken.outcome = self._writer.carry_out(task, taken.delivery, arguments)
        except Fenced as error:
            # The request goes back to the lane for the writer that has taken over; this worker ends.
            worker_state.should_stop = Fenced.exit_code
            raise Reject(error.message, requeue=True) from None
        except ShutdownRequested:
            raise WorkerShutdown(0) from None
        finally:
            PULSE.turn()
            failpoints.reach("before_acknowledge")
        if isinstance(taken.outcome.result, PeerlaneError):
            raise taken.outcome.result
        return taken.outcome.result

    def carry_out_many(self, requests: Sequence[tuple[str, TakenMessage, Mapping[str, Any]]]) -> None:
        """Carry requests out as one group. Each message then has its outcome, except those that ended as ``Fenced``."""
        ordinary = all(task in (names.CREATE_PEER, names.DELETE_PEER) for task, _, _ in requests)
        PULSE.turn(SOON if ordinary else LONG)
        try:
            outcomes = carry_out_many(
                self._writer,
                [self._writer.request(task, taken.delivery, arguments) for task, taken, arguments in requests],
            )
        except ShutdownRequested:
            raise WorkerShutdown(0) from None
        finally:
            PULSE.turn()
        for (_, taken, _), outcome in zip(requests, outcomes, strict=True):
            taken.outcome = outcome

    def strike_out(self, dead: Sequence[Dead]) -> None:
        """Count requests that were struck out of the lane, and remove them from their shares."""
        self._writer.answered += len(dead)
        try:
            leave_shares(self._writer, [(each.request_id, each.message) for each in dead])
        except ShutdownRequested:
            raise WorkerShutdown(0) from None
