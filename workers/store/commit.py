"""``Commit``: a request's commit in the form that the Lua procedures take. ``Answer``: what they answer. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peerlane.workers.peers.plan import Plan

Verdict = Literal[
    "committed", "duplicate", "fenced", "expired", "stale", "draining", "late", "open", "failed", "behind"
]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a procedure; ``stored`` is the commit record for ``duplicate`` and ``expired``."""

    verdict: Verdict
    stored: str

    @property
    def settles(self) -> bool:
        """Whether the request has its outcome now, and its message is acknowledged."""
        return self.verdict in ("committed", "duplicate", "expired")


@dataclass(frozen=True, slots=True)
class Commit:
    """A request's outcome and plans to commit (``Store.commit``)."""

    request_id: str
    deadline: int
    result: str
    plans: Sequence[Plan] = ()
    share: str | None = None
    tag: str = ""
    #: Whether a gateway that is being drained refuses what it creates.
    drains: bool = True

    @property
    def is_removal(self) -> bool:
        """Whether it only removes, so that Redis accepts it while its memory is full."""
        changing = [plan for plan in self.plans if plan.before is not plan.after]
        return bool(changing) and all(plan.after is None for plan in changing)

    @property
    def creates(self) -> bool:
        """Whether the gateway must not be draining."""
        return self.drains and any(plan.outcome == "created" for plan in self.plans)


def change_of(plan: Plan, record: str | None) -> dict[str, Any]:
    """A plan as the commit script takes it; ``record`` is the record to store."""
    old = plan.before.allowed_ips if plan.before else ()
    new = plan.after.allowed_ips if plan.after else ()
    change: dict[str, Any] = {
        "key": plan.public_key,
        "before": plan.before is not None and plan.stored,
        "gone": [str(prefix) for prefix in old if prefix not in new],
        "taken": [str(prefix) for prefix in new if prefix not in old],
    }
    if plan.before is plan.after:
        change["kept"] = True
    elif record is not None:
        change["record"] = record
    return change
