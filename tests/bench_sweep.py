"""A caller's latency while stale peers are swept from a real device; where that is, tests/kernel_bridge.py finds.

``python tests/bench_sweep.py [PEERS [SECONDS]]``; by default 50000 peers, 45000 of them stale, and 20 quiet seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gateways import ROOT, GatewayProcess, close, new_name
from kernel_bridge import MISSING, find_kernel
from observers import Observer, ending
from servers import RedisServer
from stale import SETTINGS, create_during_a_sweep, crowd, percentile, quiet_creates, told
from waiting import Stopwatch

from config.celery_app import PeerlaneApp
from config.settings import read
from tasks import Gateway


def bench(directory: Path, count: int, seconds: float) -> int:
    """Print the figures; 1 if others went than the stale ones."""
    server = RedisServer(directory)
    server.start()
    name = new_name()
    site = GatewayProcess(name, server.url, directory, dataplane="kernel", interface="wgbench", **SETTINGS)
    app = PeerlaneApp(read(redis_url=server.url))
    try:
        expected = crowd(server.redis, name, count)
        watch = Stopwatch()
        site.start(wait=False)
        site.await_serving(within=300)
        say(f"{count:,} peers brought back to the device in {watch.seconds:.1f} s, with the start of the process")
        peers = Gateway(name, app=app)
        with ending(observer := Observer(site)):
            quiet: list[float] = []
            busy: list[float] = []
            made = quiet_creates(peers, seconds, quiet)
            report, more = create_during_a_sweep(app, peers, server.redis, busy)
            left = {peer.public_key for peer in peers.peers()}
            right = left == {*expected.staying, *made, *more}
            say(told("nothing else goes on", quiet))
            say(told("during the sweep", busy))
            ratio = percentile(busy, 0.99) / percentile(quiet, 0.99)
            removed = sum(report["removed"].values())
            say(f"p99 is {ratio:.2f} times what it was; {removed:,} peers removed in {report['seconds']:.1f} s")
            say(f"of {len(expected.stale):,} stale; exactly those: {'yes' if right else 'NO'}; no create failed")
            for task in ("create_peer", "remove_peers"):
                took = [float(found) for found in re.findall(rf"{task}\[[^]]*\] succeeded in ([0-9.e-]+)s", site.log)]
                say(told(f"in the writer: {task}", took))
            say(f"report: {report}")
            say(f"the last reading of counters: {observer.told('reading')}")
        return 0 if right else 1
    finally:
        close(app)
        site.finish()
        server.kill()


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Here with ``--here``, else where there is a kernel with WireGuard."""
    if arguments[:1] != ["--here"]:
        kernel = find_kernel(ROOT)
        if kernel is None:
            say(f"skipped: {MISSING}")
            return 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [*kernel, sys.executable, str(Path(__file__).resolve()), "--here", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    count, seconds = (*map(float, arguments[1:3]), *(50_000.0, 20.0)[len(arguments) - 1 :])
    place = Path(tempfile.mkdtemp(prefix="peerlane-"))
    try:
        return bench(place, int(count), seconds)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
