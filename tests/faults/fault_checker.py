"""The judge of a fault run: from its history, Redis' commands and the final state to violations. Knows no product code.

The invariants, as promised:
I1 a create that was confirmed and not deleted is in Redis and in the kernel       I2 after quiet, kernel == Redis
I3 a request that was refused, cancelled or timed out left nothing                 I4 one commit per request; no key
and no address given twice    I5 epochs in commits never decrease; a stale writer changes nothing
I6 every call ends within its timeout and two seconds with a definite answer, or as unknown while Redis is unreachable,
and asking again settles it   I7 lane and observer are back within 35 seconds of the fault's end
I8 to I11 are about upkeep: tests/faults/fault_upkeep_checker.py
I12 the gateway's hash tells what is so: its writer, device, epoch and peers; its sequence never falls
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Sequence

from fault_evidence import Commit, Evidence, Final, Life, PeerState, Verdict, Violation, Window
from fault_facts_checker import facts_violations
from fault_history import Call
from fault_upkeep_checker import upkeep_violations

#: Seconds beyond its timeout in which every call has ended.
GRACE = 2.0
#: Seconds after a fault's end in which callers may still find Redis unreachable.
AFTERMATH = 1.5
#: Seconds for which a caller's process did not run after which it may have found its connections dead.
STALLED = 0.5
#: Seconds by which Redis' clock and the machine's monotonic one may have been read apart.
CLOCKS = 0.2
#: Seconds in which lane and observer come back.
BACK_WITHIN = 35.0


def judge(evidence: Evidence) -> Verdict:
    """Every violation that the evidence shows."""
    forgiven: list[str] = []
    violations = [
        *_promised(evidence, forgiven),
        *_kernel_is_redis(evidence.final, forgiven),
        *facts_violations(evidence, len(evidence.final.kernel.keys() & {*forgiven})),
        *_nothing_twice(evidence),
        *_one_commit_each(evidence),
        *_epochs(evidence.commits, lenient=evidence.lost_at is not None),
        *_answers(evidence),
        *upkeep_violations(evidence),
    ]
    for who, after in (("lane", evidence.back_after), ("observer", evidence.upkeep.back_after)):
        if after is None or after > BACK_WITHIN:
            took = "never" if after is None else f"{after:.1f} s"
            violations.append(Violation("I7", f"the {who} came back after the fault's end: {took}"))
    return Verdict(tuple(violations), len(forgiven))


def _promised(evidence: Evidence, forgiven: list[str]) -> Iterable[Violation]:
    """I1 and I3: each key is as the last word on it says."""
    final = evidence.final
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in evidence.calls:
        by_key[call.key].append(call)
    for key in {*by_key, *evidence.residents, *final.redis}:
        calls = by_key.get(key, [])
        allowed = _possible_ends(calls, evidence.residents.get(key))
        if taken_back := _taken_back(calls, evidence.lost_at):
            others = [call for call in calls if call.request not in taken_back]
            allowed += _possible_ends(others, evidence.residents.get(key))
        if any(_may_go(evidence, call) <= final.now for call in _last_words(calls) if call.act == "create"):
            allowed.append(None)
        if key in evidence.residents and evidence.upkeep.may_go(key, evidence.residents[key].life) <= final.now:
            allowed.append(None)
        if _deleted_all_the_same(key, calls, evidence):
            allowed.append(None)
        there = final.redis.get(key)
        now = None if there is None else there.addresses
        if now in allowed:
            continue
        if key not in evidence.residents and _may_be_lost(calls, evidence, there=now is not None):
            forgiven.append(key)
            continue
        confirmed = any(call.end == "ok" for call in calls) or key in evidence.residents
        expected = " or ".join("nothing" if end is None else ",".join(sorted(end)) for end in allowed)
        shown = "nothing" if now is None else ",".join(sorted(now))
        cause = (
            "a confirmed create is lost" if now is None else "a confirmed delete came back" if None in allowed else ""
        )
        prefix = f"{cause}: " if confirmed and cause else ""
        yield Violation(
            "I1" if confirmed else "I3", f"{key}: {prefix}Redis holds {shown}, the last word was {expected}"
        )


def _may_go(evidence: Evidence, call: Call) -> float:
    """From when on a sweep may take the peer that this call was told of, on Redis' clock."""
    created = int(call.began + evidence.final.lead) if call.created is None else call.created
    return evidence.upkeep.may_go(call.key, Life(call.expires, call.pinned, created))


