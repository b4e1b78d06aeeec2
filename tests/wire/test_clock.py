"""One server's time for all: the clock asks rarely and stays close."""

from __future__ import annotations

import time

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from servers import RedisServer

from peerlane.tasks.redis import server_clock as clock
from peerlane.tasks.redis.server_clock import ServerClock


class Server:
    """A server whose clock is ``ahead`` ms of this host's, and that counts who asks."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.asked = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead

    def time(self) -> tuple[int, int]:
        self.asked += 1
        return self.now_ms() // 1000, self.now_ms() % 1000 * 1000


class TestTheClock:
    @pytest.mark.parametrize("ahead", [0, 3_600_000, -86_400_000])
    def test_tells_the_servers_time_whatever_the_hosts_says(self, ahead: int) -> None:
        server = Server(ahead)
        read = ServerClock(server.time)
        assert abs(read.now_ms() - server.now_ms()) < 500

    def test_asks_once_for_many_readings(self) -> None:
        server = Server(0)
        read = ServerClock(server.time)
        readings = [read.now_ms() for _ in range(1000)]
        assert server.asked == 1
        assert readings == sorted(readings)

    def test_asks_anew_after_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        server = Server(0)
        read = ServerClock(server.time)
        read.now_ms()
        monkeypatch.setattr(clock, "RESYNC", -1.0)
        server.ahead = 60_000
        assert abs(read.now_ms() - server.now_ms()) < 500
        assert server.asked == 2

    def test_takes_the_time_from_any_answer_that_has_it(self) -> None:
        server = Server(5_000)
        read = ServerClock(server.time)
        read.heard(server.now_ms())
        assert abs(read.now_ms() - server.now_ms()) < 500
        assert server.asked == 0

    def test_passes_over_an_answer_that_was_long_on_its_way(self) -> None:
        server = Server(0)
        read = ServerClock(server.time)
        read.heard(server.now_ms())
        read.heard(server.now_ms() - 400)
        assert abs(read.now_ms() - server.now_ms()) < 200

    def test_passes_over_an_answer_that_came_while_this_process_was_stopped(self) -> None:
        server = Server(0)
        read = ServerClock(server.time)
        read.heard(server.now_ms())
        read.heard(server.now_ms() - 2_500, asked=time.monotonic() - 3.0)
        assert abs(read.now_ms() - server.now_ms()) < 200

    def test_does_so_too_where_it_had_asked_because_the_last_answer_was_old(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = Server(0)

        def stopped_meanwhile() -> tuple[int, int]:
            answer = server.time()
            time.sleep(0.6)  # how long the answer is on its way is what is tested
            return answer

        read = ServerClock(stopped_meanwhile)
        read.heard(server.now_ms())
        monkeypatch.setattr(clock, "RESYNC", -1.0)
        assert abs(read.now_ms() - server.now_ms()) < 200
        assert server.asked == 1

    def test_follows_a_clock_that_was_set_back_by_more_than_the_answer_was_on_its_way(self) -> None:
        server = Server(0)
        read = ServerClock(server.time)
        read.heard(server.now_ms())
        read.heard(server.now_ms() - 900, asked=time.monotonic() - 0.3)
        assert abs(read.now_ms() - server.now_ms() + 900) < 200

    def test_follows_a_server_whose_clock_is_another(self) -> None:
        server = Server(0)
        read = ServerClock(server.time)
        read.heard(server.now_ms())
        read.heard(server.now_ms() - 60_000)
        assert abs(read.now_ms() - server.now_ms() + 60_000) < 500

    def test_raises_what_asking_raises(self) -> None:
        def away() -> tuple[int, int]:
            raise RedisConnectionError

        with pytest.raises(RedisConnectionError):
            ServerClock(away).now_ms()

    def test_agrees_with_a_real_server(self, redis_server: RedisServer) -> None:
        def ask() -> tuple[int, int]:
            seconds, micros = redis_server.redis.time()  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType] - typed for async too
            return seconds, micros

        read = ServerClock(ask)
        seconds, micros = ask()
        assert abs(read.now_ms() - (seconds * 1000 + micros // 1000)) < 500
