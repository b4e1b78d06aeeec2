"""Messages that were taken together: collected while Celery's consumer is given each, then carried out as one group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peerlane.workers.lane.taken import LaneWriter, TakenMessage


@dataclass(frozen=True, slots=True)
class Member:
    """A message that has become Celery's request."""

    task: str
    taken: TakenMessage
    arguments: Mapping[str, Any]
    #: Has Celery run the request's task, which finds the outcome with ``taken``.
    run: Callable[[], None]


class Group:
    """The messages of one step; empty until the strategy adds what is not refused."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._writer: LaneWriter | None = None

    def add(self, writer: LaneWriter, member: Member) -> None:
        """Add what is to be carried out."""
        self._writer = writer
        self._members.append(member)

    def carry_out(self) -> None:
        """Carry all out, and have each end as Celery's tasks end: signals, events, acknowledgement, log."""
        if self._writer is not None and len(self._members) > 1:
            self._writer.carry_out_many([(each.task, each.taken, each.arguments) for each in self._members])
        for member in self._members:
            member.run()
