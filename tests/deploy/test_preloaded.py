"""Processes that tests fork are as those that they would start: session, environment, files, status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import preloaded
import pytest
from gateways import ROOT, GatewayProcess, MakeGateway, clean_environment
from preloaded import Forked, Running
from waiting import PATIENCE

CELERY = [sys.executable, "-m", "celery"]


def run(log: Path, *words: str, cwd: Path = ROOT, command: list[str] = CELERY, **variables: str) -> Running:
    with log.open("wb") as output:
        return preloaded.start([*command, *words], cwd, clean_environment() | variables, output)


def test_a_command_ends_with_its_own_status_and_says_what_it_says(tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = run(log, "report")
    assert isinstance(running, Forked)
    assert running.wait(PATIENCE) == running.poll() == 0
    assert "software -> celery:" in log.read_text()
    assert run(log, "frobnicate").wait(PATIENCE) == 2
    assert "No such command" in log.read_text()


def test_it_runs_where_and_with_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(
        "import os, sys\n"
        "print(os.getcwd(), os.environ.get('ONLY_HERE'), os.getsid(0) == os.getpid(), sys.argv[1:])\n"
        "print(sorted(os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)))\n"
        "print('peerlane.workers.writer.writer' in sys.modules, 'peerlane.workers.gateway' in sys.modules)\n"
        "raise SystemExit(7)\n"
    )
    log = tmp_path / "log"
    assert run(log, "-A", "here", "report", cwd=tmp_path, ONLY_HERE="yes").wait(PATIENCE) == 7
    assert log.read_text().splitlines()[:3] == [
        f"{tmp_path} yes True ['-A', 'here', 'report']",
        str(sorted(["/dev/null", str(log), str(log)])),
        "True False",
    ]


def test_a_gateway_has_no_file_of_another_and_a_killed_one_is_told_by_its_signal(
    shared_gateway: GatewayProcess, gateway: MakeGateway
) -> None:
    site = gateway()
    files = [str(path.readlink()) for path in Path(f"/proc/{site.pid}/fd").iterdir()]
    assert [file for file in files if file.endswith(".log")] == [f"{site.directory / site.name}.log"] * 2
    assert shared_gateway.status is None
    site.kill()
    assert site.status == -9


@pytest.mark.parametrize("name", ["PYTHONPATH", "PEERLANE_TEST_DEVICE"])
def test_what_is_read_before_is_given_to_a_new_interpreter(name: str, tmp_path: Path) -> None:
    variables: dict[str, Any] = {name: str(tmp_path)}
    running = run(tmp_path / "log", "report", **variables)
    assert not isinstance(running, Forked)
    assert running.wait(PATIENCE) == 0
    other = run(tmp_path / "log", command=[sys.executable, "-c", "raise SystemExit(3)"])
    assert not isinstance(other, Forked)
    assert other.wait(PATIENCE) == 3


def test_a_module_that_reads_a_variable_when_it_is_loaded_has_it_and_no_other_process_does(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(
        "from peerlane.workers.failpoints import _failpoints as f\nprint(f and f._path)\nraise SystemExit(7)\n"
    )
    log = tmp_path / "log"
    given: tuple[tuple[dict[str, Any], str], ...] = (
        ({"PEERLANE_TEST_FAILPOINTS": "/some/file"}, "/some/file"),
        ({}, "None"),
    )
    for variables, said in given:
        running = run(log, "-A", "here", "report", cwd=tmp_path, **variables)
        assert isinstance(running, Forked)
        assert running.wait(PATIENCE) == 7
        assert log.read_text() == f"{said}\n"


@pytest.mark.parametrize("variables", [{}, {"PYTHONHASHSEED": "1"}], ids=["forked", "started"])
def test_a_command_reads_what_it_is_given_and_its_errors_are_apart(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(
        "import sys\nprint(sys.stdin.read().upper())\nprint('no', file=sys.stderr)\nraise SystemExit(5)\n"
    )
    command = [*CELERY, "-A", "here", "report"]
    ended = preloaded.run(command, tmp_path, clean_environment() | variables, source=b"a word")
    assert (ended.returncode, ended.stdout, ended.stderr) == (5, b"A WORD\n", b"no\n")


def test_a_command_of_ours_ends_as_one_that_was_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "peerlane.workers.cli", "gateway", "import"]
    forked = preloaded.run(command, tmp_path, clean_environment())
    started = preloaded.run(["env", *command], tmp_path, clean_environment())
    assert (forked.returncode, forked.stdout, forked.stderr) == (2, started.stdout, started.stderr)
    assert started.returncode == 2
    assert b"Missing argument" in forked.stderr
