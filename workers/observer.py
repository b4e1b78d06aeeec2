"""The composition root of a gateway's observer: ``celery -A peerlane.workers.observer worker`` with PEERLANE_GATEWAY.

It reads the device and never writes to it: what it finds stale or wrong it has the writer remove or mend. One process,
one thread: counters are read between tasks, on a timer.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp
from peerlane.config.redis import connect, reason
from peerlane.config.schedule import ACTS, interval
from peerlane.config.settings import Settings
from peerlane.tasks.errors import Invalid, PeerlaneError, SettingsError, StorageError, TimedOut
from peerlane.tasks.lane.admission import close_app
from peerlane.tasks.lane.observer_tasks import register
from peerlane.tasks.wire.model import parse
from peerlane.tasks.wire.outcome import encode
from peerlane.tasks.wire.psk_cipher import sealing_of
from peerlane.tasks.wire.upkeep import ReconcileGateway, SweepGateway
from peerlane.workers.dataplane.factory import device_spec, memory_device
from peerlane.workers.dataplane.reader import KernelCounters, KernelView, device_index
from peerlane.workers.host.lock import ObserverLock
from peerlane.workers.host.privileges import confine_gateway
from peerlane.workers.lane.result_backend import CommitBackend
from peerlane.workers.peers.plan import Policy
from peerlane.workers.store.redis_checks import away
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep.activity_tracker import Clock, Counted
from peerlane.workers.upkeep.reconciler import Reconciler
from peerlane.workers.upkeep.schedule_watchdog import Attendance
from peerlane.workers.upkeep.sweep_policy import Limits
from peerlane.workers.upkeep.sweeper import Sweeper
from peerlane.workers.upkeep.writer_requests import Errands
from peerlane.workers.writer.takeover import elsewhere

log = logging.getLogger(__name__)

#: Reading and deciding yields to the writer where both want the processor.
NICENESS = 10
#: Seconds without a tick, and without a request, that show that Redis was away, or this process frozen.
LAPSE = 5.0
#: Seconds between two looks at whether a running sweep is to go on.
BREATH = 1.0
#: What the gateway's hash says of where its writer is (peerlane.workers.writer.takeover).
HOLDER = ("heartbeat", "holder_host", "holder_lock")


class ObserverService:
    """One gateway's observer with all it needs: lock, counters, sweeps, reconciliations. Driven by the worker."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError where the settings cannot make an observer; touches nothing yet."""
        if settings.gateway is None:
            raise SettingsError("PEERLANE_GATEWAY is not set: name the gateway this host serves")
        self.settings = settings
        self.name = settings.gateway
        self.spec, self.pools, self.serves = device_spec(settings)
        self._redis = connect(settings)
        self._client = PeerlaneApp(settings)
        self._lock: ObserverLock | None = None
        self._sources: list[KernelCounters | KernelView] = []
        self._counted: Counted | None = None
        self._clock = Clock(self._redis, self.name)
        self._asks: Asks | None = None
        self._attendance = Attendance(self._redis, self.name)
        #: The writer's epoch that was last seen serving: any other has just come (back). None: begin anew.
        self._epoch: bytes | None = None
        #: When it last said that it lives, in ms on Redis' clock.
        self._beat_at = 0
        #: Where the live writer is, if it is not here: then the counters here are another device's.
        self._elsewhere: str | None = None
        self._ticked = time.monotonic()

    def start(self) -> None:
        """Take the lock, learn what was known; afterwards requests may be consumed.

        Raises:
            LaneHeld: another live observer has this device.
            RedisAway: Redis cannot be used.
        """
        memory = self.settings.dataplane == "memory"
        confine_gateway(self.settings)
        lock = ObserverLock(memory_device(self.settings) if memory else self.spec.interface)
        lock.acquire()
        self._lock = lock
        with suppress(OSError):
            os.nice(NICENESS)
        interface = self.spec.interface
        view: KernelView | None = None
        if not memory:
            counters, view = KernelCounters(interface), KernelView(interface)
            self._sources = [counters, view]
            self._counted = Counted(self._redis, self.name, counters, partial(device_index, interface))
        errands = Errands(self._client, self.name)
        self._asks = Asks(
            self._redis,
            self.settings,
            self._attendance,
            Sweeper(
                redis=self._redis,
                gateway=self.name,
                limits=Limits.of(self.settings),
                clock=self._clock,
                counted=self._counted,
                errands=errands,
            ),
            Reconciler(
                store=Store(
                    self._redis, self.name, result_ttl=self.settings.result_ttl, sealing=sealing_of(self.settings)
                ),
                policy=Policy(gateway=self.name, public_key="", pools=self.pools, serves=self.serves),
                unknown=self.settings.unknown_peers,
                view=view,
                clock=self._clock,
                errands=errands,
            ),
        )
        try:
            if self._counted is not None:
                self._counted.load()
            self._clock.look()
            self._beat()
            if self._elsewhere is None:
                facts = {"pid": os.getpid(), "host": socket.gethostname(), "counters": int(not memory)}
                self._redis.hset(names.observer_key(self.name), mapping=cast("Any", facts))
            self._epoch = None  # a writer that serves already has come back as well, as far as this observer knows
        except RedisError as error:
            raise away(error) from error
        log.info("gateway %s: observed, %s", self.name, "no counters in memory" if memory else f"device {interface}")

    @property
    def asks(self) -> Asks:
        """What carries requests out; there once the service has started."""
        return cast("Asks", self._asks)

    def tick(self) -> None:
        """Once a second, between requests: a sign of life; a reading if it is time; a sweep for a writer come back."""
        counted = self._counted
        if time.monotonic() - max(self._ticked, self.asks.ended) > LAPSE:
            self._epoch = None
        self._ticked = time.monotonic()
        try:
            returned = self._beat()
            here = self._elsewhere is None
            if here and counted is not None and time.monotonic() - counted.read_at >= self.settings.observe_every:
                self._read(counted)
            if here:
                self._attendance.look(partial(self.asks.every, names.SWEEP), self._beat_at // 1000)
            if here and returned:
                # Peers may have expired while nobody could remove them.
                self.asks.by_itself(names.SWEEP)
        except (RedisError, PeerlaneError) as error:
            self._epoch = None
            self._attendance.excused()
            log.warning("gateway %s: not observed just now: %s", self.name, _told(error))

    def _read(self, counted: Counted) -> None:
        before = counted.trouble
        now = self._clock.look()
        counted.read(now)
        counted.write()
        if counted.trouble is not None and counted.trouble != before:
            log.warning("gateway %s: the counters cannot be read: %s", self.name, counted.trouble)
        self._redis.hset(names.observer_key(self.name), "reading", json.dumps(counted.reading(now)))

    def _beat(self) -> bool:
        """Say that the observer lives; whether a writer has begun to serve since the last time."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.hmget(names.gateway_key(self.name), "epoch", "phase", *HOLDER)
        (seconds, micros), (epoch, phase, *holder) = cast(
            "tuple[tuple[int, int], list[bytes | None]]", tuple(pipe.execute())
        )
        now = seconds * 1000 + micros // 1000
        self._place(now, holder)
        if self._elsewhere is not None:
            return False
        self._redis.hset(names.observer_key(self.name), "heartbeat", now)
        self._beat_at = now
        if phase != b"serving" or epoch == self._epoch:
            return False
        self._epoch = epoch
        return True

    def _place(self, now: int, holder: Sequence[bytes | None]) -> None:
        """Notice whether the writer is here. Without counters it does not matter where it is."""
        if self._counted is None:
            return
        facts = {name: value.decode(errors="replace") for name, value in zip(HOLDER, holder, strict=True) if value}
        before, self._elsewhere = self._elsewhere, elsewhere(facts, self.spec.interface, now)
        self.asks.elsewhere = self._elsewhere
        if self._elsewhere != before:
            told = f"has its writer on {self._elsewhere}: this observer does nothing meanwhile; end it"
            log.warning("gateway %s: %s", self.name, told if self._elsewhere else "has its writer here again")

    def refuse(self, request_id: str, error: PeerlaneError) -> None:
        """Store ``error`` as the outcome of a request that is none."""
        key, record = names.result_key(request_id), encode(request_id, error)
        try:
            if self._redis.set(key, record, nx=True, ex=self.settings.result_ttl):
                self._redis.publish(key, record)
        except RedisError as failure:
            log.warning("request %s: its refusal could not be stored (%s)", request_id, type(failure).__name__)

    def stop(self) -> None:
        """Let go; operators learn at once that nobody observes."""
        if self._asks is not None:
            with suppress(RedisError):
                self._redis.hset(names.observer_key(self.name), "heartbeat", "0")
        for source in self._sources:
            source.close()
        if self._lock is not None:
            self._lock.release()
        close_app(self._client)
        self._redis.close()


class Asks:
    """Requests to the observer: checked, claimed once per slot, carried out, reported (``tasks.wire.upkeep``)."""

    def __init__(
        self, redis: Redis, settings: Settings, attendance: Attendance, sweeper: Sweeper, reconciler: Reconciler
    ) -> None:
        self._redis, self._gateway = redis, sweeper.gateway
        self._every = {names.SWEEP: settings.sweep_every, names.RECONCILE: settings.reconcile_every}
        self._attendance, self._sweeper, self._reconciler = attendance, sweeper, reconciler
        # Of the request that is being carried out.
        self._request_id, self._deadline, self._act = "", 0, ""
        self._breathed = 0.0
        #: Where the gateway's writer is, if it is not here; then nothing is done.
        self.elsewhere: str | None = None
        #: When the last request was through, on the monotonic clock.
        self.ended = 0.0

    def carry_out(self, task: str, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the request wishes; its report.

        Raises:
            PeerlaneError: why nothing was done.
        """
        wish = parse(SweepGateway if task == names.SWEEP else ReconcileGateway, arguments)
        if wish.gateway != self._gateway:
            raise Invalid(f"this observer looks after the gateway {self._gateway}, not {wish.gateway}")
        self._act = "sweep" if task == names.SWEEP else "reconcile"
        self._request_id, self._deadline, self._breathed = request_id, wish.deadline or 0, time.monotonic()
        if self.elsewhere is not None:
            note = f"the gateway's writer is on {self.elsewhere}, where this observer is not"
            return {"outcome": "skipped", "gateway": self._gateway, "note": note}
        try:
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
                self._tell({name: value for name, value in report.items() if name != "gateway"})
        except RedisError as error:
            raise StorageError(f"Redis cannot be used: {reason(error)}") from error
        finally:
            self.ended = time.monotonic()
        return report

    def by_itself(self, task: str) -> None:
        """Do it now, asked for by nobody."""
        report = self.carry_out(task, "", {"gateway": self._gateway})
        log.info("gateway %s: %s, asked for by nobody: %s", self._gateway, self._act, report)

    def every(self, task: str) -> float:
        """Seconds between two slots, as beat counts them: by what the gateway's hash says, whatever was told here."""
        _, fact = ACTS[task]
        told = cast("bytes | None", self._redis.hget(names.gateway_key(self._gateway), fact))
        return interval(told, self._every[task])

    def _unclaimable(self, task: str, slot: int) -> str | None:
        """Why a slot's task is not to be carried out; None if this claims it."""
        every = self.every(task)
        seconds, _ = self._redis.time()
        if abs(seconds / every - slot) > 2:
            return "its time slot is long over"
        life = max(60, int(every * 4))
        claimed = self._redis.set(names.slot_key(self._gateway, self._act, slot), self._request_id, nx=True, ex=life)
        return None if claimed else "its time slot was taken care of"

    def _go_on(self, state: dict[str, Any]) -> bool:
        """Hear how far it is: tell it, give a sign of life; whether it is still wanted. Once a second."""
        if time.monotonic() - self._breathed < BREATH:
            return True
        self._breathed = time.monotonic()
        seconds, micros = self._redis.time()
        self._redis.hset(names.observer_key(self._gateway), "heartbeat", seconds * 1000 + micros // 1000)
        self._tell({"outcome": "running", **state})
        return not self._request_id or self._wanted()

    def _wanted(self) -> bool:
        seconds, micros = self._redis.time()
        late = bool(self._deadline) and seconds * 1000 + micros // 1000 > self._deadline
        return not late and not self._redis.exists(names.result_key(self._request_id))

    def _tell(self, what: Mapping[str, Any]) -> None:
        seconds, _ = self._redis.time()
        self._redis.hset(names.observer_key(self._gateway), self._act, json.dumps({"at": seconds, **what}))


class ObserverApp(PeerlaneApp):
    """The Celery app of an observer."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings, "observer")

    def make_service(self) -> ObserverService:
        """The observer's service; not started yet."""
        return ObserverService(self.settings)

    def bind(self, service: ObserverService) -> None:
        """Give this app its tasks and its result backend a started service."""
        cast("CommitBackend", self.backend).gateway = service.name
        register(self, service.asks)


def _told(error: Exception) -> str:
    """An error for the log; Redis' own may quote what was sent."""
    return str(error) if isinstance(error, PeerlaneError) else f"Redis is away ({reason(error)})"


app = ObserverApp()
