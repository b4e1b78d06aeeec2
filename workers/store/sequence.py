"""The commit sequence: a number that each outcome raises, by which a writer notices that Redis has lost commits.

A promoted replica, or a Redis that lost its last second, has only the first part of what its writer has committed. The
writer keeps its last commits (``journal``) and repeats the missing ones in order before anything is decided. The epoch
and a random token show which writer the number belongs to.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.tasks.redis.server_clock import ServerClock
from peerlane.tasks.wire import commit_record
from peerlane.workers.host.pulse import LONG, PULSE
from peerlane.workers.store.journal import LOST, Journal, Lost, Made, RedoFile, Step
from peerlane.workers.store.procedures import Answer, Procedure, Verdict
from peerlane.workers.store.redo_reader import Kept, read_redo, unrepeatable

log = logging.getLogger(__name__)

#: Outcomes made true again in one call: Redis is busy with them for about a millisecond.
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The writer before this one, as Redis knows it."""

    epoch: int
    writer: str
    seq: int


class CommitSequence:
    """One writer's commits in their order. Raises redis.RedisError as it comes."""

    def __init__(self, redis: Redis, gateway: str, *, result_ttl: int, clock: ServerClock) -> None:
        self.gateway = gateway
        self.clock = clock
        self.epoch = 0
        #: The random part of the epoch: no two writers have the same.
        self.writer = ""
        #: How many outcomes this gateway has had, as this writer knows.
        self.known = 0
        self.journal = Journal()
        #: The sequence from which on lost commits are being repeated; None while none are.
        self._repeats_from: int | None = None
        #: The heartbeat has seen that Redis is behind; the main thread has to repeat the commits.
        self.behind = False
        #: Lost outcomes that were not made up for yet.
        self.lost = Lost()
        #: What the gateway says of itself, for a Redis that has lost that too.
        self.facts: Mapping[str, str | float] = {}
        self._redis = redis
        self._result_ttl = result_ttl
        self._epoch_key, self._gateway_key = names.epoch_key(gateway), names.gateway_key(gateway)
        self._keys = [
            *(self._epoch_key, names.peers_key(gateway), names.addresses_key(gateway), self._gateway_key),
            *(names.unacked_key(gateway), names.unacked_key(gateway, "_index")),
        ]
        self._begin, self._redo = Procedure(redis, "begin"), Procedure(redis, "redo")
        self._commit, self._release = Procedure(redis, "commit"), Procedure(redis, "release")
        self._check, self._tell = Procedure(redis, "check"), Procedure(redis, "heartbeat")

    @property
    def _fence(self) -> tuple[int, str, int]:
        return self.epoch, self.writer, self.known

    def start(self, file: RedoFile) -> None:
        """Begin a new epoch, take over the commits of earlier writers from a file, and continue the file."""
        kept, token = read_redo(self.gateway, file.paths), secrets.token_hex(8)
        if kept.writers:
            # First: where the answer to the start is lost, Redis knows a writer that the next one has to know too.
            file.announce(token, self._newest(), torn=kept.torn)
        self._follow(self.begin(token), kept, file)

    def begin(self, token: str | None = None) -> Predecessor:
        """Begin a new epoch: every earlier writer of this gateway is refused from now on."""
        token = token or secrets.token_hex(8)
        epoch, seq, before, writer = cast(
            "tuple[int, int, int, bytes]",
            tuple(cast("list[object]", self._begin(keys=[self._epoch_key, self._gateway_key], args=[token]))),
        )
        self.epoch, self.writer, self.known = epoch, token, seq
        return Predecessor(before, writer.decode(errors="replace"), seq)

    def _follow(self, predecessor: Predecessor, kept: Kept, file: RedoFile) -> None:
        before = predecessor.epoch, predecessor.writer
        stored = cast("bytes | None", self._redis.hget(self._gateway_key, LOST)) or b""
        self.lost.outcomes += int(stored) if stored.isdigit() and len(stored) < 16 else 0
        usable = before in kept.writers
        if usable:
            self.journal.keep_all(kept.steps)
            self.known = max(self.known, kept.seq)
        elif kept.steps:
            newer = predecessor.epoch > kept.epoch
            why = "another writer has served the gateway since" if newer else "this Redis knows none of its writers"
            log.warning("gateway %s: the redo file is ignored: %s", self.gateway, why)
            self.lost.unknown = 0 if newer else kept.seq
            if self.lost.unknown:  # before the file is deleted: this start may fail before it has told anybody
                self._redis.hset(self._gateway_key, LOST, self.lost.outcomes + self.lost.unknown)
        file.begin(self.epoch, self.writer, self.known, before, anew=not usable)
        self.journal.record = file

    def _newest(self) -> tuple[int, str]:
        """The epoch and token of the writer that started last."""
        epoch = cast("bytes | None", self._redis.get(self._epoch_key)) or b""
        (writer,) = cast("list[bytes | None]", self._redis.hmget(self._gateway_key, ["writer"]))
        return int(epoch) if epoch.isdigit() and len(epoch) < 16 else 0, (writer or b"").decode(errors="replace")

    def made_up_for(self) -> None:
        """Note in Redis that all that was lost is made up for, or that an alarm tells of it."""
        self._redis.hdel(self._gateway_key, LOST)

    def commit(self, made: Sequence[Made]) -> list[Answer]:
        """Commit outcomes in one step; each gets its own verdict."""
        while True:
            self._finish_repeating()
            self._note(made)
            try:
                answers = self._send(made)
            except ResponseError:
                self.journal.withdrawn()
                raise
            except RedisError:
                if any(outcome.deadline for outcome in made):  # where none has one, it is never too late
                    self.journal.unanswered()
                raise
            if answers[0].verdict != "behind":
                return answers
            self.journal.withdrawn()
            self.catch_up()

    def _finish_repeating(self) -> None:
        """Nothing is decided before what Redis had lost is repeated: Redis may have gone away meanwhile."""
        if self._repeats_from is not None:
            self.catch_up()

    def _note(self, made: Sequence[Made]) -> None:
        pending = self.journal.pending
        if pending is not None and pending.made == made:
            return  # asked again: its answer did not come
        if pending is not None:
            _, seq = self._ask([])
            self.journal.answered(seq, range(len(pending.made)) if seq > pending.base else (), (), ())
            self.known = max(self.known, seq)
        self.journal.note(self.known, made)

    def _send(self, made: Sequence[Made]) -> list[Answer]:
        keys = list(self._keys)
        args: list[str | int | bytes] = [*self._fence, self._result_ttl]
        for outcome in made:
            result_key = names.RESULT_PREFIX + outcome.request_id
            keys += [result_key, outcome.share or result_key]
            args += [outcome.deadline, outcome.result, commit_record.late(outcome.request_id), outcome.changes]
            args += [int(outcome.creates), outcome.tag, outcome.request_id]
        procedure = self._release if all(outcome.removes for outcome in made) else self._commit
        answers, seq = self._answers(procedure(keys=keys, args=args))
        if all(answer.verdict not in ("behind", "fenced") for answer in answers):
            self.known = max(self.known, seq)
            kept = [n for n, answer in enumerate(answers) if _is_own(answer, made[n])]
            late = [n for n, answer in enumerate(answers) if answer.verdict == "expired"]
            self.journal.answered(seq, kept, late, [answers[number].stored for number in late])
        elif answers[0].verdict != "behind":
            self.journal.withdrawn()
        return answers

    def check(self, requests: Sequence[tuple[str, int]]) -> list[Answer]:
        """Whether requests (id, deadline) could still commit: ``open``, or why not."""
        while True:
            self._finish_repeating()
            answers, _ = self._ask(requests)
            if not answers or answers[0].verdict != "behind":
                return answers
            self.catch_up()

    def prepare(self) -> None:
        """Check that the procedures can be called, before an earlier writer is replaced."""
        self._ask([(names.request_id(self.gateway, "start"), 0)])

    def tell(
        self,
        fields: Mapping[str, str | float],
        redis: Redis | None = None,
        metrics: str | None = None,
        *,
        brief: bool = False,
    ) -> tuple[str, str]:
        """Write the heartbeat's fields. Returns ``current``, or why nothing was written, and the gateway's state.

        ``redis`` is this thread's client. ``brief`` compares the writer's token, which each start of a writer replaces,
        and not the epoch, which an operator's restore or removal raises too.
        """
        keys = [self._gateway_key, self._epoch_key]
        args: list[str | int | bytes] = [*self._fence, "brief" if brief else ""]
        args += [part if isinstance(part, int) else str(part) for pair in fields.items() for part in pair]
        if metrics is not None:
            keys += [names.metrics_key(self.gateway), names.lane_queue(self.gateway), names.bulk_queue(self.gateway)]
            args.append(metrics)
        verdict, state = cast("tuple[bytes, bytes]", self._tell(keys=keys, args=args, client=redis))
        return verdict.decode(), state.decode(errors="replace")

    def catch_up(self) -> None:
        """Repeat this writer's commits that Redis has lost; does nothing if it has lost none."""
        self.behind = False
        if not self.writer:
            return
        answers, seq = self._ask([(names.request_id(self.gateway, "start"), 0)])
        if answers[0].verdict != "behind" and self._repeats_from is None:
            return
        # An earlier try may have come to its end without an answer. Whatever it has repeated is repeated harmlessly.
        self._repeats_from = seq = min(seq, seq if self._repeats_from is None else self._repeats_from)
        steps = self.journal.after(seq)
        missing = max(0, self.known - seq - sum(step.seq - step.base for step in steps))
        log.warning(
            "gateway %s: Redis is behind its writer: it has lost %d outcomes, of which %d are not kept here",
            *(self.gateway, max(0, self.known - seq), missing),
        )
        lost = Lost(outcomes=missing + unrepeatable(self._redis, steps))
        # First: once Redis has this sequence, nothing else tells a writer that starts before it is made up for.
        self._tell_of(lost)
        cancelled: list[dict[str, object]] = []
        for some in (*_slices(steps, AT_ONCE), []):
            PULSE.turn(LONG)  # there may be hundreds of slices, within the time of one request
            whole = [outcome for step in some for outcome in step.made if outcome.changes]
            verdicts = self._make_again(whole, some[-1].seq if some else self.known, cancelled)
            if verdicts is None:
                return  # a newer writer has started: the next call to Redis raises that
            cancelled += lost.count(whole, verdicts)
            if "lost" in verdicts:
                self._tell_of(lost)
        if self.facts:
            self._redis.sadd(names.GATEWAYS_KEY, self.gateway)
            self.tell(self.facts)
        self._repeats_from = None
        self.lost.add(lost)
        log.warning("gateway %s: %d outcomes were made true again", self.gateway, lost.redone)

    def _tell_of(self, lost: Lost) -> None:
        """Note in Redis how many outcomes are lost and not made up for."""
        if lost.outcomes:
            self._redis.hset(self._gateway_key, LOST, self.lost.outcomes + lost.outcomes)

    def _make_again(
        self, made: Sequence[Made], seq: int, cancelled: Sequence[dict[str, object]] = ()
    ) -> list[str] | None:
        """Repeat outcomes; returns the verdicts, or None if a newer writer has started.

        ``cancelled`` are the removals before these that were not repeated.
        """
        keys = list(self._keys)
        args: list[str | int | bytes] = [self.epoch, self.writer, seq, self._result_ttl, json.dumps(list(cancelled))]
        for outcome in made:
            result_key = names.result_key(outcome.request_id)
            keys += [result_key, outcome.share or result_key]
            args += [outcome.result, outcome.changes, outcome.tag, outcome.request_id, outcome.deadline]
        current, *verdicts = cast("list[bytes]", self._redo(keys=keys, args=args))
        return None if current == b"fenced" else [verdict.decode() for verdict in verdicts]

    def _ask(self, requests: Sequence[tuple[str, int]]) -> tuple[list[Answer], int]:
        keys = [self._epoch_key, self._gateway_key, *(names.result_key(request_id) for request_id, _ in requests)]
        return self._answers(self._check(keys=keys, args=[*self._fence, *(deadline for _, deadline in requests)]))

    def _answers(self, raw: object) -> tuple[list[Answer], int]:
        now, seq, *answers = cast("tuple[int, int, *tuple[tuple[bytes, bytes], ...]]", raw)
        self.clock.heard(now)
        verdicts = [
            Answer(cast("Verdict", verdict.decode()), stored.decode(errors="replace")) for verdict, stored in answers
        ]
        return verdicts, seq


def _is_own(answer: Answer, made: Made) -> bool:
    return answer.verdict == "committed" or (answer.verdict == "duplicate" and answer.stored == made.result)


def _slices(steps: Sequence[Step], most: int) -> Iterator[list[Step]]:
    """The steps in order, as many together as have ``most`` outcomes; at least one."""
    some: list[Step] = []
    for step in steps:
        if some and sum(len(earlier.made) for earlier in some) + len(step.made) > most:
            yield some
            some = []
        some.append(step)
    if some:
        yield some
