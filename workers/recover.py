"""The start of a writer, and of a device that was lost: load the hashes, read the device, make the device equal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from workers.dataplane import DataPlane
from workers.plan import PeerTable, Policy
from workers.reconcile import counted, drifts
from workers.store import Loaded

log = logging.getLogger(__name__)

#: Changes sent to the device between two reports of progress.
BATCH = 256

#: (done, total) changes.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The peer table, and what was found and mended on the way."""

    table: PeerTable
    #: Drift by kind; all of it has been mended.
    mended: Mapping[str, int] = field(default_factory=dict[str, int])


def build_table(policy: Policy, loaded: Loaded) -> PeerTable:
    """The table of what Redis holds. Where two records overlap, the younger is set aside as broken."""
    try:
        table = PeerTable(policy, [*loaded.peers.values(), *loaded.broken.values()])
    except ValueError:
        table = PeerTable(policy)
        oldest_first = sorted(loaded.peers.values(), key=lambda peer: (peer.created_at, peer.public_key))
        for peer in [*oldest_first, *loaded.broken.values()]:
            free = [p for p in peer.allowed_ips if not any(True for _ in table.index.overlapping(p))]
            if len(free) < len(peer.allowed_ips):
                reason = f"the record of peer {peer.public_key} holds addresses that an older peer holds"
                log.error("gateway %s: %s; left as it is", policy.gateway, reason)
                loaded.reasons.setdefault(peer.public_key, reason)
                loaded.broken[peer.public_key] = peer
            table.put(peer.model_copy(update={"allowed_ips": tuple(free)}))
    table.broken.update(loaded.reasons)
    return table


def recover(
    policy: Policy,
    loaded: Loaded,
    plane: DataPlane,
    *,
    unknown: Literal["remove", "keep", "adopt"] = "remove",
    progress: Progress | None = None,
) -> Recovered:
    """Make the device hold exactly what Redis holds, by the smallest changes; untouched peers keep their sessions.

    ``unknown`` says what becomes of peers that only the device knows.

    Raises:
        KernelError: the device could not be read or changed.
    """
    table = build_table(policy, loaded)
    found = drifts(table, plane.peers(), plane.routes(), frozenset(table.broken))
    if unknown == "keep":
        found = [drift for drift in found if drift.kind != "unknown"]
    for start in range(0, len(found), BATCH):
        plane.apply([drift.change for drift in found[start : start + BATCH]])
        if progress is not None:
            progress(min(start + BATCH, len(found)), len(found))
    return Recovered(table, counted(found))
