"""What the users of ``peerlane acl`` cannot do: every line here is a command that the administrator may give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fenced import GATEWAYS, FencedServer, fenced
from redis.exceptions import AuthenticationError, NoPermissionError

from peerlane.config import names
from peerlane.tasks.admin.acl import ROLES, users
from peerlane.workers.store import procedures as functions

PEER = "Zm9vZm9vZm9vZm9vZm9vZm9vZm9vZm9vZm9vZm9vZm8="
RECORD = '{"v":1,"allowed_ips":["10.8.0.2/32"]}'
PASSWORD = "only-for-these-tests"

#: Users who are not the administrator. Each has rights for iad only, so that all of fra is foreign to it.
PLAIN = ("writer-iad", "observer-iad", "api-iad", "operator-iad", "restorer-iad", "beat", "flower", "exporter")

LUA = (
    "EVAL return(1) 0",
    "EVALSHA 0000000000000000000000000000000000000000 0",
    "SCRIPT LOAD return(1)",
    "SCRIPT FLUSH",
    "FUNCTION LOAD REPLACE #!lua",
    "FUNCTION DELETE peerlane",
    "FUNCTION FLUSH",
)
SERVER = (
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "DBSIZE",
    "CONFIG GET requirepass",
    "CONFIG SET appendonly no",
    "CONFIG REWRITE",
    "ACL LIST",
    "ACL SETUSER api-iad +@all",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "MONITOR",
    "DEBUG SLEEP 0",
    "SHUTDOWN NOSAVE",
    "REPLICAOF NO ONE",
    "SWAPDB 0 1",
    "BGREWRITEAOF",
    "SAVE",
)
PIDBOX = (
    "PUBLISH /0.celery.pidbox {}",
    "PUBLISH *.reply.celery.pidbox {}",
    "PSUBSCRIBE *",
    "SUBSCRIBE /0.celery.pidbox",
    "LPUSH celery.pidbox {}",
)
COPY = names.snapshot_key("iad", "token", "peers")
#: Of the gateway fra.
FOREIGN = (
    f"LPUSH {names.lane_queue('fra')} x",
    f"LPUSH {names.bulk_queue('fra')} x",
    f"BRPOP {names.lane_queue('fra')} 1",
    f"LRANGE {names.lane_queue('fra')} 0 -1",
    f"DEL {names.lane_queue('fra')}",
    f"GET {names.result_key('fra.x')}",
    f"SET {names.result_key('fra.x')} x",
    f"PUBLISH {names.result_key('fra.x')} x",
    f"SUBSCRIBE {names.result_key('fra.x')}",
    f"HGETALL {names.peers_key('fra')}",
    f"HGET {names.peers_key('fra')} {PEER}",
    f"HSCAN {names.peers_key('fra')} 0",
    f"HSET {names.peers_key('fra')} {PEER} {RECORD}",
    f"HDEL {names.peers_key('fra')} {PEER}",
    f"HSET {names.addresses_key('fra')} 10.8.0.2/32 {PEER}",
    f"HSET {names.gateway_key('fra')} state draining",
    f"INCRBY {names.epoch_key('fra')} 1",
    f"HGET {names.unacked_key('fra')} tag",
    f"HSET {names.unacked_key('fra')} tag forged",
    f"ZADD {names.unacked_key('fra', '_index')} 0 tag",
    f"HSET {names.unacked_key('fra', '_observer')} tag forged",
    f"HSET {names.seen_key('fra')} {PEER} x",
    f"HSET {names.alarms_key('fra')} sweep x",
    f"RPUSH {names.staged_key('fra', 'token')} x",
    f"LRANGE {names.staged_key('fra', 'token')} 0 -1",
    f"COPY {names.peers_key('fra')} {names.snapshot_key('fra', 'token', 'peers')}",
    f"HSCAN {names.snapshot_key('fra', 'token', 'peers')} 0",
    f"HSET {names.snapshot_key('fra', 'token', 'peers')} {PEER} {RECORD}",
    f"RENAME {names.snapshot_key('fra', 'token', 'peers')} {names.peers_key('fra')}",
    f"SET {names.epoch_key('fra')} 7",
    f"UNLINK {names.peers_key('fra')}",
    f"UNLINK {names.lane_queue('fra')}",
    f"INCR {names.epoch_key('fra')}",
)
WRITES_PEERS = (
    f"HSET {names.peers_key('iad')} {PEER} {RECORD}",
    f"HDEL {names.peers_key('iad')} {PEER}",
    f"HSET {names.addresses_key('iad')} 10.8.0.2/32 {PEER}",
    f"INCRBY {names.epoch_key('iad')} 1",
    f"FCALL commit_{functions.digest()} 2 {names.peers_key('iad')} {names.result_key('iad.x')} 1",
)
TAKES_MESSAGES = (
    f"BRPOP {names.lane_queue('iad')} 1",
    f"LRANGE {names.lane_queue('iad')} 0 -1",
    f"HGET {names.unacked_key('iad')} tag",
    f"HSET {names.unacked_key('iad')} tag forged",
    f"ZADD {names.unacked_key('iad', '_index')} 0 tag",
)
READS_PEERS = (f"HGETALL {names.peers_key('iad')}", f"HSCAN {names.peers_key('iad')} 0")

#: What each cannot do beyond what nobody can.
OWN = {
    "writer-iad": (
        f"DEL {names.peers_key('iad')}",
        f"RENAME {names.peers_key('iad')} other",
        f"LPUSH {names.observer_queue('iad')} x",
        f"SMEMBERS {names.GATEWAYS_KEY}",
        f"SREM {names.GATEWAYS_KEY} fra",
        "PSUBSCRIBE /0.celeryev/*",
    ),
    "observer-iad": (
        *WRITES_PEERS,
        *TAKES_MESSAGES,
        f"HSET {names.gateway_key('iad')} state draining",
        f"LPUSH {names.lane_queue('iad')} x",
    ),
    "api-iad": (
        *WRITES_PEERS,
        *TAKES_MESSAGES,
        f"SET {names.lane_queue('iad')} x",
        f"DEL {names.lane_queue('iad')}",
        f"DEL {names.result_key('iad.x')}",
        f"LPUSH {names.observer_queue('iad')} x",
        f"UNLINK {names.peers_key('iad')}",
        f"SREM {names.GATEWAYS_KEY} iad",
        f"HSET {names.gateway_key('iad')} state draining",
        f"HDEL {names.alarms_key('iad')} sweep",
        f"RPUSH {names.staged_key('iad', 'token')} x",
        f"SADD {names.GATEWAYS_KEY} ghost",
        "SADD _kombu.binding.gateway.iad x",
        "PUBLISH /0.celeryev/task.sent {}",
    ),
    "operator-iad": (
        *WRITES_PEERS,
        *TAKES_MESSAGES,
        f"LRANGE {names.staged_key('iad', 'token')} 0 -1",
        f"SADD {names.GATEWAYS_KEY} ghost",
        "PUBLISH /0.celeryev/task.sent {}",
        # It may copy a gateway's state aside, and not put anything in its place.
        f"COPY {COPY} {names.peers_key('iad')} REPLACE",
        f"COPY {names.peers_key('iad')} elsewhere",
        f"HSET {COPY} {PEER} {RECORD}",
        f"RENAME {COPY} {names.peers_key('iad')}",
        f"RENAME {names.peers_key('iad')} {COPY}",
        f"DEL {names.peers_key('iad')}",
        # It may forget a gateway whole, and neither its outcomes nor that an older writer was replaced.
        f"SET {names.epoch_key('iad')} 7",
        f"DECR {names.epoch_key('iad')}",
        f"INCRBY {names.epoch_key('iad')} -1",
        f"UNLINK {names.epoch_key('iad')}",
        f"UNLINK {names.result_key('iad.x')}",
        f"UNLINK {names.GATEWAYS_KEY}",
    ),
    "restorer-iad": (
        *WRITES_PEERS,
        *TAKES_MESSAGES,
        *READS_PEERS,
        f"HGET {names.peers_key('iad')} {PEER}",
        f"COPY {names.peers_key('iad')} {COPY}",
        f"RENAME {names.peers_key('iad')} {COPY}",
        f"HSCAN {COPY} 0",
        f"HGETALL {COPY}",
        f"RENAME {COPY} elsewhere",
        f"RENAME {COPY} {names.lane_queue('iad')}",
        f"LPUSH {names.lane_queue('iad')} x",
        f"LPUSH {names.observer_queue('iad')} x",
        f"GET {names.result_key('iad.x')}",
        f"SET {names.result_key('iad.x')} x",
        f"HSET {names.alarms_key('iad')} sweep x",
        f"SMEMBERS {names.GATEWAYS_KEY}",
        f"SREM {names.GATEWAYS_KEY} iad",
        "PUBLISH /0.celeryev/task.sent {}",
    ),
    "beat": (
        *WRITES_PEERS,
        *TAKES_MESSAGES,
        *READS_PEERS,
        f"LPUSH {names.lane_queue('iad')} x",
        f"LPUSH {names.bulk_queue('iad')} x",
        f"LRANGE {names.observer_queue('iad')} 0 -1",
        f"GET {names.result_key('iad.x')}",
        f"HSET {names.gateway_key('iad')} state draining",
        f"HGETALL {names.gateway_key('iad')}",
        f"UNLINK {names.lane_queue('iad')}",
        f"UNLINK {names.peers_key('iad')}",
        f"SREM {names.GATEWAYS_KEY} iad",
        "PUBLISH /0.celeryev/task.sent {}",
    ),
    "flower": (
        *WRITES_PEERS,
        *TAKES_MESSAGES,
        *READS_PEERS,
        f"LPUSH {names.lane_queue('iad')} x",
        f"LPUSH {names.observer_queue('iad')} x",
        f"GET {names.result_key('iad.x')}",
        f"SET {names.result_key('iad.x')} x",
        f"PUBLISH {names.result_key('iad.x')} x",
        f"HGETALL {names.seen_key('iad')}",
        f"HGETALL {names.addresses_key('iad')}",
        f"LRANGE {names.poison_key('iad')} 0 -1",
        f"HDEL {names.alarms_key('iad')} x",
        f"HSET {names.observer_key('iad')} heartbeat 0",
        f"HSET {names.gateway_key('iad')} state draining",
        f"SREM {names.GATEWAYS_KEY} iad",
        "PUBLISH /0.celeryev/worker.heartbeat {}",
        "SADD _kombu.binding.celeryev x",
        "SET anything x",
        "EXPIRE gateway.iad 1",
    ),
    "exporter": (
        *WRITES_PEERS,
        *TAKES_MESSAGES,
        *READS_PEERS,
        f"HGET {names.peers_key('iad')} {PEER}",
        f"LINDEX {names.lane_queue('iad')} -1",
        f"LPUSH {names.lane_queue('iad')} x",
        f"LRANGE {names.poison_key('iad')} 0 -1",
        f"DEL {names.poison_key('iad')}",
        f"GET {names.result_key('iad.x')}",
        f"SUBSCRIBE {names.result_key('iad.x')}",
        f"HSET {names.gateway_key('iad')} state draining",
        f"HSET {names.metrics_key('iad')} writer x",
        f"HDEL {names.alarms_key('iad')} sweep",
        f"HSET {names.seen_key('iad')} {PEER} x",
        f"SREM {names.GATEWAYS_KEY} iad",
        "PUBLISH /0.celeryev/task.sent {}",
        "SET anything x",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[FencedServer]:
    lines = [user.line(password=PASSWORD) for name in GATEWAYS for user in users([name], ["writer", "api"])]
    lines += [
        user.line(password=PASSWORD)
        for user in users(["iad"], ["observer", "operator", "restorer", "beat", "flower", "exporter"])
    ]
    lines += [user.line(password=PASSWORD) for user in users(["iad"], ["admin"])]
    with fenced("\n".join([*lines, "user default off"]) + "\n") as server:
        yield server


@pytest.mark.parametrize("command", [*LUA, *SERVER, *PIDBOX, *FOREIGN], ids=str)
def test_nobody_but_the_administrator_may(server: FencedServer, command: str) -> None:
    for user in PLAIN:
        _assert_refused(server, user, command)


@pytest.mark.parametrize(
    ("user", "command"), [(user, command) for user, commands in OWN.items() for command in commands]
)
def test_a_user_may_not(server: FencedServer, user: str, command: str) -> None:
    _assert_refused(server, user, command)


def test_whoever_gives_no_name_may_do_nothing(server: FencedServer) -> None:
    with server.client("api-iad") as redis:
        redis.connection_pool.connection_kwargs |= {"username": None, "password": None}
        with pytest.raises(AuthenticationError):
            redis.execute_command("PING")


def test_every_role_is_tried_here() -> None:
    assert {user.removesuffix("-iad") for user in PLAIN} == set(ROLES) - {"admin"}
    assert set(OWN) == set(PLAIN)


def test_one_gateways_function_does_not_reach_anothers_keys(server: FencedServer) -> None:
    keys = [names.result_key("iad.x"), names.epoch_key("iad"), names.peers_key("fra"), names.addresses_key("fra")]
    keys += [names.gateway_key("fra"), names.unacked_key("iad"), names.unacked_key("iad", "_index")]
    with server.client("writer-iad") as redis, pytest.raises(NoPermissionError):
        redis.fcall(f"commit_{functions.digest()}", 7, *keys, 1, 0, "{}", 60, "{}", "[]", 0, "")


def _assert_refused(server: FencedServer, user: str, command: str) -> None:
    with server.client(user) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*command.split(" "))
