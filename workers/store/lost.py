"""``Lost``: the outcomes that Redis has lost and its writer could not repeat. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

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
