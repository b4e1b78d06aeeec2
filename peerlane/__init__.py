"""WireGuard peers for a fleet of gateways, on Celery and Redis. What an API host imports.

    from peerlane import Gateway
    peer = Gateway("iad").create_peer(public_key=key, ttl=3600, timeout=5)

Each name is loaded when it is first used. ``peerlane.tasks``, ``peerlane.workers`` and ``peerlane.config`` are the
folders of these names at the root of the repository: links to them in a checkout, the folders themselves in the wheel.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peerlane.tasks.client.aio_fleet import AsyncFleet
    from peerlane.tasks.client.aio_gateway import AsyncGateway
    from peerlane.tasks.client.fleet import Fleet
    from peerlane.tasks.client.gateway import Gateway, gateways
    from peerlane.tasks.errors import (
        Conflict,
        Draining,
        Fenced,
        Invalid,
        KernelError,
        LaneHeld,
        NoDataPlane,
        OutcomeUnknown,
        PeerlaneError,
        PoolExhausted,
        RedisAway,
        RedisRefuses,
        Refused,
        SettingsError,
        StorageError,
        TimedOut,
        Unavailable,
        WriterError,
    )
    from peerlane.tasks.lane.slices import PeerAnswer, PeerWish
    from peerlane.tasks.lane.tasks import create_peer, create_peers, delete_peer, delete_peers
    from peerlane.tasks.status.gateway_info import GatewayInfo
    from peerlane.tasks.values.activity import PeerActivity
    from peerlane.tasks.values.keys import make_key_pair
    from peerlane.tasks.wire.model import PeerResult
    from peerlane.tasks.wire.stored_peer import Peer

__all__ = [
    "AsyncFleet",
    "AsyncGateway",
    "Conflict",
    "Draining",
    "Fenced",
    "Fleet",
    "Gateway",
    "GatewayInfo",
    "Invalid",
    "KernelError",
    "LaneHeld",
    "NoDataPlane",
    "OutcomeUnknown",
    "Peer",
    "PeerActivity",
    "PeerAnswer",
    "PeerResult",
    "PeerWish",
    "PeerlaneError",
    "PoolExhausted",
    "RedisAway",
    "RedisRefuses",
    "Refused",
    "SettingsError",
    "StorageError",
    "TimedOut",
    "Unavailable",
    "WriterError",
    "create_peer",
    "create_peers",
    "delete_peer",
    "delete_peers",
    "gateways",
    "make_key_pair",
]

#: The module of each name that is not an error.
_MODULES = {
    "AsyncFleet": "peerlane.tasks.client.aio_fleet",
    "AsyncGateway": "peerlane.tasks.client.aio_gateway",
    "Fleet": "peerlane.tasks.client.fleet",
    "Gateway": "peerlane.tasks.client.gateway",
    "GatewayInfo": "peerlane.tasks.status.gateway_info",
    "Peer": "peerlane.tasks.wire.stored_peer",
    "PeerActivity": "peerlane.tasks.values.activity",
    "PeerAnswer": "peerlane.tasks.lane.slices",
    "PeerResult": "peerlane.tasks.wire.model",
    "PeerWish": "peerlane.tasks.lane.slices",
    "create_peer": "peerlane.tasks.lane.tasks",
    "create_peers": "peerlane.tasks.lane.tasks",
    "delete_peer": "peerlane.tasks.lane.tasks",
    "delete_peers": "peerlane.tasks.lane.tasks",
    "gateways": "peerlane.tasks.client.gateway",
    "make_key_pair": "peerlane.tasks.values.keys",
}


def __getattr__(name: str) -> object:
    """Load a public name. Raises AttributeError for any other."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "peerlane.tasks.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
