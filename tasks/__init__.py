"""What crosses the queue, for API hosts: the client, the Celery tasks, the model, the errors.

    from tasks import Gateway
    peer = Gateway("iad").create_peer(public_key=key, ttl=3600, timeout=5)

Needs neither pyroute2 nor root. Imports config, never workers.
"""

from tasks.aio import AsyncGateway
from tasks.client import Gateway, GatewayInfo, gateways
from tasks.definitions import create_peer, delete_peer
from tasks.model import Peer, PeerResult
from tasks.placement import AsyncFleet, Fleet

__all__ = [
    "AsyncFleet",
    "AsyncGateway",
    "Fleet",
    "Gateway",
    "GatewayInfo",
    "Peer",
    "PeerResult",
    "create_peer",
    "delete_peer",
    "gateways",
]
