"""The command line as people and programs run it: in this process for what it says, as a process for how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from click.testing import CliRunner, Result
from gateways import ROOT, GatewayProcess, clean_environment

from peerlane.workers.cli.main import main


def peerlane(*words: str | Path, redis: str = "unix:///nonexistent/redis.sock", stdin: str | bytes = "") -> Result:
    """Run a command in this process. ``redis`` is a URL."""
    return CliRunner().invoke(main, ["--redis", redis, *map(str, words)], input=stdin)


def document(result: Result) -> dict[str, Any]:
    """The one JSON document that a command printed, and nothing beside it."""
    lines = result.stdout.splitlines()
    assert len(lines) == 1, f"not one document: {result.output}"
    return cast("dict[str, Any]", json.loads(lines[0]))


def asked(*words: str | Path, redis_url: str, expect: int = 0) -> dict[str, Any]:
    """What a program gets from a command run in this process; AssertionError on another exit status."""
    result = peerlane(*words, "--json", redis=redis_url)
    assert result.exit_code == expect, f"{words}: status {result.exit_code}\n{result.output}"
    return document(result)


class Shell:
    """Commands for one gateway's Redis."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.url = str(gateway.settings["redis_url"])

    def run(self, *words: str | Path, stdin: str | bytes = "") -> Result:
        """What a person gets."""
        return peerlane(*words, redis=self.url, stdin=stdin)

    def ask(self, *words: str | Path, status: int = 0, stdin: str | bytes = "") -> dict[str, Any]:
        """What a program gets, with the status that is expected."""
        result = self.run(*words, "--json", stdin=stdin)
        assert result.exit_code == status, result.output
        return document(result)


def spawned(*words: str | Path, redis: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own, in a session of its own."""
    environment = clean_environment() | ({} if redis is None else {"PEERLANE_REDIS_URL": redis})
    return subprocess.Popen(
        [sys.executable, "-m", "peerlane.workers.cli", *map(str, words)],
        cwd=ROOT,
        env=environment | options.pop("environment", {}),
        stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        start_new_session=True,
        **options,
    )


def ended(process: subprocess.Popen[str], within: float = 60.0) -> tuple[int, str, str]:
    """Status, standard output and standard error, once it has ended."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end within {within:g} s: {out}{err}") from None
    return process.returncode, out, err


def processes_of_session(session: int) -> Sequence[int]:
    """Every process of a session that still lives."""
    pids: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            pids.append(int(path.parent.name))
    return pids
