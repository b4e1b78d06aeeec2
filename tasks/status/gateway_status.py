"""Gateway status: lane, alarms, observer heartbeat, last sweep and reconciliation, recovery progress. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from peerlane.tasks.admission.lane_state import LaneState, number
from peerlane.tasks.status.alarms import Alarm, parse_alarms
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.metrics import ObserverMetrics, WriterMetrics, observer_metrics, writer_metrics
from peerlane.tasks.values.metrics import number as measured

#: Milliseconds without a sign of life after which an observer counts as gone; a long reading keeps it silent a while.
OBSERVER_LIVE_FOR_MS = 15_000
#: Intervals between sweeps without a request from beat, and seconds at least, after which beat counts as gone.
BEAT_MISSED, BEAT_AT_LEAST = 5, 300.0
#: Seconds for which the start of a writer is shown.
RECENT = 600.0


def observer_silence(heartbeat: bytes | None, now_ms: int) -> float | None:
    """Seconds since an observer's heartbeat; None if there was none, or if it was stopped properly (0 is stored)."""
    at = number((heartbeat or b"").decode(errors="replace"))
    return max(0, now_ms - at) / 1000 if at else None


def observer_is_live(silent_for: float | None) -> bool:
    """Whether an observer whose heartbeat is this old counts as running."""
    return silent_for is not None and silent_for * 1000 <= OBSERVER_LIVE_FOR_MS


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """One gateway at one moment. The mappings are the observer's last reports, ``at`` in seconds on Redis' clock."""

    lane: LaneState
    #: Redis' clock, in seconds.
    now: float
    #: Whether this Redis user may see alarms, observer and sweeps; where not, they are empty.
    visible: bool = True
    alarms: tuple[Alarm, ...] = ()
    #: Seconds since the observer's last sign of life; None if there is none.
    observer_silent_for: float | None = None
    #: Seconds since beat last asked for a sweep or a reconciliation here; None where that is not known.
    beat_silent_for: float | None = None
    reading: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sweep: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reconcile: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: Messages that were set aside (``gateway poison``); None where this Redis user may not count them.
    set_aside: int | None = None
    #: Where the observer runs, or ran last; empty where it never did.
    observer_host: str = ""
    observer_pid: int = 0
    #: The measurements of its processes; None if there are none, or they were not read.
    writer_metrics: WriterMetrics | None = None
    observer_metrics: ObserverMetrics | None = None

    @classmethod
    def of(
        cls,
        lane: LaneState,
        *,
        now: float,
        observer: Mapping[bytes, bytes] | None = None,
        alarms: Mapping[bytes, bytes] | None = None,
        set_aside: int | None = None,
        measured: bytes | None = None,
    ) -> GatewayStatus:
        """From the observer's hash and the alarms' hash, as Redis gives them; ``now`` is Redis' clock in seconds.

        ``measured`` are the stored measurements of the writer.
        """
        report = {name.decode(errors="replace"): value for name, value in (observer or {}).items()}
        asked_at = number(report.get("asked_at", b"").decode(errors="replace"))
        return cls(
            lane=lane,
            now=now,
            alarms=tuple(parse_alarms(alarms or {})),
            observer_silent_for=observer_silence(report.get("heartbeat"), int(now * 1000)),
            beat_silent_for=max(0.0, now - asked_at) if asked_at else None,
            reading=_parsed(report.get("reading")),
            sweep=_parsed(report.get("sweep")),
            reconcile=_parsed(report.get("reconcile")),
            set_aside=set_aside,
            observer_host=report.get("host", b"").decode(errors="replace"),
            observer_pid=number(report.get("pid", b"").decode(errors="replace")),
            writer_metrics=writer_metrics(measured),
            observer_metrics=observer_metrics(report.get("metrics")),
        )

    @property
    def gateway(self) -> str:
        """Its name."""
        return self.lane.gateway

    @property
    def info(self) -> GatewayInfo:
        """Its facts for clients."""
        return GatewayInfo.from_state(self.lane)

    @property
    def observed(self) -> bool:
        """Whether an observer is running."""
        return observer_is_live(self.observer_silent_for)

    @property
    def beat_missing(self) -> bool:
        """Whether beat has not asked a running observer for anything for too long."""
        try:
            every = float(self.lane.facts.get("sweep_every") or 0)
        except ValueError:
            every = 0.0
        silent = self.beat_silent_for
        return self.observed and silent is not None and silent > max(BEAT_AT_LEAST, BEAT_MISSED * every)

    @property
    def writer_age(self) -> float | None:
        """Seconds since the writer that lives began; None where none lives, or it does not say."""
        began = number(self.lane.facts.get("began", ""))
        return max(0.0, self.now - began) if began and self.lane.live else None

    @property
    def restarted(self) -> bool:
        """Whether its writer has begun a short while ago, and was not the first."""
        age = self.writer_age
        return age is not None and age < RECENT and number(self.lane.facts.get("epoch", "")) > 1

    @property
    def recovered(self) -> str:
        """``done/total`` changes of the writer's last recovery; empty if it changed nothing."""
        return self.lane.facts.get("recovered", "")

    @property
    def loaded(self) -> str:
        """``done/total`` records that the writer's last start has read."""
        return self.lane.facts.get("loaded", "")

    @property
    def recovering(self) -> int:
        """Peers that the writer still adds to its device after a start, while it serves the lane."""
        text = self.lane.facts.get("recovering", "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0

    def oldest_for(self, *, bulk: bool) -> float | None:
        """Seconds for which the oldest message of a queue has waited; None if that is not known.

        The writer tells when it was sent, once a second, even while it serves nothing. What came after its last word
        has waited for no longer than that.
        """
        lane = self.lane
        if not (lane.waiting_bulk if bulk else lane.waiting):
            return 0.0
        sent_at = number(lane.facts.get("oldest_bulk_sent_at" if bulk else "oldest_sent_at", ""))
        if sent_at:
            return max(0.0, self.now - sent_at / 1000)
        return None if lane.silent_for is None else lane.silent_for / 1000

    def ago(self, at: object) -> float:
        """Seconds since a moment on Redis' clock that a report names."""
        return max(0.0, self.now - measured(at))

    def as_dict(self) -> dict[str, Any]:
        """The status as JSON has it, beside the gateway's own facts."""
        return {
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "visible": self.visible,
            "observer_silent_for": self.observer_silent_for,
            "beat_silent_for": self.beat_silent_for,
            "reading": dict(self.reading),
            "sweep": dict(self.sweep),
            "reconcile": dict(self.reconcile),
            "loaded": self.loaded,
            "recovered": self.recovered,
            "recovering": self.recovering,
            "set_aside": self.set_aside,
            "writer_age": self.writer_age,
        }


def removed_count(report: Mapping[str, Any]) -> int:
    """How many peers a sweep has removed. A running sweep reports one number, a finished one a number by reason."""
    return _total(report.get("removed"))


def missed_count(report: Mapping[str, Any]) -> int:
    """How many stale peers a finished sweep could not remove."""
    if report.get("outcome") != "swept":
        return 0
    return max(0, _total(report.get("stale")) - _total(report.get("removed")) - _total(report.get("kept")))


def _total(counts: object) -> int:
    values = cast("dict[object, object]", counts).values() if isinstance(counts, dict) else (counts,)
    return sum(value for value in values if isinstance(value, int) and not isinstance(value, bool))


def _parsed(record: bytes | None) -> Mapping[str, Any]:
    try:
        report = json.loads(record or b"{}")
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", report) if isinstance(report, dict) else {}
