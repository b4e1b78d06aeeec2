"""A power loss takes the end of Redis' append-only file: real processes, real files, and what becomes true again."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.tasks.errors import PeerlaneError


class Tail:
    """The end of a server's append-only file, from here on."""

    def __init__(self, server: RedisServer) -> None:
        (self._file,) = (server.directory / "appendonlydir").glob("*.incr.aof")
        self._kept = self._file.stat().st_size

    def lose(self) -> int:
        """Cut it off; how many bytes it had."""
        size = self._file.stat().st_size
        with self._file.open("r+b") as file:
            file.truncate(self._kept)
        return size - self._kept


def confirmed(lane: Gateway, before: list[str]) -> set[str]:
    """Creates and deletes that the server is about to lose; the keys that are there afterwards."""
    created = [lane.create_peer(some_key(), timeout=20).public_key for _ in range(12)]
    gone = [*before[:4], *created[:2]]
    for key in gone:
        assert lane.delete_peer(key, timeout=20).outcome == "deleted"
    listed = [some_key() for _ in range(70)]
    assert all(not isinstance(each, PeerlaneError) for each in lane.create_peers([{"public_key": k} for k in listed]))
    return {*before, *created, *listed} - {*gone}


def answers(lane: Gateway) -> bool:
    """Whether the lane carries something out, which nobody needs."""
    try:
        lane.delete_peer(some_key(), timeout=5)
    except PeerlaneError:
        return False
    return True


def keys_of(lane: Gateway) -> set[str]:
    return {peer.public_key for peer in lane.peers()}


@pytest.fixture
def process(gateway: MakeGateway, own_redis: RedisServer, tmp_path: Path) -> GatewayProcess:
    own_redis.redis.config_set("appendfsync", "everysec")
    return gateway(redis=own_redis, state_dir=tmp_path)


@pytest.mark.parametrize("writer_too", [False, True], ids=["the writer lives", "the writer dies at the same moment"])
def test_what_redis_lost_with_its_last_second_is_true_again(
    process: GatewayProcess, own_redis: RedisServer, client: MakeClient, *, writer_too: bool
) -> None:
    lane = client(process)
    before = [lane.create_peer(some_key(), timeout=20).public_key for _ in range(6)]
    tail = Tail(own_redis)
    expected = confirmed(lane, before)
    if writer_too:
        process.kill()
    own_redis.kill()
    assert tail.lose() > 1000, "there was something to lose"
    own_redis.start()
    own_redis.redis.config_set("appendfsync", "everysec")
    if writer_too:
        process.start()
    eventually(lambda: answers(lane), f"the lane coming back: {process.log[-2000:]}", within=60)
    assert keys_of(lane) == expected
    assert (process.status is None) is True
    assert all(lane.delete_peer(key, timeout=20).outcome == "deleted" for key in list(expected)[:3])


def test_a_kill_of_redis_alone_loses_nothing_and_the_writer_lives_on(
    process: GatewayProcess, own_redis: RedisServer, client: MakeClient
) -> None:
    lane = client(process)
    before = [lane.create_peer(some_key(), timeout=20).public_key for _ in range(6)]
    expected = confirmed(lane, before)
    own_redis.kill()
    own_redis.start()
    eventually(lambda: answers(lane), f"the lane coming back: {process.log[-2000:]}", within=60)
    assert keys_of(lane) == expected
    assert process.status is None
