"""Computes rates and waits from two snapshots of a fleet, and sorts the gateways by urgency. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from peerlane.tasks.admission.lane_state import LaneState, number
from peerlane.tasks.status.alarms import Alarm
from peerlane.tasks.status.fleet_snapshot import FleetSnapshot
from peerlane.tasks.status.gateway_status import GatewayStatus, observer_is_live

#: Seconds below which a lane that answers nothing is not remarkable: what a writer tells is up to a second old.
REMARKABLE = 1.0

_TROUBLE = {"down": 1, "stuck": 1, "recovering": 2, "draining": 3}


@dataclass(frozen=True, slots=True)
class Wait:
    """How long requests wait for an answer, in seconds. ``at_least``: some have waited this long and still wait.

    ``about``: those that wait now will, at the pace of the last interval. The interactive ones, where any wait.
    """

    seconds: float
    kind: Literal["about", "at_least"]


@dataclass(frozen=True, slots=True)
class Row:
    """One gateway of the table. Rates are per second; None means that the value is not known."""

    gateway: str
    state: str
    peers: int
    max_peers: int
    waiting: int
    waiting_bulk: int
    wait: Wait | None
    created_per_second: float | None
    deleted_per_second: float | None
    #: Requests that its writer refused; those that never reached it, as into a full lane, are not among them.
    refused_per_second: float | None
    #: Bytes received from peers and sent to them, as the observer's last two readings have it.
    rx_per_second: int | None
    tx_per_second: int | None
    #: Seconds since the last sign of life; None where there is none, as after an end in good order.
    silent_for: float | None
    #: Whether its writer ended in good order.
    stopped: bool
    observer_silent_for: float | None
    #: Seconds since beat last asked its observer for anything; None where that is not known.
    beat_silent_for: float | None
    #: Whether that is longer than it should be.
    beat_missing: bool
    #: Whether this Redis user may see the observer, sweeps and alarms.
    visible: bool
    #: ``done/total`` changes, while it is recovering.
    recovered: str
    #: Peers still to be added to the device after a start, while the lane is served.
    coming: int
    #: The last sweep's report, with the seconds since as ``ago``; empty if there was none.
    sweep: Mapping[str, Any]
    alarms: tuple[Alarm, ...]
    #: How many requests may wait in each queue of the lane; one more is refused.
    lane_cap: int
    #: Messages that were set aside; None where that is not known.
    set_aside: int | None
    region: str
    #: How often a writer of the gateway has started.
    epoch: int
    #: Seconds since the writer that lives began; None where none lives.
    writer_age: float | None
    #: Whether that is a short while, and there was one before.
    restarted: bool

    @property
    def lane_full(self) -> bool:
        """Whether a queue is full, so that requests are refused."""
        return max(self.waiting, self.waiting_bulk) >= self.lane_cap

    @property
    def observed(self) -> bool:
        """Whether an observer lives."""
        return observer_is_live(self.observer_silent_for)

    def urgency(self) -> tuple[int, int, int, str]:
        """Sort key: alarms, down or stuck, recovering, draining, unobserved, then waiting requests."""
        trouble = _TROUBLE.get(self.state, 5 if self.observed or not self.visible else 4)
        return (0 if self.alarms else 1, trouble, -(self.waiting + self.waiting_bulk), self.gateway)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "alarms": [alarm.as_dict() for alarm in self.alarms]}


@dataclass(frozen=True, slots=True)
class _Sample:
    """One gateway's values of a snapshot that the next one is compared with."""

    epoch: str
    heartbeat: int
    answered: int
    created: int
    deleted: int
    refused: int
    backlog: int
    #: Since when, on Redis' clock in seconds, something waits and nothing was answered; None while that is not so.
    stuck_since: float | None
    #: Per second, in the last interval with a heartbeat: answered, created, deleted, refused.
    rates: tuple[float, float, float, float] | None


class FleetRates:
    """Turns snapshots into rows. Keeps a few numbers of each gateway from one snapshot to the next."""

    def __init__(self) -> None:
        self._before: dict[str, _Sample] = {}

    def rows(self, snapshot: FleetSnapshot) -> list[Row]:
        """The gateways, the most urgent first."""
        samples = {
            status.gateway: _sample(status.lane, self._before.get(status.gateway), snapshot.at)
            for status in snapshot.gateways
        }
        self._before = samples
        return sorted((_row(status, samples[status.gateway]) for status in snapshot.gateways), key=Row.urgency)


