"""A gateway's facts for clients, from its hash in Redis and the lengths of its queues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from peerlane.tasks.admission.lane_state import LaneState, number


@dataclass(frozen=True, slots=True)
class GatewayInfo:
    """A gateway's facts for clients."""

    name: str
    #: ``active``, ``draining``, ``recovering``, ``stuck`` or ``down``.
    state: str
    public_key: str
    endpoint: str
    listen_port: int
    pools: tuple[str, ...]
    #: Prefixes beyond the pools that a peer may ask for.
    serves: tuple[str, ...]
    #: The gateway's own, inside the tunnel.
    addresses: tuple[str, ...]
    #: Where it stands and what it is, for clients that name no gateway.
    region: str | None
    labels: Mapping[str, str]
    #: What a client configuration routes into the tunnel.
    client_allowed_ips: tuple[str, ...]
    dns: tuple[str, ...]
    mtu: int | None
    peers: int
    max_peers: int
    #: How many peers more it takes, as of its last heartbeat; only its writer knows for certain.
    room: int
    #: Requests waiting: interactive, bulk.
    waiting: int
    waiting_bulk: int
    #: ``kernel`` or ``memory``.
    dataplane: str
    interface: str
    version: str
    epoch: int
    holder: str
    #: Seconds since the writer's last sign of life; None if it never gave one, or ended in good order.
    silent_for: float | None
    #: Whether its writer ended in good order, and when, in seconds on Redis' clock; None where that is not known.
    stopped: bool = False
    stopped_at: int | None = None
    #: Seconds for which the writer had served nothing at its last sign of life; None where it does not say.
    idle_for: float | None = None
    #: When its writer began, in seconds on Redis' clock; None where that is not known.
    began_at: int | None = None

    @classmethod
    def from_state(cls, lane: LaneState) -> GatewayInfo:
        """From one look at a lane whose gateway is registered."""
        facts = lane.facts

        def listed(name: str) -> tuple[str, ...]:
            try:
                parsed = json.loads(facts.get(name, "[]"))
            except (ValueError, RecursionError):
                return ()
            return tuple(str(item) for item in cast("list[object]", parsed)) if isinstance(parsed, list) else ()

        def count(name: str) -> int:
            return number(facts.get(name, ""))

        return cls(
            name=lane.gateway,
            state=lane.state,
            public_key=facts.get("public_key", ""),
            endpoint=facts.get("endpoint", ""),
            listen_port=count("listen_port"),
            pools=listed("pools"),
            serves=listed("serves"),
            addresses=listed("addresses"),
            region=facts.get("region") or None,
            labels=_labels(facts.get("labels", "{}")),
            client_allowed_ips=listed("client_allowed_ips"),
            dns=listed("dns"),
            mtu=count("mtu") or None,
            peers=count("peers"),
            max_peers=count("max_peers"),
            room=max(0, count("max_peers") - count("peers")),
            waiting=lane.waiting,
            waiting_bulk=lane.waiting_bulk,
            dataplane=facts.get("dataplane", ""),
            interface=facts.get("interface", ""),
            version=facts.get("version", ""),
            epoch=count("epoch"),
            holder=f"{facts.get('holder_host', '')}:{facts.get('holder_pid', '')}",
            silent_for=None if lane.silent_for is None else lane.silent_for / 1000,
            stopped=lane.stopped,
            stopped_at=(count("stopped_at") or None) if lane.stopped else None,
            idle_for=lane.idle_for,
            began_at=count("began") or None,
        )


def _labels(text: str) -> dict[str, str]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in cast("dict[object, object]", parsed).items()} if isinstance(parsed, dict) else {}
