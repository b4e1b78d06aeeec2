"""One thing that ``peerlane doctor`` has looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what is to be said of it."""

    what: str
    verdict: Verdict
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """The check for programs."""
        return asdict(self)