def _last_words(calls: Sequence[Call]) -> list[Call]:
    words = [call for call in calls if call.end == "ok"]
    return [call for call in words if not any(other.began > (call.ended or 0.0) for other in words)]


def _possible_ends(calls: Sequence[Call], resident: PeerState | None) -> list[frozenset[str] | None]:
    """What the key may hold at the end, by every order of its calls that agrees with when they began and ended."""
    settled = {call.request for call in calls if call.definite}
    words = _last_words(calls)
    # Unknown and not settled: it may have taken effect at any time since, or never.
    open_ends = [call for call in calls if not call.definite and call.request not in settled]
    ends: list[frozenset[str] | None] = [frozenset(call.addresses) if call.act == "create" else None for call in words]
    if not words:
        ends.append(None if resident is None else resident.addresses)
    ends += [None if call.act == "delete" else frozenset(call.wish) for call in open_ends]
    return list(dict.fromkeys(ends))


def _may_be_lost(calls: Sequence[Call], evidence: Evidence, *, there: bool) -> bool:
    """Whether what Redis has lost may stay lost.

    What was confirmed is made true again by its writer, or out of the redo file, which holds no preshared key in clear.
    Nobody makes a cancel true again: what was asked for longer than its caller waited may be carried out.
    """
    lost_at = evidence.lost_at
    if lost_at is None:
        return False
    confirmed = [call for call in calls if call.end == "ok"]
    if any((call.ended or call.began) > lost_at for call in confirmed):
        return False
    if not confirmed:
        return there and any(call.outlived and call.act == "create" and call.began <= lost_at for call in calls)
    return evidence.redo_alone and not there and all(call.secret for call in _last_words(calls))


def _taken_back(calls: Sequence[Call], lost_at: float | None) -> set[str]:
    """Requests of which a caller had the outcome, that it asked again, and cancelled after Redis had lost the outcome.

    Its last word on the request is that it has no effect.
    """
    if lost_at is None:
        return set()
    cancelled = {
        call.request for call in calls if call.outcome == "timed_out" and call.began <= lost_at < (call.ended or 0.0)
    }
    return {call.request for call in calls if call.end == "ok" and (call.ended or lost_at) < lost_at} & cancelled


def _deleted_all_the_same(key: str, calls: Sequence[Call], evidence: Evidence) -> bool:
    """Whether a delete may stand although its caller cancelled it: Redis had lost it, and he had not heard of it.

    One of its addresses had been confirmed to another peer before that; both cannot be there.
    """
    lost_at = evidence.lost_at
    cancelled = [call for call in calls if call.act == "delete" and call.outcome == "timed_out" and call.ended]
    if lost_at is None or not any(call.began <= lost_at < (call.ended or 0.0) for call in cancelled):
        return False
    resident = evidence.residents.get(key)
    freed = {address for call in _last_words(calls) for address in call.addresses}
    freed |= resident.addresses if resident else frozenset()
    return any(
        other.end == "ok" and other.key != key and other.ended and other.ended <= lost_at and freed & {*other.addresses}
        for other in evidence.calls
    )


def _kernel_is_redis(final: Final, lost: Sequence[str]) -> Iterable[Violation]:
    """``lost``: what Redis had confirmed and has lost for good. The device may keep it, with an alarm."""
    for key in sorted({*final.redis, *final.kernel}):
        stored, installed = final.redis.get(key), final.kernel.get(key)
        if stored is None and key in lost:
            continue
        if stored is None:
            yield Violation("I2", f"{key} is in the kernel and not in Redis")
        elif installed is None:
            yield Violation("I2", f"{key} is in Redis and not in the kernel")
        elif stored != installed:
            yield Violation("I2", f"{key} differs: Redis {_shown(stored)}, kernel {_shown(installed)}")
    owned = {address: key for key, stored in final.redis.items() for address in stored.addresses}
    for address in sorted({*owned, *final.owners}):
        if owned.get(address) != final.owners.get(address):
            yield Violation(
                "I2", f"{address}: its record is {owned.get(address)}'s, its entry {final.owners.get(address)}'s"
            )
    kept = {address for key in lost if key in final.kernel for address in final.kernel[key].addresses}
    for route in sorted((final.routes ^ final.routes_needed) - kept):
        yield Violation("I2", f"the route {route} is {'stray' if route in final.routes else 'missing'}")


def _shown(peer: PeerState) -> str:
    return f"{','.join(sorted(peer.addresses))} keepalive {peer.keepalive}" + (
        " with a secret" * bool(peer.preshared_key)
    )


