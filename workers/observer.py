"""The composition root of a gateway's observer: ``celery -A peerlane.workers.observer worker`` with PEERLANE_GATEWAY.

The observer reads the device and never writes to it: it asks the writer to remove stale peers and to repair
differences. It has one thread, which reads the counters between tasks, on a timer. It is composed as the writer
(``gateway``): the app makes the service; the worker starts it, ticks it once a second and stops it; the app's tasks are
bound to it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.config.redis.failures import reason
from peerlane.config.settings import Settings
from peerlane.tasks.admission.lanes import close_app
from peerlane.tasks.errors import PeerlaneError, SettingsError
from peerlane.tasks.lane.observer_tasks import register
from peerlane.tasks.values.metrics import encoded
from peerlane.tasks.wire.commit_record import encode
from peerlane.tasks.wire.psk_cipher import cipher_of
from peerlane.workers.dataplane.factory import device_spec, open_plane
from peerlane.workers.host.lock import ObserverLock
from peerlane.workers.host.privileges import confine_gateway
from peerlane.workers.host.pulse import LONG, PULSE
from peerlane.workers.lane.result_backend import CommitBackend
from peerlane.workers.peers.table import Policy
from peerlane.workers.start.takeover import elsewhere
from peerlane.workers.store.redis_checks import away
from peerlane.workers.store.retry import OUTAGE
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep.activity_tracker import ActivityTracker
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.handler import UpkeepHandler
from peerlane.workers.upkeep.reconciler import Reconciler
from peerlane.workers.upkeep.schedule_watchdog import ScheduleWatchdog
from peerlane.workers.upkeep.sweep_policy import Limits
from peerlane.workers.upkeep.sweeper import Sweeper
from peerlane.workers.upkeep.writer_requests import WriterRequests

log = logging.getLogger(__name__)

#: Seconds between two signs of life, at most: a third of the time after which an observer counts as gone.
BEAT_EVERY = 5.0
#: Reading and deciding yields to the writer where both want the processor.
NICENESS = 10
#: Seconds without a tick, and without a request, that show that Redis was away, or this process frozen.
LAPSE = 5.0
#: What the gateway's hash says of where its writer is (peerlane.workers.start.takeover).
HOLDER = ("heartbeat", "holder_host", "holder_lock")


class ObserverService:
    """One gateway's observer: lock, counters, sweeps, reconciliations. The worker starts, ticks and stops it."""

    def __init__(self, settings: Settings, *, redis: Redis | None = None) -> None:
        """Raises SettingsError where the settings cannot make an observer; touches nothing yet.

        ``redis`` is the client of the process' main thread.
        """
        if settings.gateway is None:
            raise SettingsError("PEERLANE_GATEWAY is not set: name the gateway this host serves")
        self.settings = settings
        self.name = settings.gateway
        self.spec, self.pools, self.serves = device_spec(settings)
        self._plane = open_plane(settings)
        self._redis = redis or connect(settings)
        self._client = PeerlaneApp(settings)
        self._lock = ObserverLock(self._plane.lock_name)
        self._counted: ActivityTracker | None = None
        self._clock = ClockMonitor(self._redis, self.name)
        self._handler: UpkeepHandler | None = None
        self._attendance = ScheduleWatchdog(self._redis, self.name)
        #: The writer's epoch that was last seen serving: any other has just come (back). None: begin anew.
        self._epoch: bytes | None = None
        #: Whether a writer has begun to serve, and no sweep was made for that yet.
        self._returned = False
        #: When it last said that it lives, in ms on Redis' clock; and when it last looked, on the monotonic clock.
        self._beat_at = 0
        self._looked_at = float("-inf")
        #: Where the live writer is, if it is not here: then the counters here are another device's.
        self._elsewhere: str | None = None
        self._ticked = self._said = time.monotonic()

    def start(self) -> None:
        """Take the lock; afterwards requests may be consumed.

        Raises:
            LaneHeld: another live observer has this device.
            RedisAway: Redis cannot be used.
            SettingsError: privileges that are not needed could not be given up.
        """
        PULSE.turn(LONG)
        confine_gateway(self.settings.user, on_host=self._plane.on_host)
        self._lock.acquire()
        with suppress(OSError):
            os.nice(NICENESS)
        try:
            self._open()
            self._observe()
            PULSE.serving = True
        except RedisError as error:
            raise away(error) from error

    def _open(self) -> None:
        """Make every part: readers of the device, sweeper, reconciler, handler."""
        counters, view = self._plane.counters, self._plane.view
        if counters is not None and view is not None:
            self._counted = ActivityTracker(self._redis, self.name, counters, view.index)
            self._counted.between = self._live
        errands = WriterRequests(self._client, self.name)
        sweeper = Sweeper(
            redis=self._redis,
            gateway=self.name,
            limits=Limits.of(self.settings),
            clock=self._clock,
            counted=self._counted,
            errands=errands,
        )
        reconciler = Reconciler(
            store=Store(self._redis, self.name, result_ttl=self.settings.result_ttl, cipher=cipher_of(self.settings)),
            policy=Policy(gateway=self.name, public_key="", pools=self.pools, serves=self.serves),
            unknown=self.settings.unknown_peers,
            view=view,
            clock=self._clock,
            errands=errands,
            mtu=self.spec.mtu,
        )
        self._handler = UpkeepHandler(self._redis, self.settings, self._attendance, sweeper, reconciler)
        self._handler.look_for_writer = self._beat

    def _observe(self) -> None:
        """Tell that requests may come."""
        self._clock.look()
        self._beat()
        if self._elsewhere is None:
            facts = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "counters": int(self._counted is not None),
            }
            self._redis.hset(names.observer_key(self.name), mapping=cast("Any", facts))
        self._epoch, self._returned = None, False  # a writer that serves already counts as come back, at the first tick
        observed = "without counters, which only its writer has" if self._counted is None else self._lock.device
        log.info("gateway %s: observed, %s data plane, %s", self.name, self._plane.kind, observed)

    @property
    def paused(self) -> bool:
        """Whether the writer is on another host, whose observer has to take beat's requests."""
        return self._elsewhere is not None

    @property
    def handler(self) -> UpkeepHandler:
        """The handler that carries requests out; available after ``start``."""
        return cast("UpkeepHandler", self._handler)

    def tick(self) -> None:
        """Once a second, between requests: do what is due.

        That is a heartbeat, at once while no writer serves; a reading; a sweep if the writer has come back.
        """
        counted = self._counted
        self._lock.heed()
        if time.monotonic() - max(self._ticked, self.handler.ended) > LAPSE:
            self._epoch = None
        try:
            if self._epoch is None or time.monotonic() - self._looked_at >= BEAT_EVERY:
                self._beat()
            here = self._elsewhere is None
            if here and counted is not None and time.monotonic() - counted.read_at >= self.settings.observe_every:
                self._read(counted)
            if here:
                self._attendance.look(partial(self.handler.every, names.SWEEP), self._beat_at // 1000)
            if here and self._returned:
                self._returned = False
                # Peers may have expired while none could be removed.
                self.handler.by_itself(names.SWEEP)
        except (RedisError, PeerlaneError) as error:
            self._epoch = None
            self._attendance.excused()
            if isinstance(error, RedisError):
                OUTAGE.failed(reason(error))
            else:
                log.warning("gateway %s: not observed just now: %s", self.name, error)
        else:
            OUTAGE.over()
        finally:
            self._ticked = time.monotonic()  # a long reading is no lapse

    def fill(self) -> bool:
        """Does nothing: an observer has no work in slices."""
        return False

    def _read(self, counted: ActivityTracker) -> None:
        PULSE.turn(LONG)
        before = counted.trouble
        now = self._clock.look()
        counted.read(now)
        if counted.trouble is not None and counted.trouble != before:
            log.warning("gateway %s: the counters cannot be read: %s", self.name, counted.trouble)
        self._redis.hset(names.observer_key(self.name), "reading", json.dumps(counted.reading(now)))
        PULSE.turn()

    def _live(self) -> None:
        """Write a heartbeat in the middle of long work."""
        if time.monotonic() - self._said >= BEAT_EVERY and self._elsewhere is None:
            PULSE.turn(LONG)
            self._said = time.monotonic()
            seconds, micros = self._redis.time()
            self._redis.hset(names.observer_key(self.name), "heartbeat", seconds * 1000 + micros // 1000)

    def _beat(self) -> None:
        """Write the heartbeat, and find out whether the writer is on this host and has begun to serve."""
        self._said = time.monotonic()
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.hmget(names.gateway_key(self.name), "epoch", "phase", *HOLDER)
        (seconds, micros), (epoch, phase, *holder) = cast(
            "tuple[tuple[int, int], list[bytes | None]]", tuple(pipe.execute())
        )
        now = seconds * 1000 + micros // 1000
        self._looked_at = time.monotonic()
        self._place(now, holder)
        if self._elsewhere is not None:
            return
        measured = self.handler.measurements
        measured.began_ms = measured.began_ms or now
        fields = {"heartbeat": now, "metrics": encoded(measured.document(self._counted))}
        self._redis.hset(names.observer_key(self.name), mapping=cast("Any", fields))
        self._beat_at = now
        if phase == b"serving" and epoch != self._epoch:
            self._epoch, self._returned = epoch, True

    def _place(self, now: int, holder: Sequence[bytes | None]) -> None:
        """Find out whether the writer is on this host. Without counters that does not matter."""
        if self._counted is None:
            return
        facts = {name: value.decode(errors="replace") for name, value in zip(HOLDER, holder, strict=True) if value}
        before, self._elsewhere = self._elsewhere, elsewhere(facts, self._lock.device, now)
        self.handler.elsewhere = self._elsewhere
        if self._elsewhere != before:
            sentence = f"has its writer on {self._elsewhere}: this observer does nothing meanwhile; end it"
            log.warning("gateway %s: %s", self.name, sentence if self._elsewhere else "has its writer here again")

    def refuse(self, request_id: str, error: PeerlaneError) -> None:
        """Store ``error`` as the outcome of an invalid request."""
        key, record = names.result_key(request_id), encode(request_id, error)
        try:
            if self._redis.set(key, record, nx=True, ex=self.settings.result_ttl):
                self._redis.publish(key, record)
        except RedisError as failure:
            log.warning("request %s: its refusal could not be stored (%s)", request_id, type(failure).__name__)

    def stop(self) -> None:
        """Stop and release everything; operators learn at once that there is no observer."""
        if self._handler is not None:
            with suppress(RedisError):
                self._redis.hset(names.observer_key(self.name), "heartbeat", "0")
        self._plane.close()
        self._lock.release()
        close_app(self._client)
        self._redis.close()


class ObserverApp(PeerlaneApp):
    """The Celery app of a gateway's observer."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings, "observer")

    def make_service(self) -> ObserverService:
        """The observer's service; not started yet."""
        return ObserverService(self.settings, redis=self.shared_redis.client)

    def bind(self, service: ObserverService) -> None:
        """Give this app's tasks and result backend the handler of a started service."""
        cast("CommitBackend", self.backend).gateway = service.name
        register(self, service.handler)


app = ObserverApp()
