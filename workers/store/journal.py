"""Keeps a writer's last commits, in memory and in a file, so that those that Redis loses can be repeated.

A commit is noted before it is sent, and corrected when its answer is known, so that a kill in between leaves it noted.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

log = logging.getLogger(__name__)

#: Commits kept, their bytes, and seconds for which they are kept: beyond any lag of a replica that is chosen.
MOST = 50_000
MOST_BYTES = 64 * 1024 * 1024
KEPT_FOR = 600.0
#: Bytes of one of the two files, and outcomes in it, beyond which the other one is begun.
LARGEST = 32 * 1024 * 1024
MOST_IN_ONE = MOST // 2
#: The largest sequence, epoch or deadline.
MOST_NUMBER = 2**53 - 1
#: The field of the gateway's hash that says how many outcomes are lost and not made up for.
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Made:
    """An outcome in the form that ``commit`` and ``redo`` take."""

    request_id: str
    result: str
    #: In JSON.
    changes: str
    share: str | None = None
    tag: str = ""
    #: Whether its changes hold a preshared key in clear: they go to no file.
    secret: bool = False
    #: The request's, in ms on Redis' clock; 0 for none. Until then it may be asked again.
    deadline: int = 0
    #: For ``commit``: whether a gateway that is being drained refuses it, and whether it only removes, so that Redis
    #: accepts it while its memory is full.
    creates: bool = False
    removes: bool = False


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
        return sum(len(made.result) + len(made.changes) + 200 for made in self.made)


class RedoFile:
    """Notes the steps for the next writer on the host (``redo_reader``).

    The file must survive the process, not the host, so it is not synced: a host that loses power has lost its device's
    peers anyway. There are two files of limited size, used in turn. Each line is a checksum and a JSON object: the
    token of a writer about to start, its start, a step that it is about to send, that no answer to it came, the part of
    it that became true.
    Sealed preshared keys are in the file as in Redis; a change with a key in clear is left out. If a file cannot be
    written, it logs a warning and writes no more.
    """

    def __init__(self, directory: Path, gateway: str) -> None:
        self._gateway = gateway
        #: In the order in which they are written.
        self.paths = self._before, self._path = directory / f"{gateway}.redo.1", directory / f"{gateway}.redo"
        self._file: int | None = None
        self._bytes = self._outcomes = 0
        self._begun: dict[str, Any] = {}

    def announce(self, writer: str, follows: tuple[int, str], *, torn: int) -> None:
        """Note a writer that is about to start; ``torn`` are the last line's bytes if its writer was killed in it."""
        with self._or_give_up():
            self._open(torn)
        self._write({"next": writer, "after": list(follows)})

    def begin(self, epoch: int, writer: str, seq: int, followed: tuple[int, str], *, anew: bool = False) -> None:
        """Note a writer that starts at ``seq`` and follows ``followed``. ``anew``: delete what is there."""
        self._begun = {"gateway": self._gateway, "epoch": epoch, "writer": writer, "after": list(followed)}
        if anew:
            self.close()
            with self._or_give_up():
                self._before.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)
                self._open()
        self._write({**self._begun, "seq": seq})

    def _open(self, torn: int = 0) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o600)
        os.fchmod(self._file, 0o600)
        self._bytes, self._outcomes = os.fstat(self._file).st_size - torn, 0
        if torn:
            os.ftruncate(self._file, self._bytes)

    def note(self, base: int, made: Sequence[Made]) -> None:
        """Note a step that is about to be sent."""
        if self._file is None:
            return
        if self._bytes > LARGEST or self._outcomes > MOST_IN_ONE:
            self._turn(base)
        self._outcomes += len(made)
        self._write({"base": base, "made": [_line(outcome) for outcome in made]})

    def unanswered(self) -> None:
        """Note that no answer to the last step came. The next writer does not repeat it unless it is corrected."""
        self._write({"unanswered": True})

    def correct(self, kept: Sequence[int], late: Sequence[int]) -> None:
        """Reduce the last step to the outcomes with these numbers; those of ``late`` had come too late."""
        self._write({"kept": list(kept), "late": list(late)})

    def _turn(self, base: int) -> None:
        with self._or_give_up():
            self.close()
            self._path.replace(self._before)
            self._open()
        self._write({**self._begun, "seq": base})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        text = json.dumps(entry, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        self._bytes += len(line)
        with self._or_give_up():
            if os.write(self._file, line) < len(line):
                raise OSError(28, "no room")

    @contextmanager
    def _or_give_up(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            log.warning(
                "gateway %s: %s cannot be written (%s): commits that Redis loses when this writer dies at the same "
                "moment cannot be made true again",
                *(self._gateway, self._path, error.strerror),
            )
            self.close()

    def close(self) -> None:
        """Close the file; it is not deleted."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _line(made: Made) -> tuple[str | int | None, ...]:
    changes = None if made.secret else made.changes
    return made.request_id, made.result, changes, made.share, made.tag, min(made.deadline, MOST_NUMBER)


class Journal:
    """The kept steps, oldest first."""

    def __init__(self, record: RedoFile | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
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


@dataclass(slots=True)
class Lost:
    """The outcomes that Redis has lost, and those of them that could not be repeated."""

    #: Outcomes that were not kept any more, or rest on such.
    outcomes: int = 0
    #: Outcomes that Redis holds otherwise now: their callers had not heard of them, and have cancelled them.
    disputed: int = 0
    #: The public keys of these.
    keys: set[str] = field(default_factory=set[str])
    #: Outcomes made true again.
    redone: int = 0
    #: Outcomes of a gateway of which Redis knows nothing any more.
    unknown: int = 0

    def count(self, made: Sequence[Made], verdicts: Sequence[str]) -> list[dict[str, object]]:
        """Count what became of outcomes that were repeated; returns the removals among those that were cancelled.

        A ``lost`` outcome depends on one that Redis has lost and that is kept nowhere. It was confirmed last, so the
        table is right about it.
        """
        removals: list[dict[str, object]] = []
        for outcome, verdict in zip(made, verdicts, strict=True):
            if verdict not in ("cancelled", "lost"):
                self.redone += 1
                continue
            changes = cast("list[dict[str, object]]", json.loads(outcome.changes))
            if verdict == "lost":
                self.outcomes += 1
                self.keys -= {str(change["key"]) for change in changes}
            else:
                self.disputed += 1
                changes = [change for change in changes if "kept" not in change]
                self.keys |= {str(change["key"]) for change in changes}
                removals += [change for change in changes if "record" not in change]
        return removals

    def add(self, more: Lost) -> None:
        """Add what else is lost."""
        self.outcomes += more.outcomes
        self.disputed += more.disputed
        self.keys |= more.keys
        self.redone += more.redone
        self.unknown += more.unknown

    @property
    def incomplete(self) -> bool:
        """Whether outcomes are lost that are not in the journal."""
        return self.outcomes > 0 or self.unknown > 0

    def __bool__(self) -> bool:
        return self.incomplete or self.disputed > 0
