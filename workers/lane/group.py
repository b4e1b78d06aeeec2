"""Collects the messages that were taken together, as Celery delivers them, and carries them out as one group."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peerlane.workers.lane.ending import LeanEnding, somebody_listens
from peerlane.workers.lane.taken import LaneWriter, TakenMessage


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
        writer.carry_out_many([(each.task, each.taken, each.arguments) for each in self._members])

    def _carry_out_lean(self, writer: LaneWriter) -> None:
        began = time.monotonic()
        for member in self._members:
            member.ending.begin(member.taken)
        self._carry_out(writer)
        for member in self._members:
            if not member.ending.end(member.taken, began):
                member.ending.give_back(member.taken)
