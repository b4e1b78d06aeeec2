"""After a start, adds the remaining peers to the device, slice by slice, between requests.

A start serves the lane once the peers are back that were seen last (``recovery``). The others follow, the most
recently seen first. A create or delete for one of them handles it at once (``plan.device_changes``). After an error the
writer recovers: it compares Redis and device again.
"""

from __future__ import annotations

import logging
import time

from peerlane.tasks.errors import KernelError
from peerlane.workers import failpoints
from peerlane.workers.peers.plan import as_set_peer
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)

#: Peers of one slice: one message to the kernel, some 2 ms. A request waits for one at most.
SLICE = 32
#: Seconds without a request after which slices are twice as long: as many peers as a message to the kernel holds.
QUIET_AFTER = 1.0


class Filling:
    """Adds one writer's remaining peers. Belongs to the writer's thread."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        #: When this writer began to add, on the monotonic clock, and how many there were. None: nothing is coming.
        self._began: tuple[float, int] | None = None
        #: How many requests had been answered when that number last changed, and when that was.
        self._answered, self._asked_at = 0, 0.0

    def step(self) -> int:
        """Add one slice; returns how many peers remain. Also 0 if nothing may be changed now."""
        writer = self._writer
        coming = writer.table.coming
        if writer.fenced or writer.recovery_needed is not None:
            self._began = None
            return 0
        if self._began is None and coming:
            self._asked_at = time.monotonic()
            self._began = self._asked_at, len(coming)
        keys = coming.pop(self._slice())
        try:
            peers = map(writer.table.peers.by_raw_key, keys)
            writer.plane.apply([as_set_peer(peer) for peer in peers if peer is not None])
            coming.added(keys)
            failpoints.reach("between_fillings")
        except Exception as error:
            # It is not known which peers of the slice are on the device: all is compared anew.
            if isinstance(error, KernelError):
                log.warning("gateway %s: peers could not be added: %s", writer.policy.gateway, error)
            else:
                log.exception("gateway %s: adding peers failed in an unforeseen way", writer.policy.gateway)
            writer.recovery_needed = "peers could not be added"
            self._began = None
            return 0
        if not coming and self._began is not None:
            began, count = self._began
            took = time.monotonic() - began
            log.info("gateway %s: all peers are on the device: %d more in %.1f s", writer.policy.gateway, count, took)
            self._began = None
        return len(coming)

    def _slice(self) -> int:
        """How many peers to add now."""
        now = time.monotonic()
        if self._answered != self._writer.answered:
            self._answered, self._asked_at = self._writer.answered, now
        return SLICE if now - self._asked_at < QUIET_AFTER else 2 * SLICE
