"""Reads the commits that earlier writers have kept in a file (``journal.RedoFile``), for a writer that starts.

A step without an answer is not repeated: its requests are delivered again, and their deadlines are looked at. A file is
used only if all of it is exactly what a writer of this gateway writes; otherwise it is ignored, and the next writer
begins a new one.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from redis import Redis

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.model import check_public_key
from peerlane.tasks.wire.stored_peer import Peer
from peerlane.workers.store.journal import LARGEST, MOST_NUMBER, Made, Step

log = logging.getLogger(__name__)

#: Bytes beyond which no file is read: one more step, an import say, may have made it so much larger.
READ_AT_MOST = 4 * LARGEST


class Unusable(Exception):
    """A file is foreign or damaged; the text is for the log."""


@dataclass(slots=True)
class Kept:
    """The content of the files."""

    steps: list[Step] = field(default_factory=list[Step])
    #: The writers that wrote them and those they followed: (epoch, token). Redis has to know the last of one of these.
    writers: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    #: The sequence after the last step, and the epoch of the last writer.
    seq: int = 0
    epoch: int = 0
    #: Bytes after the last whole line of the last file: its writer was killed while it wrote.
    torn: int = 0


def read_redo(gateway: str, paths: Sequence[Path]) -> Kept:
    """The commits in a gateway's files, in the order of writing; empty if any part is not as a writer writes it."""
    kept = Kept()
    for path in paths:
        kept.torn = 0
        try:
            raw = _read_own(path)
        except FileNotFoundError:
            continue
        except (OSError, Unusable) as error:
            why = str(error) if isinstance(error, Unusable) else error.strerror
            log.warning("gateway %s: the redo file %s is ignored: %s", gateway, path, why)
            return Kept()
        try:
            _Reader(gateway, kept).read(raw)
        except (Unusable, PeerlaneError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            why = str(error) if isinstance(error, Unusable) else "it holds what no writer writes"
            log.warning("gateway %s: the redo file %s is ignored: %s", gateway, path, why)
            return Kept()
    if kept.steps and kept.steps[-1].unanswered:
        kept.steps.pop()
    return kept


def _read_own(path: Path) -> bytes:
    # O_NONBLOCK: a FIFO by that name must not hang the start.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("it is not a regular file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise Unusable("it belongs to another user, or others may use it")
        if status.st_size > READ_AT_MOST:
            raise Unusable(f"it is larger than {READ_AT_MOST} bytes")
        return file.read(READ_AT_MOST)


def unrepeatable(redis: Redis, steps: Sequence[Step]) -> int:
    """How many outcomes of lost steps cannot be repeated: no file holds a create that has a preshared key in clear.

    Those whose requests have another outcome by now are not lost: their callers had not heard of them, and have
    cancelled them. A request that is late is answered when it is taken, so that answer says nothing of an earlier one.
    """
    without = [outcome for step in steps for outcome in step.made if not outcome.changes]
    if not without:
        return 0
    pipe = redis.pipeline(transaction=False)
    for outcome in without:
        pipe.get(names.result_key(outcome.request_id))
    late = commit_record.LATE.message.encode()
    return sum(not isinstance(stored, bytes) or late in stored for stored in pipe.execute(raise_on_error=False))


class _Reader:
    """Reads one file's lines into a Kept."""

    def __init__(self, gateway: str, kept: Kept) -> None:
        self._gateway, self._kept = gateway, kept
        self._begun = False

    def read(self, raw: bytes) -> None:
        """Read the lines. Raises Unusable, or another error for a line that no writer writes."""
        *lines, torn = raw.split(b"\n")
        self._kept.torn = len(torn)
        for line in lines:
            digest, text = line[:8], line[9:]
            if line[8:9] != b" " or digest != b"%08x" % zlib.crc32(text):
                raise Unusable("it is damaged")
            entry = cast("dict[str, Any]", json.loads(text))
            if "gateway" in entry:
                self._start(entry)
            elif not self._begun:
                raise Unusable("it does not begin with the start of a writer")
            elif "next" in entry:
                self._announcement(entry)
            elif "made" in entry:
                self._step(entry)
            elif "unanswered" in entry:
                step = self._kept.steps[-1]
                step.unanswered, self._kept.seq = True, step.base
            else:
                self._correction(entry)

    def _start(self, entry: dict[str, Any]) -> None:
        if entry["gateway"] != self._gateway:
            raise Unusable("it is another gateway's")
        kept, epoch, seq = self._kept, _number(entry["epoch"]), _number(entry["seq"])
        before, followed = entry["after"]
        kept.writers.add((epoch, _token(entry["writer"])))
        if before:  # else it knows nothing of this gateway, as any other Redis does
            kept.writers.add((_number(before), _token(followed)))
        kept.epoch = max(kept.epoch, epoch)
        self._ends_at(seq)
        self._begun = True

    def _announcement(self, entry: dict[str, Any]) -> None:
        """A writer that may have died before it had noted its start: it is known if the one that it followed is."""
        epoch, followed = entry["after"]
        before = _number(epoch), _token(followed)
        if before in self._kept.writers:
            self._kept.writers.add((before[0] + 1, _token(entry["next"])))

    def _ends_at(self, seq: int) -> None:
        steps = self._kept.steps
        if steps and steps[-1].unanswered and seq <= steps[-1].base:
            steps.pop()  # Redis had not carried it out
        if steps and seq >= steps[-1].base:
            steps[-1].seq, steps[-1].unanswered = min(steps[-1].seq, seq), False
        self._kept.seq = max(self._kept.seq, seq)

    def _step(self, entry: dict[str, Any]) -> None:
        base = _number(entry["base"])
        self._ends_at(base)
        made = [self._made(*line) for line in entry["made"]]
        self._kept.steps.append(Step(base, base + len(made), made))
        self._kept.seq = base + len(made)

    def _correction(self, entry: dict[str, Any]) -> None:
        step = self._kept.steps[-1]
        kept, late = ([_number(number) for number in entry[name]] for name in ("kept", "late"))
        expired = [step.made[number] for number in late]
        step.made = [
            *(step.made[number] for number in kept),
            *(
                Made(made.request_id, commit_record.late(made.request_id), "[]", made.share, made.tag)
                for made in expired
            ),
        ]
        step.unanswered, step.seq = False, step.base + len(step.made)
        self._kept.seq = step.seq
        if not step.made:
            self._kept.steps.pop()

    def _made(  # noqa: PLR0917 - the fields of a line, in their order; those of an earlier version have no deadline
        self, request_id: object, result: object, changes: object, share: object, tag: object, deadline: object = 0
    ) -> Made:
        if not names.is_request_id(self._gateway, request_id):
            raise Unusable("it names a request that is not this gateway's")
        if not isinstance(result, str) or not isinstance(tag, str) or len(tag) > 200:
            raise Unusable("it holds what no writer writes")
        if share is not None and not str(share).startswith(names.share_key(self._gateway, "")):
            raise Unusable("it names a share that is not this gateway's")
        if json.loads(result)["status"] not in ("SUCCESS", "FAILURE"):
            raise Unusable("it holds what no writer writes")
        if changes is not None:
            for change in json.loads(str(changes)):
                _check(change)
        share_text = None if share is None else str(share)
        text = "" if changes is None else str(changes)
        return Made(str(request_id), result, text, share_text, tag, changes is None, _number(deadline))


def _check(change: dict[str, Any]) -> None:
    check_public_key(change["key"])
    if not isinstance(change["before"], bool) or change.get("kept", True) is not True:
        raise Unusable("it holds what no writer writes")
    for prefix in (*change["gone"], *change["taken"]):
        Prefix.parse(prefix)
    if "record" in change:
        Peer.from_record(change["key"], change["record"])


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_NUMBER:
        raise Unusable("it holds what no writer writes")
    return value


def _token(value: object) -> str:
    if not isinstance(value, str) or len(value) > 64 or not value.isascii():
        raise Unusable("it holds what no writer writes")
    return value
