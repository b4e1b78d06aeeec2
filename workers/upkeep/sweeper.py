"""Carries out a sweep: reads, decides, and asks the writer to remove stale peers slice by slice."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.status.alarms import clear_alarm, raise_alarm
from peerlane.tasks.values.key_set import KeySet
from peerlane.tasks.wire.bulk import Reason
from peerlane.tasks.wire.upkeep import SweepGateway
from peerlane.workers import failpoints
from peerlane.workers.store.activity import StoredActivity
from peerlane.workers.upkeep.activity_tracker import ActivityTracker
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.lean_mappings import StalePeer
from peerlane.workers.upkeep.lifetimes import lifetimes
from peerlane.workers.upkeep.sweep_policy import Decision, Judgement, Limits, Refusal, watches
from peerlane.workers.upkeep.writer_requests import GoOn, WriterRequests

log = logging.getLogger(__name__)

#: Victims per request: few, as an interactive request meets one at nearly every turn, and waits behind it.
SLICE = 12
#: Seconds after which a decision is made anew; more where deciding takes long: so many times as long.
FRESH, FRESH_SHARE = 30.0, 3.0
#: Seconds after which the counters are read again before a slice of peers goes for their silence; more likewise.
AGAIN, AGAIN_SHARE = 1.0, 3.0
#: Victims that a report lists; it counts the rest.
LISTED = 10_000
#: Readings tried until one is complete: each change on the device interrupts one.
TRIES = 3

#: Alarms that a sweep raises, and takes back.
ALARMS = ("sweep", "counters")


@dataclass(slots=True)
class Tally:
    """The progress of a sweep."""

    removed: Counter[str] = field(default_factory=Counter[str])
    kept: Counter[str] = field(default_factory=Counter[str])
    #: The refusal that ended it early.
    stopped: PeerlaneError | None = None


@dataclass(kw_only=True)
class Sweeper:
    """One gateway's sweeps. Raises redis.RedisError where Redis is away."""

    redis: Redis
    gateway: str
    limits: Limits
    clock: ClockMonitor
    #: None where there are no counters to read: then only expiry counts.
    counted: ActivityTracker | None
    errands: WriterRequests

    def sweep(self, wish: SweepGateway, go_on: GoOn) -> dict[str, Any]:
        """Sweep now; returns the report."""
        began = time.monotonic()
        if wish.force and not wish.dry_run:
            self.clock.accept()
        first = decision = self._look(go_on, force=wish.force)
        until = _fresh_until(began)
        tally = Tally()
        if not wish.dry_run:
            if decision.refusal is not None:
                self._alarm(decision)
            else:
                for kind in ALARMS:
                    clear_alarm(self.redis, self.gateway, kind, "a person forced the sweep" if wish.force else "gone")
                while self._remove(decision, until, tally, go_on):
                    looking = time.monotonic()
                    decision = self._look(go_on, force=wish.force)
                    until = _fresh_until(looking)
                    if decision.refusal is not None:
                        break
        outcome = "listed" if wish.dry_run else "refused" if first.refusal is not None else "swept"
        report: dict[str, Any] = {
            "outcome": outcome,
            "gateway": self.gateway,
            "peers": first.peers,
            "stale": first.counts,
            "removed": dict(tally.removed),
            "kept": dict(tally.kept),
            "seconds": round(time.monotonic() - began, 3),
        }
        if first.refusal is not None:
            report["refusal"] = {"kind": first.refusal.kind, "message": first.refusal.message}
        if tally.stopped is not None:
            report["stopped"] = tally.stopped.as_dict()
        if wish.dry_run:
            report["victims"] = [victim._asdict() for victim in first.victims.first(LISTED)]
            report["unlisted"] = max(0, len(first.victims) - LISTED)
        return report

    def _look(self, go_on: GoOn, *, force: bool) -> Decision:
        """Read the counters, then the records page by page, and judge each page: victims alone are held."""
        now = self.clock.look()
        # Before the reading: a peer on the device by now is missing from no reading that follows.
        coming = self._coming()
        refusals: list[Refusal] = self.clock.refusals()
        counted = self.counted
        if counted is None:
            return self._judged(now, go_on, KeySet()).decision(refusals=refusals, force=force)
        tries = 0
        while True:
            tries += 1
            counted.read(now)
            peers = KeySet()
            # While a writer still adds peers after its start, a reading lacks them: only expiry counts.
            judgement = self._judged(now, go_on, peers, use_sight=not coming)
            if counted.sight is None or counted.sight.complete or not judgement.missing or tries == TRIES:
                break
        counted.forget(peers)
        if counted.trouble is not None:
            refusals.append(Refusal("counters", f"the counters cannot be read: {counted.trouble}"))
        return judgement.decision(refusals=refusals, force=force)

    def _judged(self, now: int, go_on: GoOn, peers: KeySet, *, use_sight: bool = True) -> Judgement:
        """Every peer, judged; their keys go into ``peers``."""
        counted = self.counted
        sight = counted.sight if counted is not None and use_sight else None
        judgement = Judgement(now, self.limits, sight, sure_since=self.clock.sure_since)
        for page in lifetimes(self.redis, self.gateway, peers):
            seen: dict[str, StoredActivity] = {}
            if counted is not None and sight is not None and watches(now, self.limits, sight):
                seen = counted.known([key for key, life in page.items() if key in sight.shown and not life.pinned])
            judgement.take(page, seen)
            go_on({})
        return judgement

    def _coming(self) -> int:
        """How many peers the writer still adds after a start."""
        stored = cast("bytes | None", self.redis.hget(names.gateway_key(self.gateway), "recovering")) or b""
        return int(stored) if stored.isdigit() and len(stored) < 10 else 0

    def _alarm(self, decision: Decision) -> None:
        refusal = decision.refusal
        if refusal is None:
            return
        if refusal.kind in ALARMS:
            detail = {"peers": decision.peers, "stale": decision.counts}
            raise_alarm(self.redis, self.gateway, refusal.kind, refusal.message, now=self.clock.look(), detail=detail)
        if refusal.kind == "sweep":  # this is checked last: after another refusal it is not known
            clear_alarm(self.redis, self.gateway, "counters")

    def _remove(self, decision: Decision, until: float, tally: Tally, go_on: GoOn) -> bool:
        """Remove the victims; returns whether some are left, so that a new decision is needed."""
        before = tally.removed.total()
        answered = 0
        #: The reasons for the removals that were sent and not answered yet, slice by slice.
        asked: deque[dict[str, Reason]] = deque()
        if decision.victims:
            failpoints.reach("after_decision")

        def wanted() -> bool:
            return go_on({"removed": tally.removed.total(), "of": before + len(decision.victims)})

        try:
            slices = self._slices(decision.victims, until, tally)
            for result in self.errands.run(names.REMOVE_PEERS, _requests(slices, asked), wanted):
                reasons = asked.popleft()
                tally.removed.update(reasons[key] for key in result["removed"])
                tally.kept.update(result["kept"].values())
                answered += len(result["removed"]) + len(result["kept"])
                if not wanted():
                    return False
                failpoints.reach("between_slices")
        except PeerlaneError as error:
            tally.stopped = error
            log.warning("gateway %s: the sweep stops: %s", self.gateway, error)
            return False
        # Where a whole round removed nothing, another one would not either.
        return answered < len(decision.victims) and tally.removed.total() > before

    def _slices(self, victims: Sequence[StalePeer], until: float, tally: Tally) -> Iterator[list[StalePeer]]:
        """Slices of victims, until the decision is too old to act on."""
        start = 0
        while start < len(victims) and time.monotonic() <= until:
            if going := self._still_stale(victims[start : start + SLICE], tally):
                yield going
            start += SLICE

    def _still_stale(self, victims: Sequence[StalePeer], tally: Tally) -> list[StalePeer]:
        """The victims without those that had a handshake since the decision: idle ones are checked again."""
        silent = any(victim.reason != "expired" for victim in victims)
        counted = self.counted
        if counted is None or not silent:
            return list(victims)
        if time.monotonic() - counted.read_at > max(AGAIN, counted.took * AGAIN_SHARE):
            counted.read(self.clock.look())
        if counted.trouble is not None:
            tally.kept["the counters cannot be read"] += sum(victim.reason != "expired" for victim in victims)
            return [victim for victim in victims if victim.reason == "expired"]
        going: list[StalePeer] = []
        known = counted.known([victim.public_key for victim in victims])
        for victim in victims:
            seen = known.get(victim.public_key)
            # It was last seen, or made, at ``since``.
            if victim.reason != "expired" and seen is not None and seen.last_seen > victim.since:
                tally.kept["seen since"] += 1
            else:
                going.append(victim)
        return going


def _fresh_until(began: float) -> float:
    """Until when a decision that began at ``began`` holds, on the monotonic clock."""
    now = time.monotonic()
    return now + max(FRESH, (now - began) * FRESH_SHARE)


def _requests(slices: Iterable[Sequence[StalePeer]], asked: deque[dict[str, Reason]]) -> Iterator[dict[str, Any]]:
    for part in slices:
        asked.append({victim.public_key: victim.reason for victim in part})
        yield {
            "victims": [
                {"public_key": victim.public_key, "reason": victim.reason, "created_at": victim.created_at}
                for victim in part
            ]
        }
