"""Answers ``celery inspect`` and ``celery status`` from what gateways have written in Redis, without asking a worker.

A program that can publish on Celery's remote control channel could shut workers down, so gateways do not subscribe to
it (``worker_enable_remote_control``). Other remote control commands are not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from celery.app.control import Control
from kombu.matcher import match

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import number
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.status.fleet_snapshot import FleetReader, FleetSnapshot
from peerlane.tasks.status.gateway_status import GatewayStatus
from peerlane.tasks.wire.registry import LANE_TASKS, UPKEEP_TASKS

#: Facts of a gateway that ``inspect conf`` shows: those that its settings decide.
SETTINGS = (
    *("region", "labels", "endpoint", "public_key", "listen_port", "interface", "dataplane", "pools", "serves", "dns"),
    *(
        "client_allowed_ips",
        "mtu",
        "max_peers",
        "lane_cap",
        "sweep_every",
        "reconcile_every",
        "fair_label",
        "fair_share",
    ),
)
#: Stands for the host of a gateway whose writer never said where it runs.
NOWHERE = "unknown"


@dataclass(frozen=True, slots=True)
class Node:
    """A writer or an observer, under its Celery node name."""

    name: str
    status: GatewayStatus
    observer: bool

    @property
    def live(self) -> bool:
        """Whether it has a heartbeat, and so answers."""
        return self.status.observed if self.observer else self.status.lane.live

    @property
    def queues(self) -> list[str]:
        """The queues that it consumes, in this order."""
        gateway = self.status.gateway
        if self.observer:
            return [names.observer_queue(gateway)]
        return [names.lane_queue(gateway), names.bulk_queue(gateway)]

    def answer(self, command: str) -> Any:
        """Its answer to one of ``ANSWERS``."""
        return ANSWERS[command](self)


def nodes_of(snapshot: FleetSnapshot) -> list[Node]:
    """Every writer and observer of the gateways, dead ones too."""
    nodes: list[Node] = []
    for status in snapshot.gateways:
        host = status.lane.facts.get("holder_host") or NOWHERE
        nodes.append(Node(names.node_name(status.gateway, host), status, observer=False))
        if status.observer_host:
            name = names.node_name(status.gateway, status.observer_host, observer=True)
            nodes.append(Node(name, status, observer=True))
    return nodes


class RegistryControl(Control):
    """Celery's control, which answers ``inspect`` for all live gateways and sends nothing."""

    def broadcast(  # pyright: ignore[reportIncompatibleMethodOverride] - those of Celery's arguments that are not used
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: str | list[str] | tuple[str, ...] | None = None,
        *,
        reply: bool = False,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        pattern: str | None = None,
        matcher: Any = None,
        **_: Any,
    ) -> list[dict[str, Any]] | None:
        """The answers to a command of ``ANSWERS``; no answer to any other.

        Raises:
            OutcomeUnknown: Redis could not be reached.
            StorageError: Redis refuses to show gateways to this user.
        """
        del arguments
        if not reply:
            return None
        if command not in ANSWERS:
            return []
        wanted = [destination] if isinstance(destination, str) else destination
        snapshot = FleetReader(lanes_of(cast("PeerlaneApp", self.app)).redis).read()
        answers = [
            {node.name: node.answer(command)}
            for node in nodes_of(snapshot)
            if node.live
            and (wanted is None or node.name in wanted)
            and (pattern is None or cast("Any", match)(node.name, pattern, matcher))
        ][:limit]
        if callback is not None:
            for answer in answers:
                callback(answer)
        return answers


def _active_queues(node: Node) -> list[dict[str, Any]]:
    absent = ("alias", "queue_arguments", "binding_arguments", "consumer_arguments", "expires", "message_ttl")
    limits = ("max_length", "max_length_bytes", "max_priority")
    return [
        {
            "name": queue,
            "exchange": {"name": queue, "type": "direct"},
            "routing_key": queue,
            "durable": True,
            "exclusive": False,
            "auto_delete": False,
            "no_ack": False,
            "bindings": [],
            **dict.fromkeys((*absent, *limits)),
        }
        for queue in node.queues
    ]


def _stats(node: Node) -> dict[str, Any]:
    """Statistics under Celery's names, and others in words, which Flower shows too."""
    status, facts = node.status, node.status.lane.facts
    silent = status.observer_silent_for if node.observer else (status.lane.silent_for or 0) / 1000
    known = node.observer or status.lane.silent_for is not None
    lane = status.lane
    state = {} if node.observer else {"state": "stopped" if lane.stopped else lane.state}
    stats: dict[str, Any] = {
        **state,
        "pid": status.observer_pid if node.observer else number(facts.get("holder_pid", "")),
        "prefetch_count": 1,
        "pool": {"implementation": "solo", "max-concurrency": 1},
        "broker": {"transport": "redis"},
        "rusage": {},
        "last sign of life": f"{silent:.1f} s ago" if known and silent is not None else "none",
        "alarms": "; ".join(f"{alarm.kind}: {alarm.message}" for alarm in status.alarms) or "none",
    }
    if node.observer:
        reports = {"last sweep": status.sweep, "last reconcile": status.reconcile, "counters": status.reading}
        return {**stats, "total": dict[str, int](), **{name: dict(report) for name, report in reports.items()}}
    counted = {"requests answered": "answered", "peers created": "created", "peers deleted": "deleted"}
    return stats | {
        "total": {name: number(facts.get(fact, "")) for name, fact in counted.items()},
        "peers": f"{number(facts.get('peers', '')):,} of {number(facts.get('max_peers', '')):,}",
        "waiting": f"{lane.waiting:,} interactive, {lane.waiting_bulk:,} bulk, {lane.cap:,} at most in each",
        "set aside": status.set_aside,
        "epoch": number(facts.get("epoch", "")),
        "version": facts.get("version", ""),
    }


def _nothing(_: Node) -> list[Any]:
    """An empty list of tasks, because a request is answered within milliseconds."""
    return []


#: Command → what a node answers.
ANSWERS: Mapping[str, Callable[[Node], Any]] = {
    "ping": lambda _: {"ok": "pong"},
    "stats": _stats,
    "active_queues": _active_queues,
    "registered": lambda node: sorted(UPKEEP_TASKS if node.observer else LANE_TASKS),
    "conf": lambda node: {name: node.status.lane.facts[name] for name in SETTINGS if name in node.status.lane.facts},
    "active": _nothing,
    "reserved": _nothing,
    "scheduled": _nothing,
    "revoked": _nothing,
}
