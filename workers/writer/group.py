"""Carries out requests of a group together: planned one after the other, one change of the device, one commit.

A plan sees the creates planned before it in the group, although they are not committed yet. Therefore:
- a key comes once in a group; a second request for it begins the next group;
- a delete leaves the table as it is until it is committed: the addresses it frees are for the next group;
- a refusal (a conflict or a full pool may come from the table) must rest on committed data only: it ends the group, and
  its request is planned again, alone;
- for requests that may have an outcome by now, or are nearly late, Redis is asked before the device is touched, once
  for all of them;
- a request that was delivered before, has something else than an outcome in its result key, or is no single create or
  delete, is carried out alone.
Late requests are struck out before anything is planned; all of them get their outcome in one step. If a group cannot be
finished (the device or Redis refuses), it is undone, and each request is carried out alone: a bad request costs the
others only time.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import ResponseError

from peerlane.config import names
from peerlane.tasks.errors import Fenced, KernelError, PeerlaneError
from peerlane.tasks.wire import commit_record
from peerlane.workers import failpoints
from peerlane.workers.host.pulse import LONG, PULSE, SOON
from peerlane.workers.peers.handlers import decide
from peerlane.workers.peers.plan import Decision, PeerTable, Plan, take_out
from peerlane.workers.request.request import Outcome, Request
from peerlane.workers.store.procedures import Answer
from peerlane.workers.store.store import Commit
from peerlane.workers.writer.writer import NEARLY_LATE, SURE_FOR, Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Planned:
    request: Request
    decision: Decision
    record: str
    #: Whether it may be unable to commit by now.
    doubtful: bool


def carry_out_many(writer: Writer, requests: Sequence[Request]) -> list[Outcome | None]:
    """Carry out requests in order, in groups; returns their outcomes. None: a newer writer has taken over.

    Raises:
        ShutdownRequested: the worker is to stop, and Redis is away; what has no outcome is still open.
    """
    outcomes = _strike_out(writer, _late(writer, requests))
    todo = [request for request in requests if request.delivery.tag not in outcomes]
    while todo:
        group = _plan(writer, todo)
        if len(group) > 1:
            todo = todo[len(group) :]
            outcomes |= _together(writer, group)
        else:
            _undo(writer.table, group)
            request = todo.pop(0)
            outcomes[request.delivery.tag] = _alone(writer, request)
    return [outcomes[request.delivery.tag] for request in requests]


def _alone(writer: Writer, request: Request) -> Outcome | None:
    PULSE.turn(SOON if request.task in (names.CREATE_PEER, names.DELETE_PEER) else LONG)
    try:
        return writer.carry_out(request.task, request.delivery, request.arguments)
    except Fenced:
        return None


def _plan(writer: Writer, requests: Sequence[Request]) -> list[_Planned]:
    """The longest beginning of ``requests`` that can be carried out together. Enters its creates in the table."""
    group: list[_Planned] = []
    if len(requests) < 2 or writer.recovery_needed is not None or writer.fenced or writer.state != "active":
        return group
    try:
        context, table = writer.planning_context(), writer.table
    except ResponseError:
        return group  # alone, each learns why Redis refuses it
    nearly_late = context.now_ms + NEARLY_LATE
    keys: set[object] = set()
    for request in requests:
        key = request.arguments.get("public_key")
        if (
            request.task not in (names.CREATE_PEER, names.DELETE_PEER)
            or request.delivery.redelivered
            or request.delivery.answered
            or not isinstance(key, str)
            or key in keys
            or key in table.foreign
            or key in table.broken
        ):
            break
        try:
            decision = decide(request.task, context, request.arguments)
        except PeerlaneError:
            break
        except Exception:  # noqa: BLE001 - alone, it is reported
            break
        doubtful = 0 < decision.deadline < nearly_late or request.delivery.in_doubt(SURE_FOR)
        if doubtful and any(plan.before is not None and plan.after is not plan.before for plan in decision.plans):
            break  # replacing the peer frees addresses; a later plan would rely on them
        keys.add(key)
        group.append(_Planned(request, decision, request.record(decision.result), doubtful))
        for plan in decision.plans:
            if plan.before is not plan.after and plan.after is not None:
                table.put(plan.after)
    return group


def _undo(table: PeerTable, group: Sequence[_Planned]) -> None:
    """Restore the table to its state before the group's creates were planned."""
    for planned in reversed(group):
        take_out(table, planned.decision.plans)


def _changing(group: Sequence[_Planned]) -> list[Plan]:
    return [plan for planned in group for plan in planned.decision.plans if plan.before is not plan.after]


