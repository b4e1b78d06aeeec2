"""Counts the calls, functions and files that a create, a sweep and ``peerlane gateway list`` go through.

    make walks          or: python tests/bench/walks.py [--json] [--calls]

Real processes on a real server, with the memory data plane. Each request is recorded after one of its kind has warmed
the process up; ``gateway list`` is a whole process, imports included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from bench_folders import ROOT
from gateways import GatewayProcess, clean_environment, close
from keys import some_key
from rich.console import Console
from rich.table import Table
from servers import RedisServer
from waiting import eventually
from walk_recorder import Call, Recorder

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.admin.maintenance import sweep

RECORDER = str(ROOT / "tests" / "bench" / "walk_recorder.py")
NAME = "walks"


def recorded(process: GatewayProcess, application: str) -> Path:
    """Have the process record its requests; the file they go to."""
    output = process.directory / "calls"
    output.touch()
    process.program = [RECORDER, str(output), "request", "celery", "-A", application, "worker", "-l"]
    return output


def lines(output: Path) -> list[list[Call]]:
    """Every recorded walk; the last line may still be unfinished."""
    finished = output.read_text().split("\n")[:-1]
    return [[(file, function) for file, function in json.loads(line)] for line in finished]


def next_walk(output: Path, earlier: int) -> list[Call]:
    """The walk of the last request, once it is recorded. ``earlier`` were recorded before."""
    eventually(lambda: len(lines(output)) > earlier, "the request's walk")
    return lines(output)[-1]


@contextmanager
def process(server: RedisServer, directory: Path, application: str) -> Generator[tuple[GatewayProcess, Path]]:
    """A writer or an observer that records its requests."""
    directory.mkdir()
    key = directory.parent / f"{NAME}.key"
    worker = GatewayProcess(NAME, server.url, directory, dataplane="memory", private_key_file=key)
    output = recorded(worker, application)
    try:
        worker.start(wait=application.endswith("gateway"))
        eventually(lambda: "ready." in worker.log, f"{application} to be ready")
        yield worker, output
    finally:
        worker.finish()


def caller_walk(gateway: Gateway) -> list[Call]:
    """One create, as its caller goes through it."""
    recorder = Recorder()
    recorder.start()
    try:
        gateway.create_peer(public_key=some_key(), timeout=30)
    finally:
        sys.setprofile(None)
    return recorder.calls


def sweep_walk(server: RedisServer, gateway: Gateway, app: PeerlaneApp, directory: Path) -> list[Call]:
    """A sweep that removes one expired peer, as the observer goes through it."""
    with process(server, directory, "peerlane.workers.observer") as (_, output):
        eventually(
            lambda: server.redis.hget(names.observer_key(NAME), "sweep"), "the sweep that a start makes by itself"
        )
        sweep(app, NAME, timeout=60)
        next_walk(output, 0)
        gateway.create_peer(public_key=some_key(), ttl=1, timeout=30)
        begun = server.redis.time()[0]
        eventually(lambda: server.redis.time()[0] > begun + 2, "the peer to expire")
        earlier = len(lines(output))
        report = sweep(app, NAME, timeout=60)
        if report["removed"] != {"expired": 1}:
            raise RuntimeError(f"the sweep removed no peer: {report}")
        return next_walk(output, earlier)


def list_walk(server: RedisServer, directory: Path) -> list[Call]:
    """``peerlane gateway list``, the whole process."""
    output = directory / "list"
    subprocess.run(
        [sys.executable, RECORDER, str(output), "process", "peerlane", "gateway", "list"],
        cwd=ROOT,
        env=clean_environment() | {"PEERLANE_REDIS_URL": server.url},
        check=True,
        capture_output=True,
    )
    return lines(output)[0]


def measure() -> dict[str, list[Call]]:
    """The four walks, by name."""
    directory = Path(tempfile.mkdtemp(prefix="peerlane-"))
    server = RedisServer(directory)
    app = PeerlaneApp(read(redis_url=server.url))
    try:
        server.start()
        gateway = Gateway(NAME, app=app)
        with process(server, directory / "writer", "peerlane.workers.gateway") as (_, output):
            gateway.create_peer(public_key=some_key(), timeout=30)
            next_walk(output, 0)
            # A caller looks at its lane once a second: the shortest of three is without that.
            callers = [caller_walk(gateway) for _ in range(3)]
            return {
                "create: caller": min(callers, key=len),
                "create: writer": next_walk(output, len(callers)),
                "sweep of one expired peer: observer": sweep_walk(server, gateway, app, directory / "observer"),
                "peerlane gateway list": list_walk(server, directory),
            }
    finally:
        close(app)
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def counts(calls: list[Call]) -> dict[str, int]:
    """A walk in figures. A crossing is a call from another file than the call before."""
    files = [file for file, _ in calls]
    return {
        "calls": len(calls),
        "functions": len(set(calls)),
        "files": len(set(files)),
        "crossings": sum(before != after for before, after in pairwise(files)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--calls", action="store_true", help="with --json: every call as [file, function] too")
    chosen = parser.parse_args()
    walks = measure()
    if chosen.json:
        document = {
            name: counts(calls)
            | ({"walk": calls} if chosen.calls else {"entered": sorted({file for file, _ in calls})})
            for name, calls in walks.items()
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    table = Table("walk", *counts([]))
    for name, calls in walks.items():
        table.add_row(name, *(str(figure) for figure in counts(calls).values()))
    Console().print(table)


if __name__ == "__main__":
    main()
