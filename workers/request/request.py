"""A request in the writer, and how its commit record is written and read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ResponseError

from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.wire import commit_record


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a request was delivered. Made when its message is taken (peerlane.workers.lane), and passed on unchanged."""

    request_id: str
    #: Of the message; a commit acknowledges it in the same step. '' where there is no message.
    tag: str = ""
    #: The message was delivered before.
    redelivered: bool = False
    #: The request had an outcome when the message was taken, or something else in the place of one.
    answered: bool = False
    #: The digest of its wish, as its sender made it; '' where the message names none.
    wish: str = ""
    #: When it was sent, in ms on Redis' clock as its sender knows it; 0 where the message does not say.
    sent_at: int = 0
    #: The caller's span, as W3C Trace Context has it; '' where it traces nothing.
    traceparent: str = ""
    #: When it was taken, on the monotonic clock.
    taken_at: float = field(default_factory=time.monotonic)

    def in_doubt(self, sure_for: float) -> bool:
        """Whether the request may have an outcome by now; what was known at delivery holds for ``sure_for`` seconds."""
        return self.redelivered or self.answered or time.monotonic() > self.taken_at + sure_for


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a request. It is stored in Redis, except a refusal that Redis refused to store."""

    result: Mapping[str, Any] | PeerlaneError
    #: Whether its message was acknowledged in the same step.
    acknowledged: bool = False


@dataclass(slots=True)
class Times:
    """When a request reached each step, on the monotonic clock; 0 for a step that it has not reached."""

    #: What it comes to was clear: the device is touched next, or a refusal committed.
    planned: float = 0.0
    #: The device was changed.
    applied: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request in the writer."""

    task: str
    delivery: Delivery
    arguments: Mapping[str, Any]
    #: The key under which it counts in a share of the lane.
    share: str | None = None
    times: Times = field(default_factory=Times)

    @property
    def id(self) -> str:
        """Its id, which is its Celery task's."""
        return self.delivery.request_id

    def record(self, outcome: Mapping[str, Any] | PeerlaneError) -> str:
        """The commit record of an outcome."""
        return commit_record.encode(self.id, outcome, self.delivery.wish)

    def recorded(self, stored: str) -> dict[str, Any] | PeerlaneError:
        """The result or error in a commit record of its id; a Conflict if the record is another wish's."""
        try:
            return commit_record.decode(stored, self.delivery.wish)
        except PeerlaneError as error:
            return error


def error_code(error: ResponseError) -> str:
    """The kind of an error (OutOfMemoryError, MISCONF …), without its text, which may quote what was sent."""
    # redis-py takes the code off where it has a class for it.
    return str(error).split(" ", 1)[0][:32] if type(error) is ResponseError else type(error).__name__