def _nothing_twice(evidence: Evidence) -> Iterable[Violation]:
    """I4: no two keys were both told that an address is theirs at one time; and the final state agrees."""
    spans: list[tuple[int, int, int, float, float, str, str]] = []
    for call in evidence.calls:
        if call.end != "ok" or call.act != "create" or call.ended is None:
            continue
        if evidence.lost_at is not None and call.ended <= evidence.lost_at:
            continue
        given_up = min(
            (
                other.began
                for other in evidence.calls
                if other.key == call.key
                and other.act == "delete"
                and other.end != "refused"
                and (other.ended is None or other.ended > call.ended)
            ),
            default=float("inf"),
        )
        given_up = min(given_up, max(call.ended, _may_go(evidence, call) - evidence.final.lead - CLOCKS))
        spans += [(*_range(text), call.ended, given_up, call.key, text) for text in call.addresses]
    for key, stored in evidence.final.redis.items():
        spans += [(*_range(text), float("inf"), float("inf"), key, text) for text in stored.addresses]
    spans.sort()
    for index, (version, _, high, since, until, key, text) in enumerate(spans):
        for other in spans[index + 1 :]:
            if other[0] != version or other[1] > high:
                break
            overlap = max(since, other[3]) < min(until, other[4]) or since == other[3] == float("inf")
            if other[5] != key and overlap:
                yield Violation("I4", f"{text} of {key} and {other[6]} of {other[5]} were held at the same time")


def _range(text: str) -> tuple[int, int, int]:
    network = ipaddress.ip_network(text)
    return network.version, int(network.network_address), int(network.broadcast_address)


def _one_commit_each(evidence: Evidence) -> Iterable[Violation]:
    wrote: dict[str, int] = defaultdict(int)
    for commit in evidence.commits:
        wrote[commit.request] += commit.wrote
    for request, count in wrote.items():
        if count > 1 and evidence.lost_at is None:
            yield Violation("I4", f"request {request} was committed {count} times")
    answers: dict[str, set[tuple[str, str, tuple[str, ...]]]] = defaultdict(set)
    for call in evidence.calls:
        # Unavailable and Draining are said by the caller's side before it asks anybody: no word on the request.
        unstored = call.outcome in ("unavailable", "draining")
        if call.definite and not unstored and not _before(call, evidence.lost_at):
            answers[call.request].add((call.end, call.outcome, tuple(sorted(call.addresses))))
    for request, outcomes in answers.items():
        if len(outcomes) > 1:
            yield Violation("I4", f"request {request} was answered in {len(outcomes)} ways: {sorted(outcomes)}")


def _before(call: Call, moment: float | None) -> bool:
    return moment is not None and call.began <= moment


def _epochs(commits: Sequence[Commit], *, lenient: bool) -> Iterable[Violation]:
    newest = 0
    for commit in commits:
        if not (commit.wrote or commit.changed):
            continue
        if lenient:
            continue
        if commit.epoch < max(newest, commit.newest):
            yield Violation(
                "I5",
                f"request {commit.request} was committed by epoch {commit.epoch} after {max(newest, commit.newest)}",
            )
        newest = max(newest, commit.epoch)


def _answers(evidence: Evidence) -> Iterable[Violation]:
    settled = {call.request for call in evidence.calls if call.definite}
    for call in evidence.calls:
        where = f"call {call.number} ({call.act}, timeout {call.timeout:g} s, request {call.request})"
        if call.end == "broken":
            yield Violation("I6", f"{where} ended in an error of no kind that is promised: {call.said}")
        stalled = call.stalled + _overlap(call, evidence.slow)
        if call.ended is not None and call.ended - call.began > call.timeout + GRACE + stalled:
            took = call.ended - call.began - stalled
            yield Violation("I6", f"{where} took {took:.2f} s: {call.outcome}")
        away = [*evidence.away, *evidence.slow]
        if call.end == "unknown" and not _was_away(call, away) and call.stalled < STALLED:
            yield Violation("I6", f"{where} was unknown while Redis could be reached: {call.said}")
        if call.end in ("unknown", "open") and call.request not in settled:
            yield Violation("I6", f"{where} was never settled, though it was asked again")


def _overlap(call: Call, windows: Sequence[Window]) -> float:
    """Seconds of the call within the windows."""
    ended = call.ended if call.ended is not None else float("inf")
    return sum(max(0.0, min(ended, window.ended) - max(call.began, window.began)) for window in windows)


def _was_away(call: Call, away: Sequence[Window]) -> bool:
    ended = call.ended if call.ended is not None else float("inf")
    return any(window.began < ended and call.began < window.ended + AFTERMATH for window in away)
