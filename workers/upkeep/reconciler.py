"""Compares device and Redis twice; the writer repairs what differs both times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peerlane.config import names
from peerlane.tasks.errors import Conflict, Draining, Invalid, PeerlaneError, PoolExhausted
from peerlane.tasks.status.alarms import clear_alarm, raise_alarm
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.upkeep import ReconcileGateway
from peerlane.workers import failpoints
from peerlane.workers.dataplane import DeviceView
from peerlane.workers.peers.drift import MANY_UNKNOWN, Unknown, counted
from peerlane.workers.peers.table import Policy
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.comparison import BothSides, Comparison
from peerlane.workers.upkeep.writer_requests import GoOn, WriterRequests

log = logging.getLogger(__name__)

#: Seconds between the two looks: far longer than a request is between device and Redis.
PAUSE = 1.0
#: Keys, or routes, per request.
SLICE = 64
#: Differences that a report lists; it counts the rest.
LISTED = 10_000

UNKNOWN_ALARM = "unknown_peers"
#: The alarm of a device whose key, port or MTU was changed, or which was down or lacked a route.
DEVICE_ALARM = "device"


@dataclass(kw_only=True)
class Reconciler:
    """Reconciles one gateway. Raises redis.RedisError if Redis is away, KernelError if the device cannot be read."""

    store: Store
    policy: Policy
    #: What becomes of peers that only the device knows.
    unknown: Unknown
    #: None where the device is in its writer's memory.
    view: DeviceView | None
    clock: ClockMonitor
    errands: WriterRequests
    #: What the settings ask for; None: the kernel's choice.
    mtu: int | None = None

    def reconcile(self, wish: ReconcileGateway, go_on: GoOn) -> dict[str, Any]:
        """Compare and repair now; returns the report."""
        began = time.monotonic()
        report: dict[str, Any] = {"outcome": "reconciled", "gateway": self.policy.gateway, "found": {}, "mended": {}}
        if self.view is None:
            note = "the device is in its writer's memory, where only the writer sees it"
            return {**report, "outcome": "skipped", "note": note}
        sides = BothSides(self.store, self.policy, self.view, go_on, self.mtu)
        suspects = sides.suspects()
        look = suspects.comparison
        if suspects:
            time.sleep(PAUSE)  # a request in flight has changed one side and not yet the other
            failpoints.reach("between_looks")
            look = sides.in_full(suspects)
        counts = counted(look.differences) | ({"device": len(look.device)} if look.device else {})
        held_back = self._held_back(look)
        if look.coming:
            report["recovering"] = look.coming
        report |= {"found": counts, "held_back": held_back, "device": list(look.device), "peers": look.peers}
        if wish.dry_run:
            report["outcome"] = "listed"
            report["drifts"] = [{"kind": drift.kind, "subject": drift.subject} for drift in look.differences[:LISTED]]
            report["unlisted"] = max(0, len(look.differences) - LISTED)
        else:
            self._alarms(look, held_back)
            report |= self._mend(look, held_back, go_on)
        if counts:
            log.warning("gateway %s: device and Redis differed: %s", self.policy.gateway, counts)
        return {**report, "seconds": round(time.monotonic() - began, 3)}

    def _held_back(self, look: Comparison) -> str | None:
        """Why unknown peers are left alone; None if they are not."""
        unknown = sum(drift.kind == "unknown" for drift in look.differences)
        if not unknown or self.unknown == "adopt":
            return None
        if self.unknown == "keep":
            return "PEERLANE_UNKNOWN_PEERS is keep"
        if unknown > MANY_UNKNOWN and unknown * 2 > look.peers:
            return (
                f"Redis knows {look.peers - unknown:,} of the {look.peers:,} peers on the device: has it lost its "
                "data? Nothing is removed. Bring Redis' data back, or take the peers over with `gateway import --live`"
            )
        return None

    def _alarms(self, look: Comparison, held_back: str | None) -> None:
        if look.device:
            message = f"{'; '.join(look.device)}: somebody else has changed it; it is set back"
            raise_alarm(self.store.redis, self.policy.gateway, DEVICE_ALARM, message, now=self.clock.look())
        else:
            clear_alarm(self.store.redis, self.policy.gateway, DEVICE_ALARM)
        if held_back is not None and self.unknown == "remove":
            raise_alarm(self.store.redis, self.policy.gateway, UNKNOWN_ALARM, held_back, now=self.clock.look())
        elif not any(drift.kind == "unknown" for drift in look.differences):
            clear_alarm(self.store.redis, self.policy.gateway, UNKNOWN_ALARM)

    def _mend(self, look: Comparison, held_back: str | None, go_on: GoOn) -> dict[str, Any]:
        mended: dict[str, int] = {}
        strangers = held_back is None and self.unknown == "remove"
        keys = [
            d.subject for d in look.differences if not d.kind.endswith("_route") and (d.kind != "unknown" or strangers)
        ]
        routes = [d.subject for d in look.differences if d.kind.endswith("_route")]
        report: dict[str, Any] = {}

        def wanted() -> bool:
            return go_on({"mended": sum(mended.values()), "of": len(keys) + len(routes)})

        try:
            if self.unknown == "adopt" and any(drift.kind == "unknown" for drift in look.differences):
                report = self._adopt(mended, wanted)
            requests = _requests(keys, routes, device=bool(look.device))
            for result in self.errands.run(names.MEND_PEERS, requests, wanted):
                for kind, count in result["mended"].items():
                    mended[kind] = mended.get(kind, 0) + int(count)
                if not wanted():
                    break
        except PeerlaneError as error:
            log.warning("gateway %s: the reconciliation stops: %s", self.policy.gateway, error)
            return {**report, "mended": mended, "stopped": error.as_dict()}
        return {**report, "mended": {kind: count for kind, count in mended.items() if count}}

    def _adopt(self, mended: dict[str, int], wanted: Callable[[], bool]) -> dict[str, Any]:
        """Adopt the peers that only the device has; if one cannot be adopted, none is, and the reasons are returned.

        That is no reason to leave the rest unmended. Raises PeerlaneError where the writer could not be asked.
        """
        try:
            report: dict[str, Any] = {}
            for result in self.errands.run(names.IMPORT_PEERS, [{"live": True, "leave_out": True}], wanted):
                mended["adopted"] = int(result["created"])
                report |= self._left_out([str(peer["public_key"]) for peer in result["left_out"]])
            return report
        except (Conflict, Invalid, PoolExhausted, Draining) as refusal:
            log.warning("gateway %s: unknown peers were not adopted: %s", self.policy.gateway, refusal)
            return {"not_adopted": refusal.as_dict()}

    def _left_out(self, keys: Sequence[str]) -> dict[str, Any]:
        """Report the peers that could not be adopted, and raise an alarm until the device has no unknown peer."""
        if not keys:
            return {}
        named = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
        message = f"{len(keys)} peers on the device have no allowed IPs and were not adopted: {named}"
        raise_alarm(self.store.redis, self.policy.gateway, UNKNOWN_ALARM, message, now=self.clock.look())
        return {"left_out": list(keys)}


def _requests(keys: Sequence[str], routes: Sequence[str], *, device: bool) -> Iterator[dict[str, Any]]:
    """Requests in a safe order of repair: the device itself, removals, additions, routes."""
    if device:
        yield {"device": True}
    for start in range(0, len(keys), SLICE):
        yield {"keys": list(keys[start : start + SLICE])}
    some: list[Prefix] = []
    for route in sorted(map(Prefix.parse, routes)):
        # A request's prefixes do not overlap; stray routes may.
        if len(some) == SLICE or any(other.overlaps(route) for other in some):
            yield {"routes": [str(prefix) for prefix in some]}
            some = []
        some.append(route)
    if some:
        yield {"routes": [str(prefix) for prefix in some]}
