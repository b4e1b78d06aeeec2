"""A client with a map from gateway to Redis: each gateway is asked where it is, and nothing of it is elsewhere."""

from __future__ import annotations

from gateways import MakeGateway, close
from keys import some_key
from servers import RedisServer

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read


def test_a_map_of_two_redis_leads_each_request_to_its_gateways_own(
    gateway: MakeGateway, redis_server: RedisServer, own_redis: RedisServer
) -> None:
    here, there = gateway(), gateway(redis=own_redis)
    servers = {here.name: redis_server, there.name: own_redis}
    apps = {url: PeerlaneApp(read(redis_url=url)) for url in {server.url for server in servers.values()}}
    clients = {name: Gateway(name, app=apps[server.url]) for name, server in servers.items()}
    made = {name: client.create_peer(some_key()) for name, client in clients.items()}
    for name, client in clients.items():
        assert made[name].outcome == "created"
        assert [peer.public_key for peer in client.peers()] == [made[name].public_key]
        (elsewhere,) = (server for other, server in servers.items() if other != name)
        assert not elsewhere.redis.exists(names.peers_key(name), names.gateway_key(name))
        assert client.delete_peer(made[name].public_key).outcome == "deleted"
    for app in apps.values():
        close(app)
