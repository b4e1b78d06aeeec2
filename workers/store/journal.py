"""Keeps a writer's last commits, so that it can repeat those that Redis loses. No I/O.

A commit is noted before it is sent, and corrected when its answer is known, so that a kill in between leaves it noted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

#: Commits kept, their bytes, and seconds for which they are kept: beyond any lag of a replica that is chosen.
MOST = 50_000
MOST_BYTES = 64 * 1024 * 1024
KEPT_FOR = 600.0


@dataclass(frozen=True, slots=True)
class Made:
    """An outcome in the form that ``redo`` takes."""

    request_id: str
    result: str
    #: As the commit takes them.
    changes: str
    share: str | None = None
    tag: str = ""
    #: Whether its changes hold a preshared key in clear: they go to no file.
    secret: bool = False
    #: The request's, in ms on Redis' clock; 0 for none. Until then it may be asked again.
    deadline: int = 0


@dataclass(slots=True)
class Step:
    """The outcomes of one call. If Redis loses the call, it loses all of them."""

    #: The sequence before it and after it.
    base: int
    seq: int
    made: Sequence[Made]
    at: float = field(default_factory=time.monotonic)
    #: Whether no answer came when it was sent: Redis may have carried it out or not.
    unanswered: bool = False

    @property
    def size(self) -> int:
        """Approximate bytes."""
        return sum(len(each.result) + len(each.changes) + 200 for each in self.made)


class Record(Protocol):
    """A second place where steps are noted (peerlane.workers.store.redo_file). Never raises."""

    def note(self, base: int, made: Sequence[Made]) -> None:
        """Note a step that is about to be sent."""
        ...

    def unanswered(self) -> None:
        """Note that no answer to the last step came. The next writer does not repeat it unless it is corrected."""
        ...

    def correct(self, kept: Sequence[int], late: Sequence[int]) -> None:
        """Reduce the last step to the outcomes with these numbers; those of ``late`` had come too late."""
        ...


class Journal:
    """The kept steps, oldest first."""

    def __init__(self, record: Record | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.record = record
        self._steps: deque[Step] = deque()
        self._outcomes = self._bytes = 0
        self._clock = clock
        #: The step that was sent and has no answer yet.
        self.pending: Step | None = None

    def __len__(self) -> int:
        return self._outcomes

    def note(self, base: int, made: Sequence[Made]) -> None:
        """Note a step that is about to be sent."""
        self.pending = Step(base, base + len(made), made, self._clock())
        if self.record is not None:
            self.record.note(base, made)

    def unanswered(self) -> None:
        """Note that the pending step got no answer; it may be sent again."""
        if self.pending is None or self.pending.unanswered:
            return
        self.pending.unanswered = True
        if self.record is not None:
            self.record.unanswered()

    def answered(self, seq: int, kept: Sequence[int], late: Sequence[int], records: Sequence[str]) -> None:
        """Take the pending step's answer: the sequence, and the numbers of the outcomes that became true.

        ``records`` are those of the ``late`` ones, which had another result.
        """
        step, self.pending = self.pending, None
        if step is None:
            return
        if self.record is not None and (step.unanswered or len(kept) < len(step.made)):
            self.record.correct(kept, late)
        expired = [
            Made(step.made[n].request_id, r, "[]", step.made[n].share, step.made[n].tag)
            for n, r in zip(late, records, strict=True)
        ]
        made = [step.made[number] for number in kept] + expired
        if made:
            self.keep(Step(step.base, seq, made, step.at))

    def withdrawn(self) -> None:
        """Drop the pending step, which was not carried out."""
        self.answered(0, (), (), ())

    def keep(self, step: Step) -> None:
        """Keep a step; the oldest are dropped if there are too many."""
        self._steps.append(step)
        self._outcomes += len(step.made)
        self._bytes += step.size
        while len(self._steps) > 1 and (
            self._outcomes > MOST or self._bytes > MOST_BYTES or self._clock() - self._steps[0].at > KEPT_FOR
        ):
            gone = self._steps.popleft()
            self._outcomes -= len(gone.made)
            self._bytes -= gone.size

    def keep_all(self, steps: Iterable[Step]) -> None:
        """Keep the steps of an earlier writer."""
        for step in steps:
            self.keep(step)

    def after(self, seq: int) -> list[Step]:
        """The kept steps that a Redis at this sequence lacks. It may lack others too, that are not kept."""
        return [step for step in self._steps if step.seq > seq]
