"""What crosses the queue, for API hosts: the client, the Celery tasks, the model, the errors.

    from tasks import Gateway
    peer = Gateway("iad").create_peer(public_key=key, ttl=3600, timeout=5)

Needs neither pyroute2 nor root. Imports config, never workers.
"""

from tasks.client.aio_gateway import AsyncGateway
from tasks.client.fleet import AsyncFleet, Fleet
from tasks.client.gateway import Gateway, GatewayInfo, gateways
from tasks.lane.tasks import create_peer, delete_peer
from tasks.wire.model import Peer, PeerResult

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
