"""What the judge of a fault run says of upkeep. Knows no product code.

The invariants, as promised:
I8 a sweep removes no peer that is pinned, has time left, came, or was created anew; nobody is told "created" or
"existing" of a peer whose time was up already      I9 after quiet and one sweep interval no expired peer is left
I10 what is decided too late is dropped: no commit changes anything beyond its deadline
I11 traffic totals never fall, and nobody's last seen goes back
"""

from __future__ import annotations

from collections.abc import Iterable

from fault_evidence import Evidence, Life, Sighting, Violation
from fault_lists import of_a_list

#: Seconds by which Redis' own word on when it carried out a script may differ from what the script took for now.
TOLERANCE = 0.5
#: Seconds by which a life may seem shorter than it was: it is told in whole seconds, and the clocks were read apart.
ROUNDED = 1.1


def upkeep_violations(evidence: Evidence) -> Iterable[Violation]:
    """Every violation of I8 to I11 that the evidence shows."""
    yield from _swept(evidence)
    yield from _confirmed_dead(evidence)
    yield from _left_over(evidence)
    yield from _late(evidence)
    if evidence.lost_at is None:
        yield from _falling(evidence.upkeep.sightings)


def _swept(evidence: Evidence) -> Iterable[Violation]:
    """I8, of each removal that no caller had asked for."""
    asked = {call.request for call in evidence.calls}
    lives: dict[str, Life] = {key: stored.life for key, stored in evidence.residents.items()}
    for commit in evidence.commits:
        if not commit.changed:
            continue
        swept = () if commit.request in asked or of_a_list(commit.request) else sorted(commit.removes)
        for key in swept:
            life = lives.get(key)
            if life is not None and evidence.upkeep.may_go(key, life) > commit.at + TOLERANCE:
                why = "is pinned" if life.pinned else "had time left"
                yield Violation("I8", f"{key} was swept by {commit.request}, and {why}: {life} at {commit.at:.3f}")
        lives |= commit.stores


def _confirmed_dead(evidence: Evidence) -> Iterable[Violation]:
    """I8, of what callers were told."""
    answered: set[str] = set()
    for call in sorted(evidence.calls, key=lambda call: call.began):
        # A repeated request hears what was true when it was first answered.
        if call.end == "ok" and call.act == "create" and call.request not in answered:
            # It was carried out no earlier than its request was first made.
            first = min(other.began for other in evidence.calls if other.request == call.request)
            if call.over(first + evidence.final.lead - ROUNDED):
                yield Violation("I8", f"{call.key} was told {call.outcome} by {call.request}, and had expired before")
        if call.definite:
            answered.add(call.request)


def _left_over(evidence: Evidence) -> Iterable[Violation]:
    every = evidence.upkeep.every
    if every is None:
        return
    for key, stored in sorted(evidence.final.redis.items()):
        if stored.life.over(evidence.final.now - every):
            late = evidence.final.now - (stored.life.expires or 0)
            yield Violation("I9", f"{key} expired {late:.1f} s ago, and is there in spite of sweeps every {every:g} s")


def _late(evidence: Evidence) -> Iterable[Violation]:
    for commit in evidence.commits:
        if commit.changed and 0 < commit.deadline < commit.at - TOLERANCE:
            late = commit.at - commit.deadline
            yield Violation("I10", f"request {commit.request} was carried out {late:.2f} s after its deadline")


def _falling(sightings: Iterable[Sighting]) -> Iterable[Violation]:
    last: dict[str, Sighting] = {}
    for now in sightings:
        before = last.get(now.key)
        if before is not None:
            for name in ("last_seen", "received", "sent"):
                if getattr(now, name) < getattr(before, name):
                    was, is_ = getattr(before, name), getattr(now, name)
                    yield Violation("I11", f"{name} of {now.key} went from {was} to {is_}")
        last[now.key] = now
