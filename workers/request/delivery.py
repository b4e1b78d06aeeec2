"""``Delivery``: how a request's message was delivered. ``Outcome``: the request's result or refusal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peerlane.tasks.errors import PeerlaneError


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
