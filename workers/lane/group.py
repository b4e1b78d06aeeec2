"""Carries out the messages that were taken together as one group, and ends each request.

Celery makes a request object and traces its task, for signals, callbacks and the storing of the result. Here the
commit has stored the result. So if no receiver is connected to one of ``SIGNALS``, requests end without Celery's
request and trace: the lean ending sends the events that Flower shows, counts the task, logs a line and acknowledges.
Celery's tasks and the group call the writer by ``LaneWriter``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celery import signals
from celery.app.trace import LOG_FAILURE, LOG_SUCCESS
from celery.exceptions import Reject, WorkerShutdown
from celery.worker import state as worker_state

from peerlane.config import names
from peerlane.tasks.errors import Fenced, PeerlaneError
from peerlane.tasks.wire.commit_record import in_short
from peerlane.workers import failpoints
from peerlane.workers.host.pulse import LONG, PULSE, SOON
from peerlane.workers.lane.taking import Dead, TakenMessage
from peerlane.workers.request.request import Outcome
from peerlane.workers.store.retry import ShutdownRequested
from peerlane.workers.writer.group import carry_out_many
from peerlane.workers.writer.struck_out import end_struck_out
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)
#: Where Celery itself logs that a task has ended, and where it is silenced (peerlane.workers.cli.run).
_trace_log = logging.getLogger("celery.app.trace")

#: Events that are sent as one message at most; those of a whole group are fewer. Celery's default is 24.
EVENTS_AT_ONCE = 512
#: Seconds after which waiting events are sent. Celery sends them at the end of each turn of its event loop, which is a
#: message and a round trip for each group.
EVENTS_WITHIN = 0.05

#: What Celery sends to receivers while it carries a task out.
SIGNALS = (
    signals.task_received,
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
    signals.task_failure,
    signals.task_rejected,
)


def somebody_listens() -> bool:
    """Whether a receiver is connected to a signal that only Celery's trace sends."""
    return any(cast("Any", signal).receivers for signal in SIGNALS)


class SentTogether:
    """Called when events wait: has them sent soon, those of all turns of the event loop until then as one message."""

    def __init__(self, eventer: Any, hub: Any) -> None:
        self._eventer, self._hub, self._due = eventer, hub, False

    def __call__(self) -> None:
        if not self._due:
            self._due = True
            self._hub.call_later(EVENTS_WITHIN, self._send)

    def _send(self) -> None:
        self._due = False
        self._eventer.flush()


class TaskEvents:
    """Sends the events of one task's requests, with the fields of Celery's events."""

    def __init__(self, task: Any, eventer: Any, hub: Any) -> None:
        self._name = str(task.name)
        self._eventer = eventer if eventer and eventer.enabled and task.send_events else None
        if self._eventer is not None:
            self._eventer.buffer_limit = EVENTS_AT_ONCE
            if hub and not isinstance(self._eventer.on_send_buffered, SentTogether):  # another task's is as good
                self._eventer.on_send_buffered = SentTogether(self._eventer, hub)

    def received(self, request_id: str, shown: str) -> None:
        """Send task-received. ``shown`` is the part of the arguments that may be shown."""
        if self._eventer is not None:
            self._eventer.send(
                "task-received",
                uuid=request_id,
                name=self._name,
                args="()",
                kwargs=shown,
                root_id=request_id,
                parent_id=None,
                retries=0,
                eta=None,
                expires=None,
            )

    def started(self, request_id: str) -> None:
        if self._eventer is not None:
            self._eventer.send("task-started", uuid=request_id)

    def ended(self, request_id: str, outcome: PeerlaneError | str, runtime: float, **more: object) -> None:
        """Send task-succeeded or task-failed. ``outcome`` is the error or the result in short, ``more`` more fields."""
        if self._eventer is None:
            return
        if isinstance(outcome, PeerlaneError):
            self._eventer.send("task-failed", uuid=request_id, exception=repr(outcome), traceback="", **more)
        else:
            self._eventer.send("task-succeeded", uuid=request_id, result=outcome, runtime=runtime, **more)

    def rejected(self, request_id: str) -> None:
        if self._eventer is not None:
            self._eventer.send("task-rejected", uuid=request_id, requeue=True)


