"""Commits without a client request: adopting unknown peers, sealing keys anew, restoring peers, freeing addresses."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from peerlane.config import names
from peerlane.tasks.wire import commit_record
from peerlane.workers.peers.plan import Plan
from peerlane.workers.start.recovery import Recovered, keep
from peerlane.workers.store.procedures import Answer

log = logging.getLogger(__name__)

#: Peers stored in one commit.
SLICE = 256

#: (request id, record, plans) → the answer; raises Fenced where the writer has been replaced.
Commit = Callable[[str, str, Sequence[Plan]], Answer]


def adopt(gateway: str, done: Recovered, commit: Commit) -> Recovered:
    """Store the peers that only the device had, slice by slice; each slice is one commit.

    Peers of a slice that is not committed stay on the device and in the table: no other peer gets their addresses.
    """
    kept: dict[str, str] = {}
    for start in range(0, len(done.adopted), SLICE):
        plans = done.adopted[start : start + SLICE]
        answer = _commit_slice(gateway, "adopted", plans, commit)
        for plan in plans:
            if plan.after is None:
                continue
            if answer.verdict in ("committed", "duplicate"):
                done.table.put(plan.after)
            else:
                kept[plan.public_key] = f"Redis does not know it, and refused its adoption ({answer.verdict})"
                keep(done.table, plan.after, kept[plan.public_key])
    if kept:
        log.error("gateway %s: %d unknown peers were not adopted, and are left where they are", gateway, len(kept))
    return replace(done, kept={**done.kept, **kept}, adopted=[p for p in done.adopted if p.public_key not in kept])


def reseal(gateway: str, done: Recovered, outdated: Sequence[str], commit: Commit) -> None:
    """Store again the peers whose preshared keys are in clear or sealed with an old key."""
    peers = [peer for key in outdated if key not in done.table.broken and (peer := done.table.peers.get(key))]
    for start in range(0, len(peers), SLICE):
        part = peers[start : start + SLICE]
        plans = [Plan("existing", peer.public_key, peer, peer._replace()) for peer in part]
        _commit_slice(gateway, "resealed", plans, commit)
    if peers:
        log.warning("gateway %s: %d preshared keys were sealed anew", gateway, len(peers))


def restore_lost(gateway: str, plans: Sequence[Plan], commit: Commit) -> int:
    """Store lost peers in Redis again; returns how many Redis did not take."""
    return len(_commit_each(gateway, "restored", plans, commit))


def free_addresses(gateway: str, plans: Sequence[Plan], commit: Commit) -> list[Plan]:
    """Free addresses that peers do not have; returns the plans that Redis refused."""
    return _commit_each(gateway, "freed", plans, commit)


def _commit_each(gateway: str, outcome: str, plans: Sequence[Plan], commit: Commit) -> list[Plan]:
    """Commit plans slice by slice, and those of a refused slice one by one; returns the refused ones."""
    refused: list[Plan] = []
    for start in range(0, len(plans), SLICE):
        part = plans[start : start + SLICE]
        if _commit_slice(gateway, outcome, part, commit).verdict != "committed":
            refused += [p for p in part if _commit_slice(gateway, outcome, [p], commit).verdict != "committed"]
    return refused


def _commit_slice(gateway: str, outcome: str, plans: Sequence[Plan], commit: Commit) -> Answer:
    request_id = names.request_id(gateway, f"{outcome}-{uuid.uuid4()}")
    return commit(request_id, commit_record.encode(request_id, {"outcome": outcome, "count": len(plans)}), plans)
