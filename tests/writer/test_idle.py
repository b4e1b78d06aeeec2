"""What a gateway costs Redis to which nobody turns, and how its processes wait for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from gateways import MakeGateway
from grouped_lane import GroupedLane
from keys import some_key
from observers import Observer, ending
from redis import Redis
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.tasks.admin.acl import users
from peerlane.workers.host.pulse import LONG, PULSE
from peerlane.workers.lane import broker

#: Heartbeats of the writer for which commands are counted: as many as the seldom things need to be seen.
BEATS = 10


def commands_of(server: RedisServer, beats: int) -> Counter[str]:
    """Every command that the server carries out until the writer has told so often that it lives; scripts' own too."""
    counted: Counter[str] = Counter()
    redis = Redis(unix_socket_path=str(server.socket), socket_timeout=30)
    with redis.monitor() as monitor:
        heard: Any = monitor.listen()
        for command in heard:
            counted[command["command"].split(" ")[0]] += 1
            if counted["EVALSHA"] + counted["FCALL"] > beats:
                break
    redis.close()
    return counted


class TestAnIdleGatewayWithItsObserver:
    @pytest.fixture
    def server(self, gateway: MakeGateway, own_redis: RedisServer) -> Generator[RedisServer]:
        site = gateway(redis=own_redis)
        observer = Observer(site)
        with ending(observer):
            yield own_redis

    def test_costs_redis_six_commands_a_heartbeat_and_six_connections(self, server: RedisServer) -> None:
        own: Any = server.redis.client_list()
        theirs = [each for each in own if each["cmd"] == "brpop"]
        assert len(theirs) == 2
        counted = commands_of(server, BEATS)
        # What comes every few beats may come once more than its share.
        assert counted.total() <= 6 * BEATS + 10, counted
        assert counted["BRPOP"] <= 2 * (BEATS // broker.BLOCKED_FOR + 2)
        assert counted["INFO"] <= 2
        assert counted["PING"] == 0
        # Beside them: this test's, and the one by which the fixture looks at the lane.
        eventually(
            lambda: len(server.redis.client_list()) <= 6 + 2, f"few connections, not {server.redis.client_list()}"
        )


class TestAWaitForMessages:
    @pytest.fixture
    def lane(self, redis_server: RedisServer, tmp_path: Path) -> Generator[GroupedLane]:
        lane = GroupedLane(redis_server, tmp_path)
        lane.channel.brpop_timeout = 600
        yield lane
        lane.close()

    def begin(self, lane: GroupedLane) -> None:
        """As the event loop does, until Redis has it."""
        channel = lane.channel
        channel.connection.cycle._register_BRPOP(channel)  # noqa: SLF001 - what the event loop does
        eventually(lambda: any(each["cmd"] == "brpop" for each in _clients(lane.redis)), "Redis having the command")

    def test_ends_at_once_where_the_process_is_to_stop(self, lane: GroupedLane) -> None:
        """Without its key, reading the answer would fail after the two seconds that an answer may take."""
        self.begin(lane)
        lane.channel.close()
        assert not lane.redis.keys(names.wake_key(lane.name, "*"))

    def test_that_ends_loses_no_message_that_came_before(self, lane: GroupedLane) -> None:
        self.begin(lane)
        (request,) = lane.send({"public_key": some_key()})
        lane.channel.close()
        waits = lane.redis.llen(lane.queue) + lane.redis.hlen(names.unacked_key(lane.name))
        assert lane.redis.exists(names.result_key(request)) or waits == 1

    def test_goes_on_briefly_where_its_user_may_not_wait_on_a_key_of_its_own(
        self, own_redis: RedisServer, tmp_path: Path
    ) -> None:
        lane = GroupedLane(own_redis, tmp_path)
        try:
            self._forbid(own_redis, lane)
            channel = lane.channel
            self.begin(lane)
            assert channel.brpop_answer() is None
            channel._in_poll = None  # noqa: SLF001 - as after each answer
            assert channel.brpop_timeout == broker.BLOCKED_BRIEFLY
            self.begin(lane)
            lane.send({"public_key": some_key()})
            queue, message = channel.brpop_answer()
            channel._in_poll = None  # noqa: SLF001 - likewise
            assert queue == lane.queue
            assert b"create_peer" in message
        finally:
            lane.close()

    def _forbid(self, server: RedisServer, lane: GroupedLane) -> None:
        """Nobody may read or write the keys by which a wait is ended, as with users of an earlier version."""
        rules = ["on", "nopass", "+@all", "allchannels", f"~gateway.{lane.name}*", "~celery-task-meta-*"]
        server.redis.execute_command("ACL", "SETUSER", "default", "resetkeys", *rules)

    def test_without_an_answer_in_time_has_its_connection_dropped(self, lane: GroupedLane) -> None:
        self.begin(lane)
        channel, poller = lane.channel, lane.channel.connection.cycle
        connection = channel._in_poll  # noqa: SLF001 - what waits
        poller.maybe_check_brpop_health()
        assert channel._in_poll is connection  # noqa: SLF001 - likewise
        channel._brpop_sent_at -= channel.brpop_timeout + broker.OVERDUE  # noqa: SLF001 - so long ago
        poller.maybe_check_brpop_health()
        assert not channel._in_poll  # noqa: SLF001 - likewise
        assert connection._sock is None  # noqa: SLF001 - likewise
        self.begin(lane)
        assert channel._in_poll  # noqa: SLF001 - it waits again


def _clients(redis: Redis) -> list[dict[str, str]]:
    clients: Any = redis.client_list()
    return clients


def test_a_writer_that_makes_lost_commits_true_again_is_given_time_for_that(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be thousands, and nobody turns the lane meanwhile: neither callers nor a supervisor take it for stuck."""
    lane, within = GroupedLane(redis_server, tmp_path), list[float]()
    try:
        sequence = lane.writer.store.sequence
        monkeypatch.setattr(sequence, "catch_up", lambda: within.append(PULSE.within))
        sequence.behind = True
        PULSE.turn()
        lane.service.tick()
    finally:
        lane.close()
    assert within == [LONG]


@pytest.mark.parametrize("role", ["writer", "observer"])
def test_each_process_may_wait_on_its_gateways_keys_and_no_others(role: Any) -> None:
    (user,) = users(["iad"], [role])
    waiting = [selector for selector in user.selectors if "brpop" in selector.commands]
    assert [key for selector in waiting for key in selector.keys if "wake" in key] == [names.wake_key("iad", "*")]
