"""``peerlane demo`` as a newcomer starts it: it shows what it promises, ends by itself, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ended, spawned
from redis import Redis
from waiting import eventually

from peerlane.config import names

#: Seconds for a whole demo on a slow machine under load.
PATIENCE = 240.0

pytestmark = pytest.mark.timeout(400)

again = pytest.mark.slow("starts a whole demo once more, a dozen processes: make test has one of its runs")


@pytest.fixture
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for what the demo stores, so that a test sees what is left; its path is short enough for sockets."""
    return tmp_path_factory.mktemp("d")


def demo(here: Path, *words: str) -> subprocess.Popen[str]:
    """Start a demo. All of its processes can be told by a variable."""
    return spawned("demo", *words, environment={"TMPDIR": str(here), "DEMO_OF_A_TEST": str(here)})


def left_of(here: Path) -> list[str]:
    """Processes that the demo started and that still live, by their command lines."""
    processes: list[str] = []
    mark = f"DEMO_OF_A_TEST={here}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                processes.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return processes


@again
def test_it_shows_what_it_promises_and_ends_by_itself(here: Path) -> None:
    status, out, err = ended(demo(here, "--peers", "50"), PATIENCE)
    assert status == 0, out + err
    assert err == ""
    assert re.search(r"data plane +(kernel, each gateway|memory, because )", out)
    assert re.search(r"Flower at http://127\.0\.0\.1:\d+", out)
    created = re.search(r"created, 32 at a time +45 +[\d,]+ peers/s +[\d.]+ ms +[\d.]+ ms", out)
    deleted = re.search(r"deleted, 32 at a time +51 +[\d,]+ peers/s +[\d.]+ ms +[\d.]+ ms", out)
    assert created, out
    assert deleted, out
    assert re.search(r"removed: 12 expired peers, in [\d.]+ s\n +left: the other 50 peers", out), out
    assert re.search(r"^fra +active .* 25 ", out, flags=re.MULTILINE), out
    assert re.search(r"^\[Interface\]\nPrivateKey = \S{44}\nAddress = 10\.8\.", out, flags=re.MULTILINE)
    assert len(re.findall(r"^██[█▀▄ ]+██$", out, flags=re.MULTILINE)) > 20
    assert "error: the peer is there already with another keepalive" in out
    assert "TimedOut: no outcome within 1 s: the request was cancelled and will never take effect" in out
    assert "'absent'" in out
    assert "left: 0 peers" in out
    assert "\x1b" not in out, "no terminal, no colours"
    assert "Traceback" not in out
    assert left_of(here) == []
    assert list(here.iterdir()) == []


def test_with_json_it_is_one_document(here: Path) -> None:
    status, out, err = ended(demo(here, "--peers", "20", "--gateways", "1", "--no-flower", "--json"), PATIENCE)
    assert (status, err) == (0, ""), out + err
    answer = json.loads(out)
    assert answer["gateways"] == ["iad"]
    assert answer["dataplane"] in {"kernel", "memory"}
    assert answer["flower_url"] is None
    assert answer["created"]["count"] == 18
    assert answer["deleted"]["count"] == 21
    assert (answer["swept"]["count"], answer["swept"]["left"]) == (5, 20)
    assert answer["deleted"]["p99_ms"] >= answer["deleted"]["p50_ms"] > 0
    assert answer["timeout"]["code"] == "timed_out"
    assert left_of(here) == []


@again
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_it_starts_it_stops_all_that_it_started(number: signal.Signals, here: Path) -> None:
    process = demo(here, "--no-flower")
    _interrupted(process, number, here, lambda: len(left_of(here)) >= 4, "its processes running")


@again
def test_interrupted_while_it_creates_it_stops_all_that_it_started(here: Path) -> None:
    process = demo(here, "--no-flower", "--peers", "5000")
    _interrupted(process, signal.SIGINT, here, lambda: _peers(here) > 20, "peers being created")


def _peers(here: Path) -> int:
    count = 0
    for socket in here.glob("*/valkey.sock"):
        with Redis(unix_socket_path=str(socket)) as redis:
            count += redis.hlen(names.peers_key("iad"))
    return count


def _interrupted(
    process: subprocess.Popen[str], number: signal.Signals, here: Path, reached: Callable[[], bool], awaited: str
) -> None:
    eventually(lambda: reached() or process.poll() is not None, awaited, within=PATIENCE)
    process.send_signal(number)
    status, out, err = ended(process, PATIENCE)
    assert status == 128 + number, err
    assert "Traceback" not in out + err
    assert left_of(here) == []
    assert list(here.iterdir()) == []


@again
def test_kept_it_runs_until_ctrl_c_and_its_addresses_work(here: Path) -> None:
    process = demo(here, "--peers", "10", "--no-flower", "--keep")
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("peerlane peer list"):
            break
    (url,) = (line.split("=", 1)[1].strip() for line in said if line.startswith("export PEERLANE_REDIS_URL="))
    status, out, err = ended(spawned("peer", "create", "iad", "--json", redis=url))
    assert status == 0, err
    assert json.loads(out)["outcome"] == "created"
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process, PATIENCE)
    assert (status, err) == (0, "")
    assert "has been stopped" in out
    assert left_of(here) == []
    assert list(here.iterdir()) == []


def test_a_part_that_does_not_come_up_is_told_with_its_last_words(here: Path, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v=7.2.4 sha=0" && exit\necho no memory\nexit 9\n'
    )
    program.chmod(0o755)
    environment = {"TMPDIR": str(here), "DEMO_OF_A_TEST": str(here), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    status, out, err = ended(spawned("demo", "--no-flower", environment=environment), PATIENCE)
    assert (status, out) == (1, "")
    assert "valkey ended with status 9" in err
    assert "no memory" in err
    assert left_of(here) == []
    assert list(here.iterdir()) == []
