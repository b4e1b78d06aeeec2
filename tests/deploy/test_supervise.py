"""Two processes kept running, tried with real ones: small programs, and a gateway's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from gateways import ROOT, GatewayProcess, MakeSettings, as_variable, clean_environment, close, new_name
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import Stopwatch, eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin import maintenance as upkeep
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import TimedOut
from peerlane.tasks.status.fleet_snapshot import read_gateway
from peerlane.workers.host.parts import AWAY, FOLLOWING, HELD, LONGEST, observer_is_final, pause_after, writer_is_final
from peerlane.workers.host.pulse import LONG, SILENCE
from peerlane.workers.host.supervisor import GRACE


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Supervised:
    """``workers.host.supervisor`` in a process, over shell scripts; each start of a part is a line in its file.

    ``grace``: the seconds that a silent part is given to go on, and again to end. ``following``: those that a
    part which follows waits for the others.
    """

    def __init__(
        self, directory: Path, environment: Mapping[str, str], grace: float, following: float, **scripts: str
    ) -> None:
        self.directory = directory
        parts = "".join(
            f"Part({name!r}, ['sh', '-c', {'echo $$ >> ' + str(directory / name) + '; ' + script!r}, 'part'],"
            f" {'writer' if name.endswith('writer') else 'observer'}_is_final,"
            f" watched={name.startswith('watched')}, needed={name == 'watched'}, follows={name == 'follower'}),"
            for name, script in scripts.items()
        )
        program = (
            "import logging, os, sys; from peerlane.workers.host import supervisor;"
            "from peerlane.workers.host.supervisor import *; from peerlane.workers.host.parts import *;"
            f"supervisor.GRACE, supervisor.FOLLOWING = {grace}, {following};"
            f"logging.basicConfig(level='INFO'); sys.exit(supervise([{parts}], os.environ))"
        )
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=ROOT,
                env={**clean_environment(), **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pids(self, name: str) -> list[int]:
        """Every process of this part so far."""
        file = self.directory / name
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def nth(self, name: str, count: int) -> int:
        """The process of the part's start number ``count``, once it is there."""
        return eventually(lambda: self.pids(name)[count - 1 : count], f"start {count} of {name}")[0]

    def end(self) -> None:
        """After the test."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class MakeSupervised(Protocol):
    def __call__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        grace: float = GRACE,
        following: float = FOLLOWING,
        **scripts: str,
    ) -> Supervised: ...


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[MakeSupervised]:
    made: list[Supervised] = []

    def make(
        environment: Mapping[str, str] | None = None,
        *,
        grace: float = GRACE,
        following: float = FOLLOWING,
        **scripts: str,
    ) -> Supervised:
        made.append(Supervised(tmp_path, environment or {}, grace, following, **scripts))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.end()


STAY = "exec sleep 600"


def test_a_part_that_is_killed_is_started_again_and_the_other_is_left_alone(supervised: MakeSupervised) -> None:
    run = supervised(writer=STAY, observer=STAY)
    writer, observer = run.nth("writer", 1), run.nth("observer", 1)
    os.kill(writer, signal.SIGKILL)
    assert run.nth("writer", 2) != writer
    assert alive(observer)
    assert run.pids("observer") == [observer]
    assert "the writer was killed by SIGKILL" in run.log.read_text()


def test_a_part_that_cannot_be_started_again_for_a_while_ends_nobody(
    supervised: MakeSupervised, tmp_path: Path
) -> None:
    """No process is left, say, or the program is just being replaced."""
    shell, stay = tmp_path / "bin" / "sh", f"exec {shutil.which('sleep')} 600"
    shell.parent.mkdir()
    shell.symlink_to(str(shutil.which("sh")))
    run = supervised({"PATH": str(shell.parent)}, writer=stay, observer=stay)
    writer, observer = run.nth("writer", 1), run.nth("observer", 1)
    shell.unlink()
    os.kill(observer, signal.SIGKILL)
    eventually(lambda: "the observer could not be started" in run.log.read_text(), "the supervisor saying so")
    assert alive(writer)
    shell.symlink_to(str(shutil.which("sh")))
    assert alive(run.nth("observer", 2))
    assert run.pids("writer") == [writer]


def test_a_part_that_keeps_crashing_is_started_ever_later(supervised: MakeSupervised) -> None:
    watch = Stopwatch()
    run = supervised(writer=STAY, observer="exit 7")
    run.nth("observer", 3)
    assert watch.seconds >= pause_after(1) + pause_after(2)
    assert "the observer ended with status 7" in run.log.read_text()
    assert [pause_after(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, LONGEST, LONGEST]
    assert [pause_after(n, AWAY) for n in range(1, 6)] == [1, 2, 4, 4, 4], "Redis may be back at any moment"


#: A watched part is given the descriptor it tells on: $2. It may be silent for a second from now on.
SOON_SILENT = "exec 3>&$2; echo '1 serving' >&3; "


def test_a_part_that_keeps_silent_is_asked_for_its_stacks_killed_and_started_again(supervised: MakeSupervised) -> None:
    all_of_it = supervised(
        watched=SOON_SILENT + "trap 'echo these are its stacks >&3' ABRT; while :; do sleep 0.1; done",
        observer=STAY,
        grace=2,
    )
    first = all_of_it.nth("watched", 1)
    assert all_of_it.nth("watched", 2) != first
    assert not alive(first)
    log = all_of_it.log.read_text()
    assert log.index("the watched hangs: it was silent") < log.index("the watched is killed")
    assert log.index("the watched is killed") < log.index("the stacks of the watched:\nthese are its stacks")
    assert "the watched was killed by SIGKILL" in log, "it counts as a crash"
    assert len(all_of_it.pids("observer")) == 1


def test_a_part_that_goes_on_after_all_is_left_alone(supervised: MakeSupervised, tmp_path: Path) -> None:
    through = tmp_path / "through"
    later = f"sleep 3; while :; do echo '2 serving' >&3; echo . >> {through}; sleep 0.2; done"
    all_of_it = supervised(watched=SOON_SILENT + later, grace=4)
    eventually(lambda: through.exists() and len(through.read_text()) > 2 * 20, "four seconds more")
    assert len(all_of_it.pids("watched")) == 1
    assert "hangs" not in all_of_it.log.read_text()


def test_a_part_that_says_that_it_goes_on_is_left_alone(supervised: MakeSupervised, tmp_path: Path) -> None:
    turns = tmp_path / "turns"
    all_of_it = supervised(
        watched=f"exec 3>&$2; while :; do echo '2 serving' >&3; echo . >> {turns}; sleep 0.2; done",
        observer="exit 7",
    )
    eventually(lambda: turns.exists() and len(turns.read_text()) > 2 * 20, "twenty turns, 4 s")
    assert len(all_of_it.pids("watched")) == 1
    assert "hangs" not in all_of_it.log.read_text()


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_service_manager_hears_of_readiness_life_and_the_end(
    supervised: MakeSupervised, tmp_path: Path, *, abstract: bool
) -> None:
    name = f"@peerlane-test-{os.getpid()}" if abstract else str(tmp_path / "n")
    go_on = tmp_path / "go-on"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + name[1:] if abstract else name)
        heard.settimeout(20)
        run = supervised(
            {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"},
            watched=f"exec 3>&$2; echo '600 starting' >&3; while [ ! -e {go_on} ]; do sleep 0.1; done;"
            " echo '600 serving' >&3; exec sleep 600",
            observer=f"env > {tmp_path}/environment; exec sleep 600",
        )
        run.nth("watched", 1)
        assert heard.recv(4096) == b"WATCHDOG=1", "ready is who serves"
        go_on.touch()
        eventually(lambda: heard.recv(4096) == b"READY=1\nSTATUS=the lane is served", "readiness")
        assert heard.recv(4096) == b"WATCHDOG=1"
        assert "NOTIFY_SOCKET" not in (tmp_path / "environment").read_text(), "the children have nothing to say there"
        run.process.terminate()
        eventually(lambda: heard.recv(4096) == b"STOPPING=1\nSTATUS=ending", "the end")


def test_an_observer_that_does_not_serve_yet_keeps_no_gateway_from_being_ready(
    supervised: MakeSupervised, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "n"))
        heard.settimeout(20)
        supervised(
            {"NOTIFY_SOCKET": str(tmp_path / "n")},
            watched="echo '600 serving' >&$2; exec sleep 600",
            watched_observer="echo '600 starting' >&$2; exec sleep 600",
        )
        assert heard.recv(4096) == b"READY=1\nSTATUS=the lane is served"


def test_a_part_that_follows_is_started_once_the_others_serve(supervised: MakeSupervised, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    run = supervised(
        following=600,
        watched=f"exec 3>&$2; while [ ! -e {go_on} ]; do sleep 0.1; done; echo '600 serving' >&3; {STAY}",
        follower=STAY,
    )
    run.nth("watched", 1)
    assert not run.pids("follower")
    go_on.touch()
    assert alive(run.nth("follower", 1))


def test_a_part_that_follows_does_not_wait_for_ever(supervised: MakeSupervised) -> None:
    run = supervised(following=1, watched=f"echo '600 starting' >&$2; {STAY}", follower=STAY)
    assert alive(run.nth("follower", 1))


def test_a_part_that_followed_is_started_again_on_its_own(supervised: MakeSupervised) -> None:
    run = supervised(following=600, watched=f"echo '600 serving' >&$2; {STAY}", follower=STAY)
    os.kill(run.nth("follower", 1), signal.SIGKILL)
    assert alive(run.nth("follower", 2))
    assert len(run.pids("watched")) == 1


def test_an_observer_says_that_it_goes_on(shared_gateway: GatewayProcess, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    command = ["-m", "peerlane.workers.cli", "gateway", "run", shared_gateway.name]
    variables = {f"PEERLANE_{name.upper()}": as_variable(value) for name, value in shared_gateway.settings.items()}
    with (tmp_path / "log").open("wb") as log, os.fdopen(reading, "rb", buffering=0) as pulse:
        observer = subprocess.Popen(
            [sys.executable, *command, "--only", "observer", "--pulse", str(writing)],
            env=clean_environment() | variables,
            pass_fds=[writing],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        os.close(writing)
        try:
            said = b""
            while said.count(b"serving") < 3:
                more = pulse.read(4096)
                assert more, f"it ended:\n{(tmp_path / 'log').read_text()}"
                said += more
            first, *_, last = said.decode().split()
            assert float(first) >= LONG, "a start may take long"
            assert last == "serving"
            assert f"{SILENCE:g} serving" in said.decode(), "between two turns it is expected soon"
        finally:
            observer.kill()
            observer.wait()


def test_a_socket_that_nobody_listens_on_does_no_harm(supervised: MakeSupervised, tmp_path: Path) -> None:
    gone = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"}
    run = supervised(gone, watched="echo '600 serving' >&$2; exec sleep 600")
    run.nth("watched", 1)
    run.process.terminate()
    assert run.process.wait(20) == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_ends_all_and_says_0(supervised: MakeSupervised, how: signal.Signals) -> None:
    run = supervised(writer=STAY, observer=STAY)
    pids = [run.nth("writer", 1), run.nth("observer", 1)]
    run.process.send_signal(how)
    assert run.process.wait(20) == 0
    assert [pid for pid in pids if alive(pid)] == []


def test_nothing_outlives_it_even_if_it_is_killed(supervised: MakeSupervised) -> None:
    run = supervised(writer=STAY, observer=STAY)
    pids = [run.nth("writer", 1), run.nth("observer", 1)]
    run.process.kill()
    eventually(lambda: not any(map(alive, pids)), "the end of what it had started")


@pytest.mark.parametrize("status", [1, 2])
def test_a_writer_that_must_not_run_ends_all_with_its_status(
    supervised: MakeSupervised, status: int, tmp_path: Path
) -> None:
    run = supervised(observer=STAY, writer=f"while [ ! -s {tmp_path}/observer ]; do :; done; exit {status}")
    assert run.process.wait(20) == status
    assert not any(alive(pid) for pid in run.pids("observer"))


def test_a_writer_that_has_served_is_started_again_however_it_fails(supervised: MakeSupervised, tmp_path: Path) -> None:
    served = tmp_path / "served"
    script = f"[ -e {served} ] && exit 1; touch {served}; echo '600 serving' >&$2; exit 1"
    run = supervised(watched_writer=script, observer=STAY)
    run.nth("watched_writer", 3)
    assert run.process.poll() is None
    assert len(run.pids("observer")) == 1, "the other is left alone"


def test_but_not_if_its_lane_is_anothers(supervised: MakeSupervised) -> None:
    run = supervised(watched_writer=f"echo '600 serving' >&$2; exit {HELD}")
    assert run.process.wait(20) == 1
    assert len(run.pids("watched_writer")) == 1


def test_a_first_start_that_fails_at_once_ends_all(supervised: MakeSupervised) -> None:
    assert supervised(watched_writer="exit 1").process.wait(20) == 1


def test_what_is_final_and_what_is_a_crash() -> None:
    assert writer_is_final(1, 5)
    assert not writer_is_final(1, 3600)
    assert writer_is_final(HELD, 3600)
    assert not any(writer_is_final(status, 5) for status in (0, 3, -9))
    assert observer_is_final(2, 0)
    assert not any(observer_is_final(status, 5) for status in (0, 1, 3, -9))


class GatewayRun:
    """``peerlane gateway run NAME`` on the memory data plane."""

    def __init__(self, name: str, url: str, directory: Path, **environment: str) -> None:
        self.log = directory / f"{os.urandom(4).hex()}.log"
        variables = {"REDIS_URL": url, "PRIVATE_KEY_FILE": str(directory / "key"), "SWEEP_EVERY": "1"}
        environment |= clean_environment() | {f"PEERLANE_{key}": value for key, value in variables.items()}
        command = ["-m", "peerlane.workers.cli", "gateway", "run", name, "--dataplane", "memory"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )


def test_gateway_run_serves_and_observes_and_survives_the_loss_of_either(
    redis_server: RedisServer, settings: MakeSettings, tmp_path: Path
) -> None:
    name = new_name()
    redis = Redis.from_url(redis_server.url, decode_responses=True)
    run = GatewayRun(name, redis_server.url, tmp_path)

    def fact(key: str, field: str) -> int:
        return int(redis.hget(key, field) or 0)

    def serving(since: int = 0) -> int:
        fields = redis.hgetall(names.gateway_key(name))
        fresh = fields.get("phase") == "serving" and int(fields.get("holder_pid", 0)) != since
        return int(fields["holder_pid"]) if fresh else 0

    def observing(since: int = 0) -> int:
        pid = fact(names.observer_key(name), "pid")
        return pid if pid != since and fact(names.observer_key(name), "heartbeat") else 0

    try:
        writer = eventually(serving, "a served lane")
        observer = eventually(observing, "an observer")
        os.kill(writer, signal.SIGKILL)
        os.kill(observer, signal.SIGKILL)
        writer = eventually(lambda: serving(writer), "another writer")
        observer = eventually(lambda: observing(observer), "another observer")

        second = GatewayRun(name, redis_server.url, tmp_path)
        assert second.process.wait(30) == 1
        assert "already has a writer" in second.log.read_text()
        assert alive(writer)
        assert alive(observer)

        app = PeerlaneApp(settings(redis_url=redis_server.url))
        assert upkeep.sweep(app, name, timeout=10)["outcome"] == "swept"
        close(app)
        run.process.terminate()
        assert run.process.wait(30) == 0
        assert not alive(writer)
        assert not alive(observer)
        assert fact(names.observer_key(name), "heartbeat") == 0
    finally:
        run.process.kill()
        run.process.wait()
        redis.close()


@pytest.mark.slow("a process is ended after 30 s of silence, and what serves must not be ended by mistake meanwhile")
def test_writer_and_observer_that_hang_are_ended_with_their_stacks_in_the_log_and_others_follow(
    redis_server: RedisServer, settings: MakeSettings, tmp_path: Path
) -> None:
    name, control = new_name(), tmp_path / "failpoints"
    run = GatewayRun(name, redis_server.url, tmp_path, PEERLANE_TEST_FAILPOINTS=str(control))
    app = PeerlaneApp(settings(redis_url=redis_server.url))
    lanes, api = lanes_of(app), Gateway(name, app=app)

    def observing() -> int:
        fields = redis_server.redis.hgetall(names.observer_key(name))
        return int(fields.get("pid", 0)) if int(fields.get("heartbeat", 0)) else 0

    try:
        eventually(lambda: lanes.look(name).state == "active", "a served lane")
        first = lanes.look(name).facts["holder_pid"]
        observer = eventually(observing, "an observer")
        eventually(lambda: redis_server.redis.hget(names.observer_key(name), "sweep"), "its first sweep")
        beat = redis_server.redis.hget(names.observer_key(name), "heartbeat")
        eventually(lambda: redis_server.redis.hget(names.observer_key(name), "heartbeat") != beat, "a turn after it")
        os.kill(observer, signal.SIGSTOP)
        control.write_text("before_apply:hang")
        with pytest.raises(TimedOut):
            api.create_peer(some_key(), timeout=1)
        eventually(lambda: lanes.look(name).state == "stuck", "it being told as stuck")
        eventually(lambda: not read_gateway(app, name).observed, "it being told as silent")
        eventually(lambda: "the observer hangs" in run.log.read_text(), "the supervisor noticing it")
        eventually(lambda: observing() not in (0, observer), "another observer")
        eventually(lambda: "the writer hangs" in run.log.read_text(), "the supervisor noticing it")
        control.write_text("")
        eventually(lambda: lanes.look(name).state == "active", "another writer")
        assert lanes.look(name).facts["holder_pid"] != first
        assert api.create_peer(some_key(), timeout=20).outcome == "created"
        log = run.log.read_text()
        assert "failpoints.py" in log.partition("Current thread")[2], "where it hung"
        assert "the writer was killed by SIGABRT" in log
        assert log.count("the writer hangs") == 1
        assert "the observer was killed by SIGKILL" in log, "one that is stopped prints nothing"
    finally:
        close(app)
        run.process.kill()
        run.process.wait()
