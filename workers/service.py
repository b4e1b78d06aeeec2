"""One gateway's writer with all it needs, from lock to lane: what Celery's worker starts, ticks and stops."""

from __future__ import annotations

import logging

from celery.worker import state as worker_state
from redis.exceptions import RedisError

from peerlane.config.redis import connect
from peerlane.config.settings import Settings
from peerlane.tasks.errors import PeerlaneError, SettingsError
from peerlane.tasks.status.alarms import raise_alarm
from peerlane.tasks.wire.outcome import encode
from peerlane.tasks.wire.prefix import Prefix
from peerlane.tasks.wire.psk_cipher import sealing_of
from peerlane.workers.dataplane import DataPlane
from peerlane.workers.dataplane.factory import device_spec, memory_device, open_plane
from peerlane.workers.host.lock import WriterLock
from peerlane.workers.host.privileges import confine_gateway
from peerlane.workers.lane.unacked import take_back
from peerlane.workers.lane.worker import EXIT_REPLACED
from peerlane.workers.peers.plan import Policy
from peerlane.workers.store.redis_checks import away, check_durability
from peerlane.workers.store.store import Store
from peerlane.workers.writer.heartbeat import Heartbeat, run_of
from peerlane.workers.writer.recovery import Progress, Recovered
from peerlane.workers.writer.registration import gateway_labels, own_name, registration
from peerlane.workers.writer.takeover import await_predecessor, holder
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)


class GatewayService:
    """One gateway's writer with all it needs: lock, epoch, device, heartbeat. Started and stopped by the worker."""

    def __init__(self, settings: Settings, *, progress: Progress | None = None) -> None:
        """Raises SettingsError where the settings cannot make a gateway; touches nothing yet."""
        if settings.gateway is None:
            raise SettingsError("PEERLANE_GATEWAY is not set: name the gateway this host serves")
        self.settings = settings
        self.name = settings.gateway
        self.spec, self.pools, self.serves = device_spec(settings)
        self.labels = gateway_labels(settings)
        self.paused = False
        self.writer: Writer | None = None
        self._progress = progress
        self._plane: DataPlane | None = None
        self._lock: WriterLock | None = None
        self._store: Store | None = None
        self._beating: Heartbeat | None = None

    def start(self) -> None:
        """Lock, epoch, device, recovery; afterwards the lane may be consumed.

        Raises:
            LaneHeld: another live writer has this gateway or its device.
            RedisAway: Redis cannot be reached, or does not let this user in.
            StorageError: Redis is not set up to keep what it confirms.
            KernelError: the device could not be made, read or changed.
            SettingsError: privileges that are not needed could not be given up.
        """
        confine_gateway(self.settings)
        kind, self._plane = open_plane(self.settings)
        lock = WriterLock(self.spec.interface if kind == "kernel" else memory_device(self.settings))
        lock.acquire()
        self._lock = lock
        redis = connect(self.settings)
        store = self._store = Store(
            redis, self.name, result_ttl=self.settings.result_ttl, sealing=sealing_of(self.settings)
        )
        try:
            check_durability(redis, require=self.settings.require_durable, stated=self.settings.redis_appendfsync)
            store.prepare()
            await_predecessor(store, lock.device)
            run = run_of(redis)  # before anything is loaded: a restart while that goes on is noticed
            store.open_epoch()
            facts = self._plane.open(self.spec)
            endpoint = self.settings.endpoint or f"{own_name()}:{facts.listen_port}"
            policy = Policy(
                gateway=self.name,
                public_key=facts.public_key,
                pools=self.pools,
                serves=self.serves,
                own_addresses=tuple(Prefix.host(pool.version, address) for address, pool in self.spec.addresses),
                max_peers=self.settings.max_peers,
            )
            writer = self.writer = Writer(
                policy,
                store,
                self._plane,
                {"gateway_public_key": facts.public_key, "endpoint": endpoint},
                unknown=self.settings.unknown_peers,
                spec=self.spec,
                fair_label=self.settings.fair_label,
                stopping=lambda: worker_state.should_stop is not None or worker_state.should_terminate is not None,
            )
            store.register(
                {
                    **registration(self.settings, self.labels, self.pools, self.serves, policy.own_addresses),
                    "public_key": facts.public_key,
                    "endpoint": endpoint,
                    "listen_port": facts.listen_port,
                    "dataplane": kind,
                    "epoch": store.epoch,
                    "phase": "recovering",
                    **holder(lock.device),
                }
            )
            self._beating = Heartbeat(self.settings, store, writer, run=run)
            self._beating.start()
            done = writer.recover(self._on_progress)
            self._tell_of_kept(done)
            if (taken := take_back(redis, self.name)) > 0:
                log.warning("gateway %s: %d requests that an earlier writer had taken are next", self.name, taken)
            self._beating.enter("serving")
        except RedisError as error:
            raise away(error) from error
        mended = ", ".join(f"{count} {kind}" for kind, count in sorted(done.mended.items())) or "nothing to mend"
        log.info(
            "gateway %s: epoch %d, %s data plane, %d peers, %s",
            *(self.name, store.epoch, kind, len(done.table.peers), mended),
        )

    def tick(self) -> None:
        """Once a second, between requests, in the writer's thread: stop when replaced, recover when needed."""
        writer, beating = self.writer, self._beating
        if writer is None or beating is None:
            return
        if writer.fenced or beating.replaced:
            writer.fenced = True
            log.critical("gateway %s: a newer writer has taken over; this one stops", self.name)
            worker_state.should_stop = EXIT_REPLACED
            return
        writer.state = beating.state
        if beating.redis_restarted:
            beating.redis_restarted = False
            writer.recovery_needed = "Redis has restarted"
        if writer.recovery_needed is None and self._plane is not None and not self._plane.alive():
            writer.recovery_needed = "the device is gone"
        if writer.recovery_needed is not None:
            log.warning("gateway %s: recovering, because of %s", self.name, writer.recovery_needed)
            try:
                beating.phase = "recovering"  # callers are refused at once instead of waiting behind this
                done = writer.recover(self._on_progress)
                self._tell_of_kept(done)
                beating.phase = "serving"
                log.warning("gateway %s: recovered, %s", self.name, dict(done.mended) or "nothing to mend")
            except (PeerlaneError, RedisError) as error:
                log.error("gateway %s: not recovered yet: %s", self.name, error)

    def _on_progress(self, done: int, total: int) -> None:
        if self._beating is not None:
            self._beating.recovered = f"{done}/{total}"
        if self._progress is not None:
            self._progress(done, total)

    def _tell_of_kept(self, done: Recovered) -> None:
        """An alarm for peers that a start has left on the device though Redis does not know them."""
        if done.kept and self._store is not None:
            message = (
                f"{len(done.kept)} peers on the device are unknown to Redis and were kept: import them "
                f"(peerlane gateway import {self.name} --live), or delete them"
            )
            store = self._store
            raise_alarm(store.redis, self.name, "unknown_peers", message, now=store.clock.now_ms() // 1000)

    def refuse(self, request_id: str, error: PeerlaneError) -> None:
        """Store ``error`` as the outcome of a request that is none."""
        if self._store is not None:
            try:
                self._store.commit(request_id, 0, encode(request_id, error))
            except RedisError as failure:
                log.warning("request %s: its refusal could not be stored (%s)", request_id, type(failure).__name__)

    def stop(self) -> None:
        """Let go: callers learn at once that nobody serves the lane."""
        if self._beating is not None:
            self._beating.stop()
        if self._plane is not None:
            self._plane.close()
        if self._lock is not None:
            self._lock.release()