class LeanEnding:
    """Ends the requests of one task."""

    def __init__(self, task: Any, consumer: Any, events: TaskEvents) -> None:
        self._name = str(task.name)
        self._consumer = consumer
        self._events = events

    def begin(self, taken: TakenMessage) -> None:
        """Count and announce a request that is about to be carried out."""
        worker_state.total_count[self._name] += 1
        worker_state.all_total_count[0] += 1
        self._events.started(taken.delivery.request_id)

    def end(self, taken: TakenMessage, began: float) -> bool:
        """End a request that began at ``began``. False: a newer writer has taken over, and it must be given back."""
        if taken.outcome is None:
            return False
        runtime = time.monotonic() - began
        try:
            failpoints.reach("before_acknowledge")
            shown = _shown(taken.outcome.result)
            self._events.ended(taken.delivery.request_id, shown, runtime)
            if _trace_log.isEnabledFor(logging.INFO):
                self._tell(taken.delivery.request_id, shown, runtime)
        except Exception:  # its outcome stands; the error must not harm the others or the worker
            log.exception("request %s has its outcome, but its end could not be told", taken.delivery.request_id)
        taken.acknowledge(log, self._consumer.connection_errors)
        return True

    def struck_out(self, request_id: str, outcome: Mapping[str, Any] | PeerlaneError) -> None:
        """End a request that had an outcome before it was taken, with one event."""
        worker_state.total_count[self._name] += 1
        worker_state.all_total_count[0] += 1
        shown = _shown(outcome)
        self._events.ended(request_id, shown, 0.0, name=self._name)
        if _trace_log.isEnabledFor(logging.INFO):
            self._tell(request_id, shown, 0.0)

    def give_back(self, taken: TakenMessage) -> None:
        """Put a request back on the lane for the writer that has taken over; this worker stops."""
        worker_state.should_stop = Fenced.exit_code
        taken.give_back(log, self._consumer.connection_errors)
        self._events.rejected(taken.delivery.request_id)

    def _tell(self, request_id: str, outcome: PeerlaneError | str, runtime: float) -> None:
        event: dict[str, object] = {"id": request_id, "name": self._name}
        if isinstance(outcome, PeerlaneError):
            # The error itself is for logs in JSON, which contain its code.
            event |= {"description": "raised expected", "exc": repr(outcome), "error": outcome}
            _trace_log.info(LOG_FAILURE, event, extra={"data": event})
        else:
            event |= {"return_value": outcome, "runtime": runtime}
            _trace_log.info(LOG_SUCCESS, event, extra={"data": event})


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
        """Carry requests out, several as one group. Each message then has its outcome, but one that was ``Fenced``."""
        ordinary = all(task in (names.CREATE_PEER, names.DELETE_PEER) for task, _, _ in requests)
        PULSE.turn(SOON if ordinary else LONG)
        try:
            outcomes = self._outcomes(requests)
        except ShutdownRequested:
            raise WorkerShutdown(0) from None
        finally:
            PULSE.turn()
        for (_, taken, _), outcome in zip(requests, outcomes, strict=True):
            taken.outcome = outcome

    def _outcomes(self, requests: Sequence[tuple[str, TakenMessage, Mapping[str, Any]]]) -> list[Outcome | None]:
        writer = self._writer
        if len(requests) > 1:
            made = [writer.request(task, taken.delivery, arguments) for task, taken, arguments in requests]
            return carry_out_many(writer, made)
        task, taken, arguments = requests[0]
        try:
            return [writer.carry_out(task, taken.delivery, arguments)]
        except Fenced:
            return [None]

    def strike_out(self, dead: Sequence[Dead]) -> None:
        """Count requests that were struck out of the lane, and end what is left of them."""
        self._writer.answered += len(dead)
        try:
            end_struck_out(self._writer, [(request.request_id, request.message, request.record) for request in dead])
        except ShutdownRequested:
            raise WorkerShutdown(0) from None


def _shown(outcome: Mapping[str, Any] | PeerlaneError) -> PeerlaneError | str:
    """What events and log say of an outcome."""
    return outcome if isinstance(outcome, PeerlaneError) else repr(in_short(outcome))


@dataclass(frozen=True, slots=True)
class Member:
    """A message with a valid request."""

    task: str
    taken: TakenMessage
    arguments: Mapping[str, Any]
    #: Has Celery run the request's task, which finds the outcome with ``taken``.
    run: Callable[[], None]
    #: Ends it without Celery's request and trace.
    ending: LeanEnding


class Group:
    """The messages that were taken in one step; the strategy adds those that it does not refuse."""

    def __init__(self, taken: int = 1, *, bulk: bool = False, full: bool = False) -> None:
        """``taken``: number of messages that were taken; ``full``: more wait."""
        self.taken, self.bulk, self.full = taken, bulk, full
        self._members: list[Member] = []
        self._writer: LaneWriter | None = None
        self._lean = True

    def add(self, writer: LaneWriter, member: Member, *, lean: bool) -> None:
        """Add a request; without ``lean`` it needs Celery's own request object."""
        self._writer = writer
        self._members.append(member)
        self._lean = self._lean and lean

    def carry_out(self) -> None:
        """Carry out all requests and end each: by Celery's trace if something listens to its signals, else lean."""
        if self._writer is None:
            return
        self._writer.takes(self.taken, bulk=self.bulk, full=self.full)
        if self._lean and not somebody_listens():
            self._carry_out_lean(self._writer)
            return
        if len(self._members) > 1:
            self._carry_out(self._writer)
        for member in self._members:
            member.run()

    def _carry_out(self, writer: LaneWriter) -> None:
        writer.carry_out_many([(member.task, member.taken, member.arguments) for member in self._members])

    def _carry_out_lean(self, writer: LaneWriter) -> None:
        began = time.monotonic()
        for member in self._members:
            member.ending.begin(member.taken)
        self._carry_out(writer)
        for member in self._members:
            if not member.ending.end(member.taken, began):
                member.ending.give_back(member.taken)
