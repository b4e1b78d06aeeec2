"""What two looks at a fleet tell that one does not: rates, waits, and which gateway needs a person first. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from peerlane.tasks.lane.admission import LaneState, number
from peerlane.tasks.status.alarms import Alarm
from peerlane.tasks.status.fleet_snapshot import Glance, Look
from peerlane.tasks.status.gateway_status import OBSERVER_LIVE_FOR_MS, Condition

#: Seconds below which a lane that answers nothing is not remarkable: what a writer tells is up to a second old.
REMARKABLE = 1.0

_TROUBLE = {"down": 1, "recovering": 2, "draining": 3}


@dataclass(frozen=True, slots=True)
class Wait:
    """How long requests wait for an answer, in seconds. ``at_least``: some have waited so long, and wait on.

    ``about``: those that wait now will, at the pace of the last interval. The interactive ones, where any wait.
    """

    seconds: float
    kind: Literal["about", "at_least"]


@dataclass(frozen=True, slots=True)
class Row:
    """One gateway of the table. Rates are per second; None is what is not known."""

    gateway: str
    state: str
    peers: int
    max_peers: int
    waiting: int
    waiting_bulk: int
    wait: Wait | None
    created_per_second: float | None
    deleted_per_second: float | None
    #: Bytes received from peers and sent to them, as the observer's last two readings have it.
    rx_per_second: int | None
    tx_per_second: int | None
    #: Seconds since the last sign of life; None where there is none, as after an end in good order.
    silent_for: float | None
    observer_silent_for: float | None
    #: Whether this Redis user may see the observer, sweeps and alarms.
    visible: bool
    #: ``done/total`` changes, while it is recovering.
    recovered: str
    #: The last sweep's report, with the seconds since as ``ago``; empty if there was none.
    sweep: Mapping[str, Any]
    alarms: tuple[Alarm, ...]

    @property
    def observed(self) -> bool:
        """Whether an observer lives."""
        return self.observer_silent_for is not None and self.observer_silent_for * 1000 <= OBSERVER_LIVE_FOR_MS

    def urgency(self) -> tuple[int, int, int, str]:
        """To sort by: alarms, down, recovering, draining, unobserved, then by what waits."""
        trouble = _TROUBLE.get(self.state, 5 if self.observed or not self.visible else 4)
        return (0 if self.alarms else 1, trouble, -(self.waiting + self.waiting_bulk), self.gateway)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sample:
    """What one look leaves for the next, of one gateway."""

    epoch: str
    heartbeat: int
    answered: int
    created: int
    deleted: int
    backlog: int
    #: Since when, on Redis' clock in seconds, something waits and nothing was answered; None while that is not so.
    stuck_since: float | None
    #: Per second, in the last interval in which the writer told anything: answered, created, deleted.
    rates: tuple[float, float, float] | None


class Trends:
    """Turns looks into rows. Keeps a few numbers of each gateway from one look to the next."""

    def __init__(self) -> None:
        self._before: dict[str, _Sample] = {}

    def rows(self, look: Look) -> list[Row]:
        """The gateways, the one in most trouble first."""
        samples = {
            glance.lane.gateway: _sample(glance.lane, self._before.get(glance.lane.gateway), look.at)
            for glance in look.glances
        }
        self._before = samples
        return sorted((_row(one, samples[one.lane.gateway], look.at) for one in look.glances), key=Row.urgency)


def _sample(lane: LaneState, before: _Sample | None, at: float) -> _Sample:
    facts = lane.facts
    epoch, beat = facts.get("epoch", ""), number(facts.get("heartbeat", ""))
    # A writer of an earlier version counts nothing.
    answered, created, deleted = (number(facts.get(name, ""), -1) for name in ("answered", "created", "deleted"))
    backlog = lane.waiting + lane.waiting_bulk
    rates, stuck_since = None, at if backlog else None
    if before is not None and lane.live and epoch == before.epoch and min(answered, created, deleted) >= 0:
        seconds = (beat - before.heartbeat) / 1000
        counted = (answered - before.answered, created - before.created, deleted - before.deleted)
        if seconds > 0 and min(counted) >= 0:
            rates = (counted[0] / seconds, counted[1] / seconds, counted[2] / seconds)
        elif seconds == 0:
            rates = before.rates
    if before is not None and before.stuck_since is not None and backlog >= before.backlog:
        idle = epoch == before.epoch and answered == before.answered and (answered >= 0 or not lane.live)
        stuck_since = before.stuck_since if idle else stuck_since
    return _Sample(epoch, beat, answered, created, deleted, backlog, stuck_since, rates)


def _wait(lane: LaneState, sample: _Sample, at: float) -> Wait | None:
    if sample.backlog == 0:
        return None
    if sample.stuck_since is not None:
        # What a live writer has answered since its last sign of life is not told yet.
        seconds = (at if not lane.live else sample.heartbeat / 1000) - sample.stuck_since
        if seconds >= REMARKABLE:
            return Wait(round(seconds, 1), "at_least")
    if sample.rates is None or sample.rates[0] <= 0:
        return None
    return Wait(round((lane.waiting or lane.waiting_bulk) / sample.rates[0], 3), "about")


def _row(glance: Glance, sample: _Sample, at: float) -> Row:
    lane, condition = glance.lane, glance.condition
    rates = sample.rates or (None, None, None)
    reading = _reading(condition)
    return Row(
        gateway=lane.gateway,
        state=lane.state,
        peers=number(lane.facts.get("peers", "")),
        max_peers=number(lane.facts.get("max_peers", "")),
        waiting=lane.waiting,
        waiting_bulk=lane.waiting_bulk,
        wait=_wait(lane, sample, at),
        created_per_second=None if rates[1] is None else round(rates[1], 2),
        deleted_per_second=None if rates[2] is None else round(rates[2], 2),
        rx_per_second=_whole(reading.get("rx_per_second")),
        tx_per_second=_whole(reading.get("tx_per_second")),
        # A writer that ends in good order leaves 0.
        silent_for=lane.silent_for / 1000 if lane.silent_for is not None and sample.heartbeat else None,
        observer_silent_for=None if condition is None else condition.observer_silent_for,
        visible=condition is not None,
        recovered=lane.facts.get("recovered", "") if lane.state == "recovering" else "",
        sweep=_sweep(condition),
        alarms=() if condition is None else condition.alarms,
    )


def _reading(condition: Condition | None) -> Mapping[str, Any]:
    """The observer's last reading; nothing once it is silent: what it told is of another time."""
    if condition is None or condition.observer_silent_for is None:
        return {}
    return condition.reading if condition.observer_silent_for * 1000 <= OBSERVER_LIVE_FOR_MS else {}


def _sweep(condition: Condition | None) -> Mapping[str, Any]:
    if condition is None or not condition.sweep:
        return {}
    return {**condition.sweep, "ago": max(0, condition.now - (_whole(condition.sweep.get("at")) or 0))}


def _whole(told: object) -> int | None:
    return told if isinstance(told, int) and not isinstance(told, bool) else None
