"""The composition root of a gateway: settings in, a running writer out; ``celery -A workers.gateway worker``."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
from itertools import pairwise
from typing import cast

from celery.worker import state as worker_state
from redis import Redis
from redis.exceptions import RedisError

from config import names
from config.celery_app import PeerlaneApp
from config.settings import Settings
from tasks.alarms import raise_alarm
from tasks.connection import connect, reason
from tasks.definitions import register
from tasks.errors import KernelError, LaneHeld, PeerlaneError, SettingsError, StorageError
from tasks.lanes import LIVE_FOR_MS, number
from tasks.prefix import Prefix
from tasks.results import encode
from tasks.sealing import sealing_of
from workers.dataplane import DataPlane, DeviceSpec
from workers.dataplane.memory import MemoryDataPlane
from workers.durability import check_durability
from workers.lane import EXIT_REPLACED, LaneWriter
from workers.lock import WriterLock, namespace
from workers.plan import Policy
from workers.privileges import confine_gateway
from workers.recover import Progress, Recovered
from workers.results import CommitBackend
from workers.store import Store
from workers.writer import Writer

log = logging.getLogger(__name__)

VERSION = "0.1.0"
HEARTBEAT = 1.0


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
            StorageError: Redis cannot be reached, or is not set up to keep what it confirms.
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
            check_durability(redis, require=self.settings.require_durable)
            store.prepare()
            await_predecessor(store, lock.device)
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
                    "public_key": facts.public_key,
                    "endpoint": endpoint,
                    "listen_port": facts.listen_port,
                    "interface": self.spec.interface,
                    "dataplane": kind,
                    "pools": json.dumps([str(p) for p in self.pools]),
                    "serves": json.dumps([str(p) for p in self.serves]),
                    "addresses": json.dumps([address.address for address in policy.own_addresses]),
                    "region": self.settings.region or "",
                    "labels": json.dumps(self.labels),
                    "dns": json.dumps(list(self.settings.dns)),
                    "client_allowed_ips": json.dumps(
                        list(self.settings.client_allowed_ips) or [str(p) for p in (*self.pools, *self.serves)]
                    ),
                    "mtu": self.settings.mtu or 0,
                    "max_peers": self.settings.max_peers,
                    "lane_cap": self.settings.lane_cap,
                    "fair_label": self.settings.fair_label or "",
                    "fair_share": self.settings.fair_share,
                    "sweep_every": self.settings.sweep_every,
                    "reconcile_every": self.settings.reconcile_every,
                    "version": VERSION,
                    "epoch": store.epoch,
                    "phase": "recovering",
                    **holder(lock.device),
                }
            )
            self._beating = Heartbeat(self.settings, store, writer)
            self._beating.start()
            done = writer.recover(self._on_progress)
            self._tell_of_kept(done)
            self._beating.enter("serving")
        except RedisError as error:
            raise StorageError(f"Redis cannot be used: {reason(error)}") from error
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


class Heartbeat(threading.Thread):
    """The one side thread: tells that the writer lives, listens for its being replaced. Touches no table, no device."""

    def __init__(self, settings: Settings, store: Store, writer: Writer) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.phase = "recovering"
        self.state = "active"
        self.replaced = False
        self.redis_restarted = False
        #: How far a recovery has come: changes made / to make.
        self.recovered = ""
        self._store, self._writer = store, writer
        self._redis = connect(settings)
        self._run_id: str | None = None
        self._ended = threading.Event()
        self._telling = threading.Lock()

    def enter(self, phase: str) -> None:
        """Tell the phase now, from the writer's thread. No beat that was on its way tells an older one afterwards."""
        with self._telling:
            self.phase = phase
            self._store.heartbeat(phase=phase)

    def run(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                self._beat(self._redis)
            except RedisError as error:
                log.debug("no heartbeat: %s", type(error).__name__)

    def _beat(self, redis: Redis) -> None:
        with self._telling:
            told = {"phase": self.phase, "recovered": self.recovered, "peers": len(self._writer.table.peers)}
            if not self._store.heartbeat(redis, **told):
                self.replaced = True
        found = cast("bytes | None", redis.hget(names.gateway_key(self._store.gateway), "state"))
        self.state = found.decode(errors="replace") if found else "active"
        run_id = str(redis.info("server").get("run_id"))
        if self._run_id is not None and run_id != self._run_id:
            self.redis_restarted = True  # it may have come back without its last second
        self._run_id = run_id

    def stop(self) -> None:
        """End the thread and tell callers at once."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=3)
        try:
            self._store.heartbeat(self._redis, heartbeat="0", phase="stopped")
        except RedisError:
            log.debug("Redis is away; callers will notice the silence")


def device_spec(settings: Settings) -> tuple[DeviceSpec, tuple[Prefix, ...], tuple[Prefix, ...]]:
    """The device, the pools and what else is served.

    Raises:
        SettingsError: a prefix is malformed, or two overlap.
    """

    def parsed(name: str, texts: tuple[str, ...]) -> tuple[Prefix, ...]:
        found: list[Prefix] = []
        for text in texts:
            try:
                found.append(Prefix.parse(text))
            except ValueError as error:
                raise SettingsError(f"PEERLANE_{name}: {text} {error}") from None
        return tuple(found)

    pools, serves = parsed("POOLS", settings.pools), parsed("SERVES", settings.serves)
    areas = sorted((*pools, *serves))
    for one, other in pairwise(areas):
        if one.overlaps(other):
            raise SettingsError(f"PEERLANE_POOLS and PEERLANE_SERVES: {one} and {other} overlap")
    for pool in pools:
        if pool.bits - pool.length < 2:
            raise SettingsError(f"PEERLANE_POOLS: {pool} has no room for peers")
    spec = DeviceSpec(
        interface=settings.interface,
        private_key_file=settings.key_file,
        listen_port=settings.listen_port,
        addresses=tuple((pool.network + 1, pool) for pool in pools),
        routes=pools,
        mtu=settings.mtu,
    )
    return spec, pools, serves


def gateway_labels(settings: Settings) -> dict[str, str]:
    """What clients choose this gateway by.

    Raises:
        SettingsError: one is no ``key=value``, or a key is given twice.
    """
    pairs = [text.partition("=") for text in settings.labels]
    found = {name.strip(): value.strip() for name, _, value in pairs}
    if len(found) < len(pairs) or not all(name.strip() and equals for name, equals, _ in pairs):
        raise SettingsError("PEERLANE_LABELS: labels are key=value, each key once")
    return found


def memory_device(settings: Settings) -> str:
    """What the lock calls a device in memory: namesakes of two fleets on one host do not disturb each other."""
    fleet = hashlib.sha256(settings.redis_url.get_secret_value().encode()).hexdigest()[:8]
    return f"memory:{settings.gateway}@{fleet}"


def open_plane(settings: Settings) -> tuple[str, DataPlane]:
    """The data plane the settings ask for, and which it is.

    Raises:
        KernelError: the kernel's was asked for and cannot be used here; says why.
    """
    if settings.dataplane == "memory":
        return "memory", MemoryDataPlane()
    # pyroute2 is there on hosts with the extra «gateway» only; a memory gateway does without.
    from workers.dataplane.kernel import KernelDataPlane, kernel_available  # noqa: PLC0415

    missing = kernel_available()
    if missing is None:
        return "kernel", KernelDataPlane()
    raise KernelError(
        f"this host cannot run a gateway: {missing}; PEERLANE_DATAPLANE=memory keeps no tunnel, for tests"
    )


def own_name() -> str:
    """The host name that clients can dial, as far as this host knows."""
    full = socket.getfqdn()
    return full if not full.startswith("localhost") else socket.gethostname()


def holder(device: str) -> dict[str, str | int]:
    """Who this writer is, for a second one to name; ``device`` is what its lock is named after."""
    return {
        "holder_host": socket.gethostname(),
        "holder_pid": os.getpid(),
        "holder_lock": f"{namespace()}/{device}",
    }


def await_predecessor(store: Store, device: str) -> None:
    """Go on once no other writer serves this gateway.

    Where the last one held the lock that this one holds now, it is gone. Elsewhere (another host, namespace or
    device) only the heartbeat tells: one that goes on is a live writer; one that stopped without a word is waited out.

    Raises:
        LaneHeld: another writer lives; says where.
    """
    facts = store.facts()
    beat = facts.get("heartbeat", "0")
    had_this_lock = facts.get("holder_lock") == f"{namespace()}/{device}"
    deadline = time.monotonic() + LIVE_FOR_MS / 1000 + 1
    while not had_this_lock and store.clock.now_ms() - number(beat) < LIVE_FOR_MS:
        time.sleep(0.2)
        facts = store.facts()
        if facts.get("heartbeat") != beat or time.monotonic() > deadline:
            raise LaneHeld(
                f"the gateway {store.gateway} has a live writer: process {facts.get('holder_pid')} on "
                f"{facts.get('holder_host')}"
            )


class GatewayApp(PeerlaneApp):
    """The Celery app of a gateway: its worker is the writer."""

    def __init__(self, settings: Settings | None = None, *, progress: Progress | None = None) -> None:
        super().__init__(settings, "writer")
        self._progress = progress

    def make_service(self) -> GatewayService:
        """The gateway's service; not started yet."""
        return GatewayService(self.settings, progress=self._progress)

    def bind(self, service: GatewayService) -> None:
        """Give this app's tasks and result backend the writer of a started service."""
        writer = cast("Writer", service.writer)
        backend = cast("CommitBackend", self.backend)
        backend.gateway = service.name
        backend.is_settled = lambda request_id: request_id == writer.settled_request
        for task in register(self).values():
            task.Strategy = "workers.lane:lane_strategy"
            task.writer = LaneWriter(writer)


app = GatewayApp()
