"""Counts an observer's sweeps, reconciliations and readings, for its heartbeat. Cumulative."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast, get_args

from peerlane.config import names
from peerlane.workers.peers.drift import Kind
from peerlane.workers.upkeep.activity_tracker import ActivityTracker


class UpkeepMeasurements:
    """The counts since this observer began. Belongs to its thread."""

    def __init__(self) -> None:
        #: When it began, in ms on Redis' clock; known after its first heartbeat.
        self.began_ms = 0
        self._sweeps: Counter[str] = Counter()
        self._removed: Counter[str] = Counter()
        self._reconciliations: Counter[str] = Counter()
        # Told from the beginning: Prometheus does not see a counter's first step.
        self._drift: Counter[str] = Counter(dict.fromkeys((*get_args(Kind), "device"), 0))

    def ended(self, task: str, report: Mapping[str, Any]) -> None:
        """Count a sweep or reconciliation by its report."""
        ended, counted, kinds = (
            (self._sweeps, self._removed, report.get("removed"))
            if task == names.SWEEP
            else (self._reconciliations, self._drift, report.get("found"))
        )
        ended[str(report.get("outcome"))] += 1
        if isinstance(kinds, dict):
            counted.update(cast("dict[str, int]", kinds))

    def document(self, counted: ActivityTracker | None) -> dict[str, Any]:
        """The document of ``tasks.values.metrics``."""
        document: dict[str, Any] = {
            "began": self.began_ms,
            "sweeps": self._sweeps,
            "removed": self._removed,
            "reconciliations": self._reconciliations,
            "drift": self._drift,
        }
        if counted is not None:
            received, sent = counted.traffic
            document |= {"received": received, "sent": sent, "read_seconds": round(counted.took, 6)}
        return document
