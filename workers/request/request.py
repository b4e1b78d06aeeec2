"""A request in the writer, and how its commit record is written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ResponseError

from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.wire import outcome as results
from peerlane.workers.request.delivery import Delivery


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
        return results.encode(self.id, outcome, self.delivery.wish)

    def recorded(self, stored: str) -> dict[str, Any] | PeerlaneError:
        """The result or error in a commit record of its id; a Conflict if the record is another wish's."""
        try:
            return results.decode(stored, self.delivery.wish)
        except PeerlaneError as error:
            return error


def error_code(error: ResponseError) -> str:
    """The kind of an error (OutOfMemoryError, MISCONF …), without its text, which may quote what was sent."""
    # redis-py takes the code off where it has a class for it.
    return str(error).split(" ", 1)[0][:32] if type(error) is ResponseError else type(error).__name__
