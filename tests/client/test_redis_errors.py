"""Every failure of Redis becomes one of Peerlane's errors, in Redis' own word where it was reached."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from redis import Redis, exceptions
from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import MaxConnectionsError, ReadOnlyError, RedisError, ResponseError
from servers import RedisServer
from waiting import eventually

from peerlane.config.redis.client import connect
from peerlane.config.redis.connections import NotPrimary, noticing
from peerlane.config.redis.failures import failure
from peerlane.config.settings import read
from peerlane.tasks.client.aio_connections import connections
from peerlane.tasks.errors import OutcomeUnknown, StorageError
from peerlane.tasks.redis.errors import reaching, scan

CLASSES = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, Exception)]
#: What redis-py raises elsewhere: its client of clusters, a lock in a forked child. A client of one server does not.
NEVER_RAISED = {
    "ChildDeadlockedError",
    "CrossSlotTransactionError",
    "IncorrectPolicyType",
    "InvalidPipelineStack",
    "RedisClusterException",
    "SlotNotCoveredError",
}
#: Of a server that was not reached, or that speaks another protocol.
UNREACHED = {"ConnectionError", "ExternalAuthProviderError", "InvalidResponse", "TimeoutError"}
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="


def made(kind: type[Exception]) -> Exception:
    """One of a class, as redis-py makes it of a reply."""
    return kind("12182 127.0.0.1:7002") if kind.__name__ in ("AskError", "MovedError") else kind(f"it was {SECRET}")


def test_redis_py_has_no_class_of_errors_that_is_not_known_here() -> None:
    assert {kind.__name__ for kind in CLASSES if not issubclass(kind, RedisError)} == NEVER_RAISED


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, RedisError)])
def test_every_error_of_redis_py_becomes_one_that_a_caller_can_act_on(kind: type[RedisError]) -> None:
    with pytest.raises(OutcomeUnknown) as caught, reaching("nothing was sent", "iad.1"):
        raise made(kind)
    assert caught.value.request_id == "iad.1"
    assert caught.value.message.endswith("); nothing was sent") or kind is MaxConnectionsError
    assert ("could not be reached" in caught.value.message) == (kind.__name__ in UNREACHED)
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, ResponseError)])
def test_a_refusal_is_an_error_of_its_own_where_that_is_asked_for(kind: type[ResponseError]) -> None:
    with (
        pytest.raises(StorageError, match=r"^Redis refuses \(.*\); nothing was changed$"),
        reaching(refused="nothing was changed"),
    ):
        raise made(kind)


def test_peerlanes_own_errors_and_what_is_not_redis_pass_as_they_are() -> None:
    for error in (StorageError("ours"), BrokenPipeError("of standard output")):
        with pytest.raises(type(error)) as caught, reaching():
            raise error
        assert caught.value is error


# What a real server says


@pytest.fixture
def api(own_redis: RedisServer) -> Iterator[Redis]:
    redis = connect(read(redis_url=own_redis.url))
    yield redis
    redis.close()


def reason_of(act: Callable[[], object]) -> str:
    with pytest.raises(OutcomeUnknown) as caught, reaching():
        act()
    return caught.value.message


def test_a_full_memory_is_told_without_what_was_sent(own_redis: RedisServer, api: Redis) -> None:
    own_redis.redis.config_set("maxmemory", "1")
    pipe = api.pipeline(transaction=False)
    pipe.lpush("gateway.iad", SECRET)
    message = reason_of(pipe.execute)
    assert message == "Redis refuses (OOM: its memory is full (maxmemory), and it takes no writes)"
    assert "OOM" in reason_of(lambda: api.set("a", SECRET))


def test_missing_replicas_are_told(own_redis: RedisServer, api: Redis) -> None:
    own_redis.redis.config_set("min-replicas-to-write", "1")
    assert "NOREPLICAS: fewer replicas follow it" in reason_of(lambda: api.set("a", "b"))
    pipe = api.pipeline(transaction=False)
    pipe.set("a", "b")
    assert "NOREPLICAS: fewer replicas follow it" in reason_of(pipe.execute)


def test_a_replica_is_told_and_one_without_its_primary(own_redis: RedisServer, api: Redis) -> None:
    own_redis.redis.replicaof("127.0.0.1", "1")
    assert "READONLY: it is a replica" in reason_of(lambda: api.set("a", "b"))
    own_redis.redis.config_set("replica-serve-stale-data", "no")
    assert "MASTERDOWN: it is a replica that has lost its primary" in reason_of(lambda: api.get("a"))


def test_a_disk_that_takes_no_snapshot_is_told(own_redis: RedisServer, api: Redis) -> None:
    (own_redis.directory / "dump.rdb").mkdir()  # nothing can be renamed to it
    own_redis.redis.config_set("save", "3600 1")
    own_redis.redis.bgsave()
    eventually(lambda: own_redis.redis.info("persistence")["rdb_last_bgsave_status"] == "err", "the failed snapshot")
    assert "MISCONF: it cannot save its data" in reason_of(lambda: api.set("a", "b"))


def test_a_script_that_does_not_end_is_told(own_redis: RedisServer, api: Redis) -> None:
    own_redis.redis.config_set("busy-reply-threshold", "1")
    endless = own_redis.redis.connection_pool.get_connection()
    endless.send_command("EVAL", "while true do end", "0")

    def busy() -> bool:
        try:
            return not api.ping()
        except ResponseError:
            return True

    eventually(busy, "the script occupying the server")
    assert "BUSY: a script occupies it" in reason_of(lambda: api.get("a"))
    api.script_kill()
    endless.disconnect()
    own_redis.redis.connection_pool.release(endless)


def test_a_server_with_too_many_clients_is_told(own_redis: RedisServer, api: Redis) -> None:
    own_redis.redis.config_set("maxclients", "1")
    # It answers and closes at once: redis-py may find the connection closed before it has read the answer.
    assert "maxclients" in reason_of(lambda: api.get("a"))
    reply = exceptions.ConnectionError("max number of clients reached")
    assert failure(reply) == "Redis refuses (it serves as many clients as it may: raise maxclients)"


def test_a_server_that_is_gone_could_not_be_reached(own_redis: RedisServer, api: Redis) -> None:
    own_redis.stop()
    assert reason_of(lambda: api.get("a")) == "Redis could not be reached (there is no such socket)"


def test_a_hash_that_cannot_be_read_to_its_end_is_told(own_redis: RedisServer, api: Redis) -> None:
    own_redis.redis.hset("a hash", mapping={str(number): "x" for number in range(3_000)})
    entries = scan(api, "a hash")
    assert next(entries)[1] == b"x"
    own_redis.stop()
    with pytest.raises(OutcomeUnknown, match="could not be reached"):
        list(entries)


# Limits of this process


def test_as_many_threads_may_wait_as_a_process_can_have(redis_server: RedisServer) -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(connect(read(redis_url=redis_server.url)))
        for number in range(150):
            stack.enter_context(redis.pubsub()).subscribe(f"a request {number}")


def test_a_limit_of_this_process_is_not_told_of_redis(redis_server: RedisServer) -> None:
    with connect(read(redis_url=redis_server.url)) as redis, redis.pubsub() as waiting:
        redis.connection_pool.max_connections = 1
        waiting.subscribe("a request")
        assert reason_of(lambda: redis.get("a")) == "this process has no connection to Redis free"


def test_the_cause_of_another_librarys_error_is_told() -> None:
    wrapped = RuntimeError("of a pool")
    wrapped.__cause__ = ConnectionRefusedError()
    assert failure(wrapped) == "Redis could not be reached (nobody listens there)"


@pytest.mark.parametrize(
    ("parser", "protocol"), [(_HiredisParser, 2), (_HiredisParser, 3), (_RESP2Parser, 2), (_RESP3Parser, 3)]
)
def test_a_connection_is_closed_where_its_server_is_no_primary(
    own_redis: RedisServer, parser: type[Any], protocol: int
) -> None:
    """Whatever parses its answers: redis-py takes hiredis where that is installed."""
    own_redis.redis.replicaof("127.0.0.1", "1")
    pool: Any = own_redis.redis.connection_pool
    where = {name: value for name, value in pool.connection_kwargs.items() if name in ("host", "port", "path")}
    connection: Any = noticing(pool.connection_class)(**where, parser_class=parser, protocol=protocol)
    connection.send_command("SET", "a", "b")
    with pytest.raises(NotPrimary, match="You can't write against a read only replica") as caught:
        connection.read_response()
    assert isinstance(caught.value.__cause__, ReadOnlyError)
    assert connection._sock is None  # noqa: SLF001 - redis-py has no other name for it
    connection.send_command("GET", "a")
    assert connection.read_response() is None
    connection.send_command("GETT", "a")
    with pytest.raises(ResponseError, match="unknown command"):
        connection.read_response()
    connection.disconnect()


def test_an_asyncio_connection_is_closed_where_its_server_is_no_primary(own_redis: RedisServer) -> None:
    own_redis.redis.replicaof("127.0.0.1", "1")

    async def ask() -> None:
        client = AsyncRedis(connection_pool=connections(read(redis_url=own_redis.url)))
        with pytest.raises(NotPrimary, match="You can't write against a read only replica"):
            await client.set("a", "b")
        assert await client.get("a") is None
        await client.connection_pool.disconnect()

    asyncio.run(ask())


def test_a_connection_that_redis_closed_is_told_in_words() -> None:
    assert failure(exceptions.ConnectionError("Connection closed by server.")).endswith("(it closed the connection)")
