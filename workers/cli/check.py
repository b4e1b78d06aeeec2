"""The result of one check of ``peerlane doctor``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check: its name, whether it passed, and a sentence."""

    what: str
    verdict: Verdict
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """The check for programs."""
        return asdict(self)
