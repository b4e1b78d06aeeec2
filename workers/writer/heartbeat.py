"""The writer's only other thread: writes the heartbeat, and notices a newer writer or a restart of Redis."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from redis import Redis
from redis.exceptions import RedisError

from peerlane.config.redis.client import connect
from peerlane.config.settings import Settings
from peerlane.tasks.values.metrics import encoded
from peerlane.workers.host.pulse import PULSE
from peerlane.workers.store.redis_checks import memory
from peerlane.workers.store.retry import Outage
from peerlane.workers.store.store import Store
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)

#: Seconds between two beats; and while the lane is not served, so that callers soon know when it is, and after one that
#: has failed.
EVERY, OVERDUE = 1.0, 0.2
#: Beats of which one asks for the epoch's number too; the others for its random part alone.
WHOLE_OF = 5
#: Seconds between two looks at the server's memory and run, where the connection to it has lasted.
LOOK_EVERY = 10.0
#: Seconds after which unchanged measurements are stored again.
TELL_AGAIN = 30.0
#: Seconds for which the lane was not turned after which something may wait in it.
TURNED_WITHIN = 1.5


def run_of(redis: Redis) -> str:
    """The run id of the Redis server, which changes with each restart."""
    return str(redis.info("server").get("run_id"))


class Heartbeat(threading.Thread):
    """The heartbeat's thread. Touches neither table nor device."""

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
        self._redis = connect(settings, connected=self._on_connected)
        self._run = run
        self._began_ms = store.clock.now_ms()
        self._full = Outage("Nothing can be asked for", "Nothing can be asked for still", "Requests can be made again")
        self._ended = threading.Event()
        self._telling = threading.Lock()
        self._beats = 0
        #: How the last beat failed, if that was nothing that Redis said.
        self._unforeseen: type[Exception] | None = None
        #: When the server was looked at last, on the monotonic clock; the measurements stored last, and when.
        self._looked_at = self._measured_at = float("-inf")
        self._measured = ""

    def enter(self, phase: str) -> None:
        """Write the phase now, from the writer's thread; no concurrent heartbeat overwrites it by an older one."""
        with self._telling:
            self.phase = phase
            PULSE.serving = phase == "serving"
            PULSE.turn()
            coming, within = len(self._writer.table.coming), int(PULSE.within * 1000)
            began = self._began_ms // 1000
            self._store.heartbeat(phase=phase, recovering=coming, began=began, idle_ms=0, idle_may_ms=within)

    def run(self) -> None:
        wait = EVERY
        while not self._ended.wait(wait):
            failed_before, wait = wait == OVERDUE, EVERY
            try:
                self._beat(self._redis)
            except RedisError as error:
                log.debug("no heartbeat: %s", type(error).__name__)
                wait = EVERY if failed_before else OVERDUE
                self._measured_at = float("-inf")
            except Exception as error:
                # Without this thread the lane would count as down until the process ends.
                if type(error) is not self._unforeseen:
                    log.exception("the heartbeat failed in an unforeseen way")
                self._unforeseen = type(error)
            else:
                self._unforeseen = None
            if PULSE.idle() > PULSE.within:
                wait = OVERDUE

    def _beat(self, redis: Redis) -> None:
        with self._telling:
            writer = self._writer
            progress = {"phase": self.phase, "loaded": self.loaded, "recovered": self.recovered}
            progress |= {"peers": len(writer.table.peers), "recovering": len(writer.table.coming)}
            done = {name: getattr(writer, name) for name in ("answered", "refused", "created", "deleted")}
            turned = {"idle_ms": int(PULSE.idle() * 1000), "idle_may_ms": int(PULSE.within * 1000)}
            brief = self._beats % WHOLE_OF != 0
            metrics = self._metrics()
            began = time.monotonic()
            state = self._store.heartbeat(
                redis, metrics=metrics, brief=brief, **progress, **done, **turned, **writer.pace.heartbeat_fields()
            )
            writer.measurements.round_trip = round(time.monotonic() - began, 6)
        self._beats += 1
        if state is None:
            self.replaced = True
        else:
            self.state = state
        if time.monotonic() - self._looked_at >= LOOK_EVERY:
            self._look_at_server(redis)

    def _metrics(self) -> str | None:
        """The measurements to store; None if they have not changed and no unread message can wait in the lane."""
        measured = self._writer.measurements.document(self._began_ms)
        seen = encoded(measured | {"round_trip": None})
        now = time.monotonic()
        idle = seen == self._measured and PULSE.idle() < TURNED_WITHIN and self.phase == "serving"
        if idle and now - self._measured_at < TELL_AGAIN:
            return None
        self._measured, self._measured_at = seen, now
        return encoded(measured)

    def _on_connected(self) -> None:
        """It may be another server, or the same after a restart."""
        self._looked_at = self._measured_at = float("-inf")

    def _look_at_server(self, redis: Redis) -> None:
        server: dict[str, object] = redis.info("server", "memory")
        self._looked_at = time.monotonic()
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
        """End the thread, and tell callers at once that the writer has stopped."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout=3)
        try:
            stopped_at = self._store.clock.now_ms() // 1000
            self._store.heartbeat(self._redis, heartbeat="0", phase="stopped", stopped_at=stopped_at)
        except RedisError:
            log.debug("Redis is away; callers will notice the silence")
