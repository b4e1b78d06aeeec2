"""The composition root of a gateway's writer: ``celery -A peerlane.workers.gateway worker`` with PEERLANE_GATEWAY.

The observer is composed in the same way (``observer``): the app makes the service; the worker starts it, ticks it once
a second and stops it; the app's tasks are bound to it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import cast

from celery.worker import state as worker_state
from redis import Redis
from redis.exceptions import RedisError

from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.hosts import endpoint_doubt
from peerlane.config.redis.client import connect
from peerlane.config.redis.failures import reason
from peerlane.config.settings import Settings
from peerlane.tasks.errors import Fenced, PeerlaneError, SettingsError
from peerlane.tasks.lane.tasks import register
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.commit_record import encode
from peerlane.tasks.wire.psk_cipher import cipher_of
from peerlane.workers.dataplane import DeviceFacts
from peerlane.workers.dataplane.factory import device_spec, open_plane
from peerlane.workers.host.lock import WriterLock
from peerlane.workers.host.privileges import confine_gateway
from peerlane.workers.host.pulse import LONG, PULSE
from peerlane.workers.lane.group import LaneWriter
from peerlane.workers.lane.result_backend import CommitBackend
from peerlane.workers.lane.unacked import keys_in_hand, take_back
from peerlane.workers.peers.table import Policy
from peerlane.workers.start.recovery import Progress, Recovered
from peerlane.workers.start.registration import (
    gateway_labels,
    own_endpoint,
    registered_key,
    registration,
    tell_of_kept,
    tell_of_new_key,
)
from peerlane.workers.start.takeover import await_predecessor, holder
from peerlane.workers.store.journal import RedoFile
from peerlane.workers.store.redis_checks import away, check_durability
from peerlane.workers.store.store import Store
from peerlane.workers.writer.filling import Filling
from peerlane.workers.writer.heartbeat import Heartbeat, run_of
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)

#: Seconds between two lines of the log about how far a start is.
TELL_EVERY = 5.0


class GatewayService:
    """One gateway's writer with its lock, epoch, device and heartbeat. The worker starts, ticks and stops it."""

    def __init__(self, settings: Settings, *, redis: Redis | None = None, progress: Progress | None = None) -> None:
        """Raises SettingsError where the settings cannot make a gateway; touches nothing yet.

        ``redis`` is the client of the process' main thread.
        """
        if settings.gateway is None:
            raise SettingsError("PEERLANE_GATEWAY is not set: name the gateway this host serves")
        self.settings = settings
        self.name = settings.gateway
        self.spec, self.pools, self.serves = device_spec(settings)
        self.labels = gateway_labels(settings)
        self.paused = False
        #: What clients dial; known once the service has started.
        self.endpoint = settings.endpoint or ""
        self._plane = open_plane(settings)
        self._redis = redis or connect(settings)
        self._progress = progress
        self._lock = WriterLock(self._plane.lock_name)
        self._opened: Store | None = None
        self._writer: Writer | None = None
        self._heartbeat: Heartbeat | None = None
        self._filling: Filling | None = None
        #: When the progress of a start was last logged, on the monotonic clock.
        self._logged_at = time.monotonic()

    def start(self) -> None:
        """Take the lock, open an epoch, recover the device; afterwards the lane may be consumed.

        Raises:
            LaneHeld: another live writer has this gateway or its device.
            Fenced: another writer has started meanwhile.
            RedisAway: Redis cannot be reached, or does not let this user in.
            StorageError: Redis is not set up to keep what it confirms.
            KernelError: the device could not be made, read or changed.
            SettingsError: privileges that are not needed could not be given up; the key is not the one that clients
                were given; the pools cannot be served on this host; its name makes no endpoint.
        """
        PULSE.turn(LONG)
        confine_gateway(self.settings.user, on_host=self._plane.on_host)
        self.endpoint = own_endpoint(self.settings)
        if (doubt := endpoint_doubt(self.endpoint)) is not None:
            log.warning("gateway %s: clients may not reach its endpoint: %s", self.name, doubt)
        self._plane.require()
        self._lock.acquire()
        try:
            self._open()
            self._serve()
        except RedisError as error:
            raise away(error) from error

    def _open(self) -> None:
        """Make every part: the hashes, the device, the writer, its heartbeat."""
        settings = self.settings
        store = self._opened = Store(self._redis, self.name, result_ttl=settings.result_ttl, cipher=cipher_of(settings))
        check_durability(self._redis, require=settings.require_durable, stated=settings.redis_appendfsync)
        store.prepare()
        await_predecessor(store, self._lock.device)
        run = run_of(self._redis)  # before anything is loaded: a restart while that goes on is noticed
        known = registered_key(store)
        if known is not None and not settings.accept_new_key:
            self.spec = replace(self.spec, public_key=known)
        store.sequence.start(RedoFile(settings.state_directory, self.name))
        device = self._plane.writer.open(self.spec)
        if known not in (None, "", device.public_key):
            tell_of_new_key(store, str(known), device.public_key)
        policy = Policy(
            gateway=self.name,
            public_key=device.public_key,
            pools=self.pools,
            serves=self.serves,
            own_addresses=tuple(Prefix.host(pool.version, address) for address, pool in self.spec.addresses),
            max_peers=settings.max_peers,
        )
        self._writer = Writer(
            policy,
            store,
            self._plane.writer,
            {"gateway_public_key": device.public_key, "endpoint": self.endpoint},
            unknown=settings.unknown_peers,
            spec=self.spec,
            fair_label=settings.fair_label,
            shutdown_requested=lambda: (
                worker_state.should_stop is not None or worker_state.should_terminate is not None
            ),
        )
        self._filling = Filling(self._writer)
        self._register(device, policy)
        self._heartbeat = Heartbeat(self.settings, store, self._writer, run=run)

    def _register(self, device: DeviceFacts, policy: Policy) -> None:
        facts: dict[str, str | float] = {
            **registration(self.settings, self.labels, self.pools, self.serves, policy.own_addresses),
            "public_key": device.public_key,
            "endpoint": self.endpoint,
            "listen_port": device.listen_port,
            "dataplane": self._plane.kind,
            "epoch": self.store.epoch,
            "phase": "recovering",
            **holder(self._lock.device),
        }
        if not self.store.register(facts):
            raise Fenced("a newer writer has taken over before this one had started")

    def _serve(self) -> None:
        """Make the device equal to Redis, and tell that requests may come."""
        heartbeat = self.heartbeat
        heartbeat.start()
        done = self.writer.recover(self._on_progress, self._on_loading, keys_in_hand(self._redis, self.name))
        tell_of_kept(self.store, len(done.kept))
        if (taken := take_back(self._redis, self.name)) > 0:
            log.warning("gateway %s: %d requests that an earlier writer had taken are next", self.name, taken)
        mended = ", ".join(f"{count} {kind}" for kind, count in sorted(done.mended.items())) or "nothing to mend"
        log.info(
            "gateway %s: epoch %d, %s data plane, %d peers, %s",
            *(self.name, self.store.epoch, self._plane.kind, len(done.table.peers), mended),
        )
        self._tell_of_coming(done)
        heartbeat.enter("serving")  # last, so that the log tells of the start before the lane counts as served

    @property
    def store(self) -> Store:
        """The gateway's hashes; available after ``start``."""
        return cast("Store", self._opened)

    @property
    def writer(self) -> Writer:
        """The writer that carries requests out; available after ``start``."""
        return cast("Writer", self._writer)

    @property
    def heartbeat(self) -> Heartbeat:
        """The heartbeat's thread; available after ``start``."""
        return cast("Heartbeat", self._heartbeat)

    def tick(self) -> None:
        """Once a second, between requests, in the writer's thread: stop when replaced, recover when needed."""
        writer, heartbeat = self.writer, self.heartbeat
        self._lock.heed()
        if writer.fenced or heartbeat.replaced:
            writer.fenced = True
            log.critical("gateway %s: a newer writer has taken over; this one stops", self.name)
            worker_state.should_stop = Fenced.exit_code
            return
        writer.state = heartbeat.state
        if self.store.sequence.behind:
            self._catch_up()
        writer.measurements.pools = {str(pool.prefix): (pool.in_use, pool.size) for pool in writer.table.pools}
        if heartbeat.redis_restarted:
            heartbeat.redis_restarted = False
            writer.recovery_needed = "Redis has restarted"
        if writer.recovery_needed is None and not self._plane.writer.alive():
            writer.recovery_needed = "the device is gone"
        if writer.recovery_needed is not None:
            self._recover(writer, heartbeat)
        elif heartbeat.phase != "serving":  # a request has recovered what a tick could not
            heartbeat.phase = "serving"

    def _catch_up(self) -> None:
        """Repeat the commits that the heartbeat has found to be lost."""
        try:
            PULSE.turn(LONG)  # it may be thousands of commits
            self.store.sequence.catch_up()
        except RedisError as error:
            log.error("gateway %s: Redis is still behind: %s", self.name, reason(error))

    def _recover(self, writer: Writer, heartbeat: Heartbeat) -> None:
        log.warning("gateway %s: recovering, because of %s", self.name, writer.recovery_needed)
        try:
            PULSE.turn(LONG)
            heartbeat.phase = "recovering"  # callers are refused at once instead of waiting behind this
            done = writer.recover(self._on_progress, self._on_loading)
            tell_of_kept(self.store, len(done.kept))
            heartbeat.phase = "serving"
            log.warning("gateway %s: recovered, %s", self.name, dict(done.mended) or "nothing to mend")
            self._tell_of_coming(done)
        except (PeerlaneError, RedisError) as error:
            log.error("gateway %s: not recovered yet: %s", self.name, error)

    def _on_progress(self, done: int, total: int) -> None:
        PULSE.turn(LONG)
        self.heartbeat.recovered = f"{done}/{total}"
        if self._progress is not None:
            self._progress(done, total)

    def _on_loading(self, done: int, total: int) -> None:
        PULSE.turn(LONG)
        self.heartbeat.loaded = f"{done}/{total}"
        if time.monotonic() - self._logged_at >= TELL_EVERY:
            self._logged_at = time.monotonic()
            log.info("gateway %s: %d of %d peers are read from Redis", self.name, done, total)

    def _tell_of_coming(self, done: Recovered) -> None:
        if left := len(done.table.coming):
            log.warning("gateway %s: %d peers are still to be added, while the lane is served", self.name, left)

    def fill(self) -> bool:
        """Add some of the remaining peers, between requests, in the writer's thread; returns whether there are more."""
        return not self.heartbeat.replaced and cast("Filling", self._filling).step() > 0

    def refuse(self, request_id: str, error: PeerlaneError) -> None:
        """Store ``error`` as the outcome of an invalid request."""
        try:
            self.store.commit(request_id, 0, encode(request_id, error))
        except RedisError as failure:
            log.warning("request %s: its refusal could not be stored (%s)", request_id, type(failure).__name__)

    def stop(self) -> None:
        """Stop and release everything; callers learn at once that the lane is not served."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._plane.close()
        self._lock.release()


class GatewayApp(PeerlaneApp):
    """The Celery app of a gateway's writer."""

    def __init__(self, settings: Settings | None = None, *, progress: Progress | None = None) -> None:
        super().__init__(settings, "writer")
        self._progress = progress

    def make_service(self) -> GatewayService:
        """The writer's service; not started yet."""
        return GatewayService(self.settings, redis=self.shared_redis.client, progress=self._progress)

    def bind(self, service: GatewayService) -> None:
        """Give this app's tasks and result backend the writer of a started service."""
        writer = service.writer
        cast("CommitBackend", self.backend).gateway = service.name
        for task in register(self).values():
            task.Strategy = "peerlane.workers.lane.strategy:LaneStrategy"
            task.writer = LaneWriter(writer)


app = GatewayApp()
