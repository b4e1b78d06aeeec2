"""Counts and measurements of a gateway's processes, and their stored form: one JSON document for each process. Pure.

A document counts since its process began: after a restart its counters begin at 0 again, as Prometheus expects. A
document may come from another version or another program: fields that do not parse are left out.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

#: Upper bounds of the histograms' buckets in seconds; a bound is in its bucket. One bucket more is for what is above.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: What is measured of a request: from being sent to being taken, until the device is touched, until the device is
#: changed, until the outcome is committed. Together they are the whole.
STAGES = ("queue", "plan", "device", "commit")
#: Kinds of requests: single creates and deletes; lists of any kind.
OPERATIONS = ("create", "delete", "bulk")

_WORD = re.compile(r"[a-z][a-z_]{0,31}")
_PREFIX = re.compile(r"[0-9a-f.:]{2,39}/[0-9]{1,3}")
_LARGEST = 2**53


class Histogram:
    """A histogram: how many values each bucket has, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self, counts: Sequence[int] | None = None, total: float = 0.0) -> None:
        self.counts = list(counts) if counts is not None else [0] * (len(BUCKETS) + 1)
        self.total = total

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class WriterMetrics:
    """A writer's counts and measurements."""

    #: When the writer began, in seconds since 1970 on Redis' clock.
    began: float
    #: Whole requests by operation; the stages of single creates and deletes.
    seconds: Mapping[str, Histogram]
    stages: Mapping[str, Histogram]
    #: How many by operation, outcome and, of refusals, the error's code.
    requests: Mapping[tuple[str, str, str], int]
    recoveries: int
    recovery_seconds: float
    #: Seconds of the last heartbeat's round trip to Redis; None before there was one.
    round_trip: float | None
    #: Of each pool (a prefix): addresses that are held, and addresses that there are.
    pools: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])


@dataclass(frozen=True, slots=True)
class ObserverMetrics:
    """An observer's counts and measurements."""

    #: When it began, in seconds since 1970 on Redis' clock.
    began: float
    #: Sweeps and reconciliations by their outcome; peers removed by reason; differences found by kind.
    sweeps: Mapping[str, int]
    removed: Mapping[str, int]
    reconciliations: Mapping[str, int]
    drift: Mapping[str, int]
    #: Bytes received from peers and sent to them, and seconds that the last reading of the counters took; None where
    #: there are no counters to read.
    received: float | None = None
    sent: float | None = None
    read_seconds: float | None = None


def observer_metrics(stored: bytes | str | None) -> ObserverMetrics | None:
    """Read an observer's document; None if there is none that can be read."""
    document = parsed(stored)
    if not document:
        return None
    sweeps, removed, reconciliations, drift = (
        counts(document.get(name)) for name in ("sweeps", "removed", "reconciliations", "drift")
    )
    received, sent, read_seconds = (
        number(document[name], 2**63) if name in document else None for name in ("received", "sent", "read_seconds")
    )
    began = number(document.get("began")) / 1000
    return ObserverMetrics(began, sweeps, removed, reconciliations, drift, received, sent, read_seconds)


def encoded(document: Mapping[str, Any]) -> str:
    """A document as it is stored."""
    return json.dumps(document, separators=(",", ":"))


def writer_metrics(stored: bytes | str | None) -> WriterMetrics | None:
    """Read a writer's document; None if there is none that can be read."""
    document = parsed(stored)
    if not document:
        return None
    requests: dict[tuple[str, str, str], int] = {}
    for row in _list(document.get("requests")):
        match _list(row):
            case [str(operation), str(outcome), str(code), count] if (
                operation in OPERATIONS and _WORD.fullmatch(outcome) and (not code or _WORD.fullmatch(code))
            ):
                requests[operation, outcome, code] = int(number(count))
            case _:
                continue
    trip = document.get("round_trip")
    return WriterMetrics(
        began=number(document.get("began")) / 1000,
        seconds=_histograms(document.get("seconds"), OPERATIONS),
        stages=_histograms(document.get("stages"), STAGES),
        requests=requests,
        recoveries=int(number(document.get("recoveries"))),
        recovery_seconds=number(document.get("recovery_seconds")),
        round_trip=None if trip is None else number(trip),
        pools=_pools(document.get("pools")),
    )


def parsed(stored: bytes | str | None) -> dict[str, Any]:
    """A stored document; empty if it is no JSON object."""
    try:
        document = json.loads(stored or b"{}")
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def number(value: object, largest: int = _LARGEST) -> float:
    """A count or measurement in a document; 0 if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:
        return 0.0
    return float(value)


def counts(value: object) -> dict[str, int]:
    """Counts by names that are words, as labels are."""
    pairs = _mapping(value).items()
    return {name: int(number(count)) for name, count in pairs if isinstance(name, str) and _WORD.fullmatch(name)}


def _pools(value: object) -> dict[str, tuple[int, float]]:
    pools: dict[str, tuple[int, float]] = {}
    for name, row in _mapping(value).items():
        match _list(row):
            case [taken, there] if isinstance(name, str) and _PREFIX.fullmatch(name):
                pools[name] = int(number(taken)), number(there, 2**128)
            case _:
                continue
    return pools


def _histograms(value: object, names: Sequence[str]) -> dict[str, Histogram]:
    mapping = _mapping(value)
    histograms: dict[str, Histogram] = {}
    for name in names:
        match _list(mapping.get(name)):
            case [stored, total] if len(counts := _list(stored)) == len(BUCKETS) + 1:
                histograms[name] = Histogram([int(number(count)) for count in counts], number(total))
            case _:
                continue
    return histograms


def _mapping(value: object) -> dict[object, object]:
    return cast("dict[object, object]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