def _together(writer: Writer, group: list[_Planned]) -> dict[str, Outcome | None]:
    dead, alone = _take_out_dead(writer, group)
    outcomes = _strike_out(writer, [(planned.request, planned.decision.deadline) for planned in dead])
    alone += [planned.request for planned in dead if planned.request.delivery.tag not in outcomes]
    if not group:
        return outcomes | {request.delivery.tag: _alone(writer, request) for request in alone}
    try:
        answers = _apply_and_commit(writer, group)
    except (KernelError, ResponseError) as error:
        log.warning("a group of %d requests goes one by one (%s)", len(group), type(error).__name__)
        _undo(writer.table, group)
        writer.settle(_changing(group))
        alone = [planned.request for planned in group] + alone
    except Exception:
        log.exception("a group of %d requests failed in an unforeseen way", len(group))
        writer.recovery_needed = "an unforeseen failure"
        alone = [planned.request for planned in group] + alone
    else:
        open_again: list[_Planned] = []
        for planned, answer in zip(group, answers, strict=True):
            if answer.verdict == "committed" or (answer.verdict == "duplicate" and answer.stored == planned.record):
                writer.enter(planned.decision.plans, planned=True)
                outcomes[planned.request.delivery.tag] = writer.count(
                    planned.request, Outcome(dict(planned.decision.result), acknowledged=True)
                )
                continue
            open_again.append(planned)
            if answer.verdict in ("duplicate", "expired"):
                outcomes[planned.request.delivery.tag] = writer.count(
                    planned.request, Outcome(planned.request.recorded(answer.stored), acknowledged=True)
                )
        _undo(writer.table, open_again)
        writer.settle(_changing(open_again))
        # Fenced, draining, stale, failed: each is carried out alone, which settles it.
        alone = [p.request for p in open_again if p.request.delivery.tag not in outcomes] + alone
    for request in alone:
        outcomes[request.delivery.tag] = _alone(writer, request)
    return outcomes


def _take_out_dead(writer: Writer, group: list[_Planned]) -> tuple[list[_Planned], list[Request]]:
    """Ask Redis which requests cannot commit, and take them out of the group: dead ones, and those to carry out alone.

    A delete is always asked for: undoing one would cost its peer the session. No other plan of the group rests on what
    is taken out.
    """
    asked = [planned for planned in group if planned.decision.removes or planned.doubtful]
    if not asked:
        return [], []
    requests = [(planned.request.id, planned.decision.deadline) for planned in asked]
    try:
        verdicts = [answer.verdict for answer in writer.until_answered(lambda: writer.store.check_many(requests))]
    except ResponseError:
        verdicts = ["failed" for _ in asked]
    refused = [(planned, verdict) for planned, verdict in zip(asked, verdicts, strict=True) if verdict != "open"]
    for planned, _ in refused:
        group.remove(planned)
        _undo(writer.table, [planned])
    dead = [planned for planned, verdict in refused if verdict in ("duplicate", "late")]
    return dead, [planned.request for planned, verdict in refused if verdict not in ("duplicate", "late")]


def _late(writer: Writer, requests: Sequence[Request]) -> list[tuple[Request, int]]:
    """The requests whose deadline has certainly passed, with it.

    Not those that are there more than once: another message of the same request may have time left.
    """
    if len(requests) < 2 or writer.fenced:
        return []
    late_before = writer.until_answered(writer.store.clock.now_ms) - NEARLY_LATE
    messages = Counter(request.id for request in requests)
    deadlines = [(request, request.arguments.get("deadline")) for request in requests if messages[request.id] == 1]
    return [
        (request, deadline)
        for request, deadline in deadlines
        if isinstance(deadline, int) and not isinstance(deadline, bool) and 0 < deadline < late_before
    ]


def _strike_out(writer: Writer, requests: Sequence[tuple[Request, int]]) -> dict[str, Outcome | None]:
    """Give late requests their outcomes in one step, and return these; also outcomes that already existed.

    Without those for which Redis said something else.
    """
    if not requests:
        return {}
    commits = [
        Commit(request.id, deadline, commit_record.late(request.id), share=request.share, tag=request.delivery.tag)
        for request, deadline in requests
    ]
    try:
        answers = writer.until_answered(lambda: writer.store.commit_many(commits))
    except ResponseError:
        return {}
    return {
        commit.tag: writer.count(request, Outcome(request.recorded(answer.stored or commit.result), acknowledged=True))
        for (request, _), commit, answer in zip(requests, commits, answers, strict=True)
        if answer.settles
    }


def _apply_and_commit(writer: Writer, group: Sequence[_Planned]) -> list[Answer]:
    failpoints.reach("before_apply", "group")
    changes = [change for planned in group for change in planned.decision.changes]
    began = time.monotonic()
    writer.applied = [plan for planned in group for plan in planned.decision.plans]
    writer.plane.apply(changes)
    writer.table.coming.made(changes)
    applied = time.monotonic()
    for planned in group:
        planned.request.times.planned, planned.request.times.applied = began, applied
    failpoints.reach("after_apply", "group")
    commits = [
        Commit(
            request.id, decision.deadline, planned.record, decision.plans, share=request.share, tag=request.delivery.tag
        )
        for planned in group
        for request, decision in [(planned.request, planned.decision)]
    ]
    failpoints.reach("before_commit", "group")
    answers = writer.until_answered(lambda: writer.store.commit_many(commits))
    failpoints.reach("after_commit", "group")
    return answers