def _sample(lane: LaneState, before: _Sample | None, at: float) -> _Sample:
    facts = lane.facts
    epoch, beat = facts.get("epoch", ""), number(facts.get("heartbeat", ""))
    # A writer of an earlier version counts nothing, and one that has just started has told nothing yet.
    answered, created, deleted = (number(facts.get(name, ""), -1) for name in ("answered", "created", "deleted"))
    refused = number(facts.get("refused", ""))
    backlog = lane.waiting + lane.waiting_bulk
    rates, stuck_since = None, at if backlog else None
    comparable = before is not None and before.answered >= 0 and min(answered, created, deleted) >= 0
    if before is not None and comparable and lane.live and epoch == before.epoch:
        seconds = (beat - before.heartbeat) / 1000
        counted = (answered - before.answered, created - before.created, deleted - before.deleted)
        refusals = max(0, refused - before.refused)
        if seconds > 0 and min(counted) >= 0:
            rates = (counted[0] / seconds, counted[1] / seconds, counted[2] / seconds, refusals / seconds)
        elif seconds == 0:
            rates = before.rates
    if before is not None and before.stuck_since is not None and backlog >= before.backlog:
        idle = epoch == before.epoch and answered == before.answered and (answered >= 0 or not lane.live)
        stuck_since = before.stuck_since if idle else stuck_since
    return _Sample(epoch, beat, answered, created, deleted, refused, backlog, stuck_since, rates)


def _wait(status: GatewayStatus, sample: _Sample) -> Wait | None:
    lane = status.lane
    if sample.backlog == 0:
        return None
    # When the oldest one was sent, by the last heartbeat; 0 if it does not say.
    sent_at = number(lane.facts.get("oldest_sent_at" if lane.waiting else "oldest_bulk_sent_at", ""))
    oldest = max(0.0, status.now - sent_at / 1000) if sent_at else 0.0
    if lane.state in ("down", "stuck") and oldest >= REMARKABLE:
        return Wait(round(oldest, 1), "at_least")
    if sample.stuck_since is not None:
        # Requests answered since the last heartbeat are not counted yet.
        seconds = (status.now if not lane.live else sample.heartbeat / 1000) - sample.stuck_since
        if seconds >= REMARKABLE:
            return Wait(round(max(seconds, oldest), 1), "at_least")
    if sample.rates is None or sample.rates[0] <= 0:
        return None
    return Wait(round((lane.waiting or lane.waiting_bulk) / sample.rates[0], 3), "about")


def _row(status: GatewayStatus, sample: _Sample) -> Row:
    lane = status.lane
    rates = sample.rates or (None, None, None, None)
    # The figures of a silent observer are old.
    reading: Mapping[str, Any] = status.reading if status.observed else {}
    return Row(
        gateway=lane.gateway,
        state=lane.state,
        peers=number(lane.facts.get("peers", "")),
        max_peers=number(lane.facts.get("max_peers", "")),
        waiting=lane.waiting,
        waiting_bulk=lane.waiting_bulk,
        wait=_wait(status, sample),
        created_per_second=None if rates[1] is None else round(rates[1], 2),
        deleted_per_second=None if rates[2] is None else round(rates[2], 2),
        refused_per_second=None if rates[3] is None else round(rates[3], 2),
        rx_per_second=_whole(reading.get("rx_per_second")),
        tx_per_second=_whole(reading.get("tx_per_second")),
        silent_for=lane.silent_for / 1000 if lane.silent_for is not None else None,
        stopped=lane.stopped,
        observer_silent_for=status.observer_silent_for,
        beat_silent_for=status.beat_silent_for,
        beat_missing=status.beat_missing,
        visible=status.visible,
        recovered=status.recovered if lane.state == "recovering" else "",
        coming=status.recovering,
        sweep={**status.sweep, "ago": int(status.ago(status.sweep.get("at")))} if status.sweep else {},
        alarms=status.alarms,
        lane_cap=lane.cap,
        set_aside=status.set_aside,
        region=lane.facts.get("region", ""),
        epoch=number(lane.facts.get("epoch", "")),
        writer_age=status.writer_age,
        restarted=status.restarted,
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
