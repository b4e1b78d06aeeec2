"""Turns one gateway's status into samples of the exporter's families. Pure. Unknown values have no sample.

The number of samples is limited, whatever a gateway's hashes contain: values beyond it are counted as ``other``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from peerlane.tasks.admission.lane_state import number
from peerlane.tasks.errors import KernelError, StorageError, WriterError
from peerlane.tasks.exporter.families import FEWER_BUCKETS, STATES
from peerlane.tasks.status.alarms import KINDS
from peerlane.tasks.status.gateway_status import GatewayStatus, missed_count
from peerlane.tasks.values.metrics import BUCKETS, Histogram, ObserverMetrics, WriterMetrics

#: A value, or a histogram's buckets (bound, how many values are not above it) and sum.
Value = float | tuple[tuple[tuple[str, float], ...], float]
#: Family, the values of its labels after ``gateway``, value.
Sample = tuple[str, tuple[str, ...], Value]

#: Most series of a gateway in families whose labels' values are not fixed.
MOST_POOLS, MOST_REQUESTS, MOST_ALARMS, MOST_REASONS, MOST_OUTCOMES, MOST_KINDS = 2, 21, 6, 4, 4, 8
_OTHER = "other"

#: Failures that are not the caller's. Exported from 0 on, as Prometheus does not see a counter's first step.
_NO_FAILURES = {
    (operation, "refused", code): 0
    for operation in ("create", "delete")
    for code in (KernelError.code, StorageError.code, WriterError.code)
}


def samples(status: GatewayStatus) -> Iterator[Sample]:
    """All samples of a gateway."""
    yield from _of_lane(status)
    yield from _of_reports(status)
    if status.writer_metrics is not None:
        yield from _of_writer(status.writer_metrics)
    if status.observer_metrics is not None:
        yield from _of_observer(status.observer_metrics)


def _of_lane(status: GatewayStatus) -> Iterator[Sample]:
    lane, facts = status.lane, status.lane.facts
    about = (facts.get(name, "")[:64] for name in ("region", "version", "dataplane", "interface"))
    yield "peerlane_gateway_info", tuple(about), 1
    current = "stopped" if lane.stopped else lane.state
    for state in STATES:
        yield "peerlane_gateway_state", (state,), float(state == current)
    for name, fact in (
        ("peerlane_peers", "peers"),
        ("peerlane_peers_limit", "max_peers"),
        ("peerlane_writer_epoch", "epoch"),
    ):
        if fact in facts:
            yield name, (), number(facts[fact])
    yield "peerlane_peers_coming", (), status.recovering
    yield "peerlane_lane_limit", (), lane.cap
    for queue, waiting in (("interactive", lane.waiting), ("bulk", lane.waiting_bulk)):
        yield "peerlane_lane_waiting", (queue,), waiting
        if (oldest := status.oldest_for(bulk=queue == "bulk")) is not None:
            yield "peerlane_lane_oldest_seconds", (queue,), round(oldest, 3)


def _of_reports(status: GatewayStatus) -> Iterator[Sample]:
    silent = status.lane.silent_for
    ages = {
        "writer": None if silent is None else silent / 1000,
        "observer": status.observer_silent_for,
        "beat": status.beat_silent_for,
    }
    for process, age in ages.items():
        if age is not None:
            yield "peerlane_heartbeat_age_seconds", (process,), round(age, 3)
    if status.set_aside is not None:
        yield "peerlane_set_aside_messages", (), status.set_aside
    alarms = {(alarm.kind[:32],): 1.0 for alarm in status.alarms}
    known = {(kind,) for kind in KINDS}
    yield from ((name, labels, 1.0) for name, labels, _ in few("peerlane_alarm", alarms, MOST_ALARMS, first=known))
    for name, report in (("sweep", status.sweep), ("reconciliation", status.reconcile)):
        if "at" in report:
            yield f"peerlane_{name}_age_seconds", (), round(status.ago(report["at"]), 3)
    if status.sweep:
        yield "peerlane_sweep_missed_peers", (), missed_count(status.sweep)


def _of_writer(metrics: WriterMetrics) -> Iterator[Sample]:
    yield "peerlane_writer_start_time_seconds", (), metrics.began
    for pool, (in_use, size) in sorted(metrics.pools.items())[:MOST_POOLS]:
        yield "peerlane_pool_addresses_held", (pool,), in_use
        yield "peerlane_pool_addresses", (pool,), size
    requests = {**_NO_FAILURES, **metrics.requests}
    yield from few("peerlane_requests_total", requests, MOST_REQUESTS, first=_NO_FAILURES)
    for operation, histogram in metrics.seconds.items():
        bounds = BUCKETS if operation == "create" else FEWER_BUCKETS
        yield "peerlane_request_seconds", (operation,), _buckets(histogram, bounds)
    for stage, histogram in metrics.stages.items():
        yield "peerlane_request_stage_seconds", (stage,), _buckets(histogram, FEWER_BUCKETS)
    yield "peerlane_recoveries_total", (), metrics.recoveries
    yield "peerlane_recovery_seconds_total", (), metrics.recovery_seconds
    if metrics.round_trip is not None:
        yield "peerlane_redis_round_trip_seconds", (), metrics.round_trip


def _of_observer(metrics: ObserverMetrics) -> Iterator[Sample]:
    for name, counted, most in (
        ("peerlane_sweeps_total", metrics.sweeps, MOST_OUTCOMES),
        ("peerlane_sweep_removed_total", metrics.removed, MOST_REASONS),
        ("peerlane_reconciliations_total", metrics.reconciliations, MOST_OUTCOMES),
        ("peerlane_drift_total", metrics.drift, MOST_KINDS),
    ):
        yield from few(name, {(kind,): count for kind, count in counted.items()}, most)
    for direction, moved in (("received", metrics.received), ("sent", metrics.sent)):
        if moved is not None:
            yield "peerlane_traffic_bytes_total", (direction,), moved
    if metrics.read_seconds is not None:
        yield "peerlane_observer_read_seconds", (), metrics.read_seconds


def few(
    name: str, counted: Mapping[tuple[str, ...], float], most: int, first: Collection[tuple[str, ...]] = ()
) -> Iterator[Sample]:
    """Limit the number of samples: the rest are added up as ``other``. Those of ``first`` are never of the rest."""
    rows = sorted(counted.items(), key=lambda row: (set(row[0]) == {_OTHER}, row[0] not in first, row))
    for labels, count in rows[: most if len(rows) <= most else most - 1]:
        yield name, labels, count
    if len(rows) > most:
        labels = (_OTHER,) * len(rows[0][0])
        yield name, labels, sum(count for _, count in rows[most - 1 :])


def _buckets(histogram: Histogram, bounds: Sequence[float]) -> Value:
    """Cumulative, as Prometheus has them."""
    buckets: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip((*BUCKETS, None), histogram.counts, strict=True):
        so_far += count
        if bound is None or bound in bounds:
            buckets.append(("+Inf" if bound is None else str(bound), so_far))
    return tuple(buckets), histogram.total
