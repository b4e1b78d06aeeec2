"""The writer's one side thread: tells the fleet that the writer lives, and hears what it has to know meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.redis import connect
from peerlane.config.settings import Settings
from peerlane.tasks.values.metrics import encoded
from peerlane.workers.host.outage import Outage
from peerlane.workers.host.pulse import PULSE
from peerlane.workers.store.redis_checks import memory
from peerlane.workers.store.store import Store
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)

#: Seconds between two beats; and while the lane is not served, so that callers soon know when it is.
EVERY, OVERDUE = 1.0, 0.2


def run_of(redis: Redis) -> str:
    """Which run of the Redis server this is; another one after each restart."""
    return str(redis.info("server").get("run_id"))


class Heartbeat(threading.Thread):
    """The one side thread: tells that the writer lives, listens for its being replaced. Touches no table, no device."""

    def __init__(self, settings: Settings, store: Store, writer: Writer, *, run: str | None = None) -> None:
        """``run`` is the run of Redis that the writer loads its peers from (``run_of``), asked before it does."""
        super().__init__(name="heartbeat", daemon=True)
        self.phase = "recovering"
        self.state = "active"
        self.replaced = False
        self.redis_restarted = False
        #: How far a recovery has come: records read / to read, changes made / to make.
        self.loaded = self.recovered = ""
        self._store, self._writer = store, writer
        self._redis = connect(settings)
        self._run = run
        self._began_ms = store.clock.now_ms()
        self._full = Outage("Nothing can be asked for", "Nothing can be asked for still", "Requests can be made again")
        self._ended = threading.Event()
        self._telling = threading.Lock()

    def enter(self, phase: str) -> None:
        """Tell the phase now, from the writer's thread. No beat that was on its way tells an older one afterwards."""
        with self._telling:
            self.phase = phase
            PULSE.serving = phase == "serving"
            PULSE.turn()
            coming, within = len(self._writer.table.coming), int(PULSE.within * 1000)
            began = self._began_ms // 1000
            self._store.heartbeat(phase=phase, recovering=coming, began=began, idle_ms=0, idle_may_ms=within)

    def run(self) -> None:
        while not self._ended.wait(OVERDUE if PULSE.idle() > PULSE.within else EVERY):
            try:
                self._beat(self._redis)
            except RedisError as error:
                log.debug("no heartbeat: %s", type(error).__name__)

    def _beat(self, redis: Redis) -> None:
        with self._telling:
            writer = self._writer
            told = {"phase": self.phase, "loaded": self.loaded, "recovered": self.recovered}
            told |= {"peers": len(writer.table.peers), "recovering": len(writer.table.coming)}
            done = {name: getattr(writer, name) for name in ("answered", "refused", "created", "deleted")}
            measured = writer.measurements
            began = time.monotonic()
            metrics = encoded(measured.document(self._began_ms))
            turned = {"idle_ms": int(PULSE.idle() * 1000), "idle_may_ms": int(PULSE.within * 1000)}
            if not self._store.heartbeat(redis, metrics=metrics, **told, **done, **turned, **writer.pace.told()):
                self.replaced = True
            measured.round_trip = round(time.monotonic() - began, 6)
        found = cast("bytes | None", redis.hget(names.gateway_key(self._store.gateway), "state"))
        self.state = found.decode(errors="replace") if found else "active"
        server: dict[str, object] = redis.info("server", "memory")
        self._look_at_memory(server)
        run = str(server.get("run_id"))
        if self._run is not None and run != self._run:
            self.redis_restarted = True  # it may have come back without its last second
        self._run = run

    def _look_at_memory(self, server: Mapping[str, object]) -> None:
        scarce = memory(server)
        if scarce is not None and scarce.fatal:
            self._full.failed(scarce.sentence)
        else:
            self._full.over()

    def stop(self) -> None:
        """End the thread and tell callers at once."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=3)
        try:
            stopped_at = self._store.clock.now_ms() // 1000
            self._store.heartbeat(self._redis, heartbeat="0", phase="stopped", stopped_at=stopped_at)
        except RedisError:
            log.debug("Redis is away; callers will notice the silence")
