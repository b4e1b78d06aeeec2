"""Why an import is refused: the problems of a file, its conflicts, the peers of a device that cannot be taken over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from peerlane.tasks.admin.import_conflicts import Clash
from peerlane.tasks.errors import Conflict, Invalid
from peerlane.tasks.wgfile.parser import Problem


class UnreadableConf(Invalid):
    """A file has problems; nothing was imported."""

    code = "unreadable_conf"

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        super().__init__(f"nothing was imported: line {first.line}: {first.sentence}{more}")
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)

    def as_dict(self) -> dict[str, object]:
        problems = [{"line": problem.line, "message": problem.sentence} for problem in self.problems]
        return {**super().as_dict(), "problems": problems}


class ImportClash(Conflict):
    """A file's peers conflict with existing peers or with what the gateway serves; nothing was imported."""

    def __init__(self, clashing: Sequence[Clash]) -> None:
        first = clashing[0]
        more = f"; and {len(clashing) - 1} more" if len(clashing) > 1 else ""
        super().__init__(f"nothing was imported: line {first.line}: {first.sentence}{more}")
        self.clashes = tuple(clashing)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.clashes,)

    def as_dict(self) -> dict[str, object]:
        clashes = [
            {"line": clash.line, "public_key": clash.public_key, "kind": clash.kind, "message": clash.sentence}
            for clash in self.clashes
        ]
        return {**super().as_dict(), "conflicts": clashes}


class NotTaken(BaseModel):
    """A peer of a live device that is not taken over, and why."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    public_key: str
    #: ``no_allowed_ips``, or an error's code.
    kind: str
    message: str


class AdoptionClash(Conflict):
    """Peers of the live device cannot be taken over; nothing was imported."""

    def __init__(self, not_taken: Sequence[NotTaken], unlisted: int = 0) -> None:
        first, count = not_taken[0], len(not_taken) + unlisted
        more = f"; and {count - 1} more" if count > 1 else ""
        super().__init__(f"nothing was imported: {first.public_key}: {first.message}{more}")
        self.not_taken, self.unlisted = tuple(not_taken), unlisted

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.not_taken, self.unlisted)

    def as_dict(self) -> dict[str, object]:
        clashes = {"conflicts": [peer.model_dump() for peer in self.not_taken], "unlisted": self.unlisted}
        return {**super().as_dict(), **clashes}
