"""Celery's remote control is off: whoever can publish on its channel commands no gateway.

What our own processes ask is answered without it: test_inspection.py.
"""

from __future__ import annotations

from celery import Celery
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane.config.redis.url import celery_url

COMMANDS: dict[str, dict[str, object]] = {
    "add_consumer": {"queue": "gateway.elsewhere", "exchange": "gateway.elsewhere"},
    "cancel_consumer": {"queue": "gateway.iad"},
    "pool_restart": {"modules": ["os"]},
    "revoke": {"task_id": "iad.any", "terminate": True},
    "rate_limit": {"task_name": "peerlane.create_peer", "rate_limit": "0/h"},
    "time_limit": {"task_name": "peerlane.create_peer", "hard": 0.001},
    "shutdown": {},
}


def test_a_broadcast_changes_nothing(own_redis: RedisServer, gateway: MakeGateway, client: MakeClient) -> None:
    site = gateway("iad", redis=own_redis)
    # A stock Celery app on the same server, with all rights.
    stranger = Celery("stranger", broker=f"redis+socket://{own_redis.socket}")
    for command, arguments in COMMANDS.items():
        assert stranger.control.broadcast(command, arguments=arguments, reply=True, timeout=0.5) == []
    stranger.close()
    assert client(site).create_peer(some_key()).outcome == "created"
    assert site.status is None
    assert "gateway.elsewhere" not in site.log


def test_nobody_listens_to_the_channel(redis_server: RedisServer, gateway: MakeGateway) -> None:
    gateway()
    assert [name for name in redis_server.redis.pubsub_channels() if "pidbox" in str(name)] == []


def test_a_gateways_broker_is_reached_by_the_guarded_transport(
    gateway: MakeGateway, settings: MakeSettings, redis_server: RedisServer
) -> None:
    # Over a socket kombu would take its own, and with it the messages that end a worker.
    site: GatewayProcess = gateway()
    assert celery_url(settings()).startswith("redis+socket://")
    redis_server.redis.lpush(f"gateway.{site.name}", "no JSON at all", '{"properties": 1}')
    redis_server.redis.lpush(f"gateway.{site.name}.bulk", "[]")
    eventually(lambda: site.log.count("was refused: it is") == 3, "three refusals in the log")
    assert site.status is None
    assert redis_server.redis.keys("_kombu.binding.gateway.*") == []
