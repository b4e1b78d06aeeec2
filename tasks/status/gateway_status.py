"""How a gateway is, beyond its lane: alarms, its observer, its last sweep and reconciliation, how far a recovery is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp
from peerlane.tasks.errors import OutcomeUnknown
from peerlane.tasks.lane.admission import lanes_of, number
from peerlane.tasks.status.alarms import Alarm, read_alarms

#: Milliseconds without a sign of life after which an observer counts as gone; a long reading keeps it silent a while.
OBSERVER_LIVE_FOR_MS = 15_000


@dataclass(frozen=True, slots=True)
class Condition:
    """One look. The mappings are what the observer has told last, with ``at`` in seconds on Redis' clock, or empty."""

    gateway: str
    alarms: tuple[Alarm, ...]
    #: Seconds since the observer's last sign of life; None if there is none.
    observer_silent_for: float | None
    reading: Mapping[str, Any]
    sweep: Mapping[str, Any]
    reconcile: Mapping[str, Any]
    #: ``done/total`` changes of the writer's last recovery; empty where there was nothing to bring back.
    recovered: str
    #: Redis' clock, in seconds.
    now: int

    def as_dict(self) -> dict[str, Any]:
        """For programs; stands beside a gateway's own facts."""
        return {
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "observer_silent_for": self.observer_silent_for,
            "reading": dict(self.reading),
            "sweep": dict(self.sweep),
            "reconcile": dict(self.reconcile),
            "recovered": self.recovered,
        }


def read_condition(app: PeerlaneApp, gateway: str) -> Condition:
    """Look at a gateway's condition.

    Raises:
        OutcomeUnknown: Redis could not be reached.
    """
    redis = lanes_of(app).redis
    try:
        alarms = read_alarms(redis, gateway)
        raw = cast("dict[bytes, bytes]", redis.hgetall(names.observer_key(gateway)))
        recovered = cast("bytes | None", redis.hget(names.gateway_key(gateway), "recovered"))
        seconds, micros = redis.time()
    except RedisError as error:
        raise OutcomeUnknown(f"Redis could not be reached ({type(error).__name__})") from error
    return condition_of(gateway, alarms, raw, recovered or b"", now=seconds + micros / 1e6)


def condition_of(
    gateway: str, alarms: Sequence[Alarm], raw: Mapping[bytes, bytes], recovered: bytes, *, now: float
) -> Condition:
    """From what the observer's hash holds; ``now`` is in seconds on Redis' clock."""
    told = {name.decode(errors="replace"): value for name, value in raw.items()}
    beat = number(told.get("heartbeat", b"").decode(errors="replace"))
    return Condition(
        gateway=gateway,
        alarms=tuple(alarms),
        observer_silent_for=max(0.0, now - beat / 1000) if beat else None,
        reading=_parsed(told.get("reading")),
        sweep=_parsed(told.get("sweep")),
        reconcile=_parsed(told.get("reconcile")),
        recovered=recovered.decode(errors="replace"),
        now=int(now),
    )


def _parsed(record: bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(record or b"{}")
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
