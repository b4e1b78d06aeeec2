"""What an observer counts of its sweeps, reconciliations and readings, and what readers make of what it tells."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from peerlane.config import names
from peerlane.tasks.values.metrics import encoded, observer_metrics
from peerlane.workers.upkeep.activity_tracker import ActivityTracker
from peerlane.workers.upkeep.measurements import UpkeepMeasurements


def test_it_counts_reports_by_outcome_peers_by_reason_and_differences_by_kind() -> None:
    measured = UpkeepMeasurements()
    measured.began_ms = 1_700_000_000_250
    for removed in ({"expired": 2, "idle": 1}, {"expired": 5}):
        measured.ended(names.SWEEP, {"outcome": "swept", "removed": removed})
    measured.ended(names.SWEEP, {"outcome": "refused", "removed": {}})
    measured.ended(names.RECONCILE, {"outcome": "reconciled", "found": {"missing": 3, "device": 1}})
    measured.ended(names.RECONCILE, {"outcome": "skipped", "found": {}})
    without_counters = observer_metrics(encoded(measured.document(None)))
    assert without_counters is not None
    assert without_counters.began == 1_700_000_000.25
    assert without_counters.sweeps == {"swept": 2, "refused": 1}
    assert without_counters.removed == {"expired": 7, "idle": 1}
    assert without_counters.reconciliations == {"reconciled": 1, "skipped": 1}
    assert {kind: count for kind, count in without_counters.drift.items() if count} == {"missing": 3, "device": 1}
    assert without_counters.drift["preshared_key"] == 0, "told from the beginning"
    assert without_counters.received is without_counters.sent is without_counters.read_seconds is None
    counted = cast("ActivityTracker", SimpleNamespace(traffic=(10, 2**60), took=0.125))
    metrics = observer_metrics(encoded(measured.document(counted)))
    assert metrics is not None
    assert (metrics.received, metrics.sent, metrics.read_seconds) == (10, 2**60, 0.125)


@pytest.mark.parametrize("value", [None, True, "x", [1], {"a b": 1}, {"fine": "x"}, {"Ü": 1}])
def test_what_others_have_put_there_counts_nothing(value: Any) -> None:
    metrics = observer_metrics(json.dumps({"removed": value, "drift": value, "received": value, "began": value}))
    assert metrics is not None
    assert sum(metrics.removed.values()) == sum(metrics.drift.values()) == metrics.began == 0
    assert metrics.received == 0
