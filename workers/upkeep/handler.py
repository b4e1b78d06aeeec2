"""Handles requests to the observer: checks them, claims their time slots, carries them out, reports."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery.schedule import ACTS, interval
from peerlane.config.redis.failures import reason
from peerlane.config.settings import Settings
from peerlane.tasks.errors import Invalid, StorageError, TimedOut
from peerlane.tasks.wire.model import parse
from peerlane.tasks.wire.upkeep import ReconcileGateway, SweepGateway
from peerlane.workers.host.pulse import LONG, PULSE
from peerlane.workers.upkeep.measurements import UpkeepMeasurements
from peerlane.workers.upkeep.reconciler import Reconciler
from peerlane.workers.upkeep.schedule_watchdog import ScheduleWatchdog
from peerlane.workers.upkeep.sweeper import Sweeper

log = logging.getLogger(__name__)

#: Seconds between two looks at whether a running sweep is to go on.
BREATH = 1.0


class UpkeepHandler:
    """Handles an observer's requests (``tasks.wire.upkeep``)."""

    def __init__(
        self, redis: Redis, settings: Settings, attendance: ScheduleWatchdog, sweeper: Sweeper, reconciler: Reconciler
    ) -> None:
        self._redis, self._gateway = redis, sweeper.gateway
        self._every = {names.SWEEP: settings.sweep_every, names.RECONCILE: settings.reconcile_every}
        self._attendance, self._sweeper, self._reconciler = attendance, sweeper, reconciler
        # Of the request that is being carried out.
        self._request_id, self._deadline, self._act = "", 0, ""
        self._breathed = 0.0
        #: Where the gateway's writer is, if it is not here; then nothing is done. ``look_for_writer`` sets it.
        self.elsewhere: str | None = None
        self.look_for_writer: Callable[[], object] = lambda: None
        self.measurements = UpkeepMeasurements()
        #: When the last request was through, on the monotonic clock.
        self.ended = 0.0

    def carry_out(self, task: str, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Carry a request out; returns its report.

        Raises:
            PeerlaneError: why nothing was done.
        """
        wish = parse(SweepGateway if task == names.SWEEP else ReconcileGateway, arguments)
        if wish.gateway != self._gateway:
            raise Invalid(f"this observer looks after the gateway {self._gateway}, not {wish.gateway}")
        PULSE.turn(LONG)
        self._act = "sweep" if task == names.SWEEP else "reconcile"
        self._request_id, self._deadline, self._breathed = request_id, wish.deadline or 0, time.monotonic()
        try:
            self.look_for_writer()
            if self.elsewhere is not None:
                note = f"the gateway's writer is on {self.elsewhere}, where this observer is not"
                return {"outcome": "skipped", "gateway": self._gateway, "note": note}
            if wish.slot is not None:
                self._redis.hset(names.observer_key(self._gateway), "asked_at", self._redis.time()[0])
            if wish.slot is not None and task == names.SWEEP:
                self._attendance.asked()
            if wish.slot is not None and (why := self._unclaimable(task, wish.slot)):
                return {"outcome": "skipped", "gateway": self._gateway, "note": why}
            if request_id and not self._wanted():
                raise TimedOut("its caller had stopped waiting before it began")
            report = (
                self._sweeper.sweep(wish, self._go_on)
                if isinstance(wish, SweepGateway)
                else self._reconciler.reconcile(wish, self._go_on)
            )
            if not wish.dry_run:
                self.measurements.ended(task, report)
                self._tell({name: value for name, value in report.items() if name != "gateway"})
        except RedisError as error:
            raise StorageError(f"Redis cannot be used: {reason(error)}") from error
        finally:
            self.ended = time.monotonic()
            PULSE.turn()
        return report

    def by_itself(self, task: str) -> None:
        """Carry a task out now, without a request."""
        report = self.carry_out(task, "", {"gateway": self._gateway})
        log.info("gateway %s: %s by itself, as the writer or Redis has come back: %s", self._gateway, self._act, report)

    def every(self, task: str) -> float:
        """Seconds between two slots, from the gateway's hash, as beat counts them."""
        _, fact = ACTS[task]
        stored = cast("bytes | None", self._redis.hget(names.gateway_key(self._gateway), fact))
        return interval(stored, self._every[task])

    def _unclaimable(self, task: str, slot: int) -> str | None:
        """Why a slot's task is skipped; None if this call has claimed the slot."""
        every = self.every(task)
        seconds, _ = self._redis.time()
        if abs(seconds / every - slot) > 2:
            return "its time slot is long over"
        life = max(60, int(every * 4))
        claimed = self._redis.set(names.slot_key(self._gateway, self._act, slot), self._request_id, nx=True, ex=life)
        return None if claimed else "its time slot was taken care of"

    def _go_on(self, state: dict[str, Any]) -> bool:
        """Once a second: store the progress and a heartbeat; returns whether the request is still wanted."""
        if time.monotonic() - self._breathed < BREATH:
            return True
        self._breathed = time.monotonic()
        PULSE.turn(LONG)
        seconds, micros = self._redis.time()
        self._redis.hset(names.observer_key(self._gateway), "heartbeat", seconds * 1000 + micros // 1000)
        if state:
            self._tell({"outcome": "running", **state})
        return not self._request_id or self._wanted()

    def _wanted(self) -> bool:
        seconds, micros = self._redis.time()
        late = bool(self._deadline) and seconds * 1000 + micros // 1000 > self._deadline
        return not late and not self._redis.exists(names.result_key(self._request_id))

    def _tell(self, fields: Mapping[str, Any]) -> None:
        seconds, _ = self._redis.time()
        self._redis.hset(names.observer_key(self._gateway), self._act, json.dumps({"at": seconds, **fields}))
