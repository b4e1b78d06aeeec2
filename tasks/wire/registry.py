"""The table of a gateway's tasks (name, model of the arguments, queue), and Celery's router, which reads it.

The writer's planner of a task is bound to the same name (peerlane.workers.peers.handlers); a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peerlane.config import names
from peerlane.tasks.wire.bulk import ImportPeers, MendPeers, RemovePeers
from peerlane.tasks.wire.lists import CreatePeers, DeletePeers
from peerlane.tasks.wire.model import CreatePeer, DeletePeer
from peerlane.tasks.wire.upkeep import ReconcileGateway, SweepGateway

#: The model of a request to the writer.
LaneModel = type[CreatePeer | DeletePeer | CreatePeers | DeletePeers | RemovePeers | MendPeers | ImportPeers]
#: The model of a request to the observer.
UpkeepModel = type[SweepGateway | ReconcileGateway]


@dataclass(frozen=True, slots=True)
class LaneTaskRow:
    """A task of the writer."""

    name: str
    model: LaneModel
    #: Gateway name → the queue that it goes to, where its sender names none.
    queue: Callable[[str], str]
    #: What it does, in a line.
    summary: str


@dataclass(frozen=True, slots=True)
class UpkeepTaskRow:
    """A task of the observer, which never writes to the device."""

    name: str
    model: UpkeepModel
    queue: Callable[[str], str] = names.observer_queue


LANE_TASKS: Mapping[str, LaneTaskRow] = {
    row.name: row
    for row in (
        LaneTaskRow(names.CREATE_PEER, CreatePeer, names.lane_queue, "Create a peer on a gateway."),
        LaneTaskRow(names.DELETE_PEER, DeletePeer, names.lane_queue, "Delete a peer from a gateway."),
        LaneTaskRow(names.CREATE_PEERS, CreatePeers, names.bulk_queue, "Create up to 64 peers, each for itself."),
        LaneTaskRow(names.DELETE_PEERS, DeletePeers, names.bulk_queue, "Delete up to 64 peers, each for itself."),
        LaneTaskRow(names.REMOVE_PEERS, RemovePeers, names.bulk_queue, "Remove a slice of what a sweep found stale."),
        LaneTaskRow(names.MEND_PEERS, MendPeers, names.bulk_queue, "Mend a slice of what a reconciliation found."),
        LaneTaskRow(names.IMPORT_PEERS, ImportPeers, names.bulk_queue, "Import staged peers, or the live device's."),
    )
}
UPKEEP_TASKS: Mapping[str, UpkeepTaskRow] = {
    row.name: row
    for row in (UpkeepTaskRow(names.SWEEP, SweepGateway), UpkeepTaskRow(names.RECONCILE, ReconcileGateway))
}
#: All of them.
TASKS: Mapping[str, LaneTaskRow | UpkeepTaskRow] = {**LANE_TASKS, **UPKEEP_TASKS}


def route_task(
    name: str,
    args: object,
    kwargs: dict[str, Any] | None,
    options: dict[str, Any],
    task: object = None,
    **_: object,
) -> dict[str, str] | None:
    """Celery router: the queue of ``TASKS`` for the argument ``gateway``; None for a task that is not in there.

    A ``queue`` that the sender names wins over this, which is how a list of creates goes to the bulk queue.

    Raises:
        ValueError: a task of a gateway without a well-formed ``gateway`` keyword argument.
    """
    del args, options, task
    row = TASKS.get(name)
    if row is None:
        return None
    gateway = (kwargs or {}).get("gateway")
    if not isinstance(gateway, str) or not names.GATEWAY_NAME.fullmatch(gateway):
        raise ValueError("a lane task needs the keyword argument gateway, a gateway's name")
    return {"queue": row.queue(gateway)}
