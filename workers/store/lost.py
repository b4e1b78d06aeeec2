"""``Lost``: the outcomes that Redis has lost and its writer could not repeat. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from peerlane.workers.store.journal import Made

#: The field of the gateway's hash that says how many outcomes are lost and not made up for.
LOST = "lost"


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


def count(lost: Lost, made: Sequence[Made], verdicts: Sequence[str]) -> list[dict[str, object]]:
    """Count what became of outcomes that were repeated; returns the removals among those that were cancelled.

    What is ``lost`` rests on what Redis has lost and nobody keeps. It was confirmed last: the table is right about it.
    """
    removals: list[dict[str, object]] = []
    for each, verdict in zip(made, verdicts, strict=True):
        if verdict not in ("cancelled", "lost"):
            lost.redone += 1
            continue
        changes = cast("list[dict[str, object]]", json.loads(each.changes))
        keys = {str(change["key"]) for change in changes}
        if verdict == "lost":
            lost.outcomes += 1
            lost.keys -= keys
        else:
            lost.disputed += 1
            lost.keys |= keys
            removals += [change for change in changes if "record" not in change and "kept" not in change]
    return removals
