"""Beat's schedule: one sweep and one reconciliation for each registered gateway, once per time slot.

Slots are counted on Redis' clock, and a slot's task has the same id from every beat; the gateway's observer claims each
slot once. So any number of beats may run, and one that was away sends nothing twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import BaseSchedule, schedstate
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError, RedisError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.config.redis.failures import reason

log = logging.getLogger(__name__)

#: Seconds between two looks at which gateways there are.
REFRESH = 5.0
#: Messages waiting for an observer beyond which it gets no more: it is away, and would find them out of date.
ENOUGH = 4

#: Task name → (the act in a slot's id, the gateway's fact and the setting of the same name that say how often).
ACTS: Mapping[str, tuple[str, str]] = {
    names.SWEEP: ("sweep", "sweep_every"),
    names.RECONCILE: ("reconcile", "reconcile_every"),
}


@dataclass(frozen=True, slots=True)
class Due:
    """A sweep or reconciliation of one gateway, to be asked for once per slot."""

    gateway: str
    task: str
    act: str
    every: float

    def slot(self, now: float) -> int:
        """The slot that ``now`` lies in."""
        return int(now // self.every)

    @property
    def name(self) -> str:
        """What beat's log calls it."""
        return f"{self.act} {self.gateway}"


class Slots(BaseSchedule):
    """A schedule entry as Celery shows it. The scheduler itself decides when it is due."""

    def __init__(self, every: float, app: Any = None) -> None:
        super().__init__(app=app)
        self.every = every

    def __repr__(self) -> str:
        return f"<once in every {self.every:g} s>"

    def is_due(self, last_run_at: Any) -> schedstate:
        """Required by Celery; GatewayScheduler does not call it."""
        return schedstate(is_due=False, next=self.every)


class GatewayScheduler(Scheduler):  # pyright: ignore[reportUntypedBaseClass] - celery-types knows no beat in full
    """Beat's scheduler: asks each gateway's observer for what is due. Survives outages of Redis; keeps no file."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._sent: dict[str, int] = {}
        self._due: list[Due] = []
        self._known: frozenset[str] = frozenset()
        self._refreshed = float("-inf")
        self._lead = 0.0
        self._away = False
        super().__init__(*args, **options)
        application = cast("PeerlaneApp", self.app)
        self._settings = application.settings
        self._redis = connect(self._settings)

    @property
    def info(self) -> str:
        """Beat shows it at its start."""
        return f"    . gateways -> {names.GATEWAYS_KEY}"

    def setup_schedule(self) -> None:
        """Start with an empty schedule: gateways and intervals are read from Redis, not from a file or the settings."""
        self.schedule: dict[str, Any] = {}

    def tick(self, *_args: Any, **_options: Any) -> float:
        """Ask for everything whose slot has begun. Returns the seconds until the next slot or the next look."""
        try:
            if time.monotonic() - self._refreshed >= REFRESH:
                self._refresh()
            now = time.monotonic() + self._lead
            begun = [due for due in self._due if self._sent.get(due.name) != due.slot(now)]
            for due, waiting in zip(begun, self._waiting(begun), strict=True):
                if waiting < ENOUGH:
                    self._send(due, due.slot(now))
        except (RedisError, OperationalError, OSError, RuntimeError) as error:
            if not self._away:
                log.warning("Redis is away (%s); asking again", reason(error))
            self._away = True
            return 1.0
        if self._away:
            self._away = False
            log.warning("Redis is back")
        self._sign_of_life()
        nearest = min((due.every - now % due.every for due in self._due), default=REFRESH)
        return max(0.01, min(nearest, REFRESH))

    def _waiting(self, begun: Sequence[Due]) -> list[int]:
        """How many messages wait for the observer of each."""
        if not begun:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for due in begun:
            pipe.llen(names.observer_queue(due.gateway))
        return pipe.execute()

    def _sign_of_life(self) -> None:
        """Touch the beat file; health checks read from its age when beat last worked."""
        if self._settings.beat_file is not None:
            with suppress(OSError):  # its age shows that it is not written any more
                self._settings.beat_file.touch()

    def _send(self, due: Due, slot: int) -> None:
        log.info("%s: asked for, slot %d", due.name, slot)
        self.app.send_task(
            due.task,
            kwargs={"gateway": due.gateway, "slot": slot},
            task_id=names.slot_id(due.gateway, due.act, slot),
            expires=due.every,
            ignore_result=True,
        )
        self._sent[due.name] = slot

    def _refresh(self) -> None:
        """Read the gateways, their intervals, and how far Redis' clock is ahead of ours."""
        gateways = names.well_formed(cast("set[bytes]", self._redis.smembers(names.GATEWAYS_KEY)))
        self._take_back(self._known.difference(gateways))
        self._known = frozenset(gateways)
        pipe = self._redis.pipeline(transaction=False)
        fields = [fact for _, fact in ACTS.values()]
        for gateway in gateways:
            pipe.hmget(names.gateway_key(gateway), fields)
        pipe.time()
        *answers, (seconds, micros) = pipe.execute()
        self._lead = seconds + micros / 1e6 - time.monotonic()
        self._due = [
            Due(gateway, task, act, interval(raw, getattr(self._settings, fact)))
            for gateway, raws in zip(gateways, answers, strict=True)
            for (task, (act, fact)), raw in zip(ACTS.items(), raws, strict=True)
        ]
        known = self._refreshed > 0
        self._refreshed = time.monotonic()
        if not known or set(self.schedule) != {due.name for due in self._due}:
            self.schedule = {
                due.name: ScheduleEntry(name=due.name, task=due.task, schedule=Slots(due.every, self.app), app=self.app)
                for due in self._due
            }
            log.info("%d gateways are looked after", len(gateways))

    def _take_back(self, removed: frozenset[str]) -> None:
        """Delete requests sent to removed gateways since their removal: no process consumes them."""
        for gateway in removed:
            with suppress(NoPermissionError):  # a user printed by an earlier version: it would only lie there
                self._redis.unlink(names.observer_queue(gateway))
            self._sent = {name: slot for name, slot in self._sent.items() if not name.endswith(f" {gateway}")}

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
        super().close()


def interval(raw: bytes | None, default: float) -> float:
    """Seconds between two slots: the interval in the gateway's hash, if it is valid."""
    try:
        seconds = float(raw or 0)
    except ValueError:
        return default
    return seconds if 1 <= seconds <= 86_400 else default
