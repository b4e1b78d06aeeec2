"""Faults of the network: links that swallow, break, drag and lose."""

from __future__ import annotations

import subprocess
import time

from fault_play import Run


def writer_half_open(run: Run) -> None:
    run.soon()
    run.site.writer_link.half_open()
    time.sleep(run.rng.uniform(0.5, 4.0))
    run.site.writer_link.mend()


def writer_cut_off(run: Run) -> None:
    run.soon()
    run.site.writer_link.cut()
    time.sleep(run.rng.uniform(0.1, 4.0))
    run.site.writer_link.mend()


def callers_cut_off(run: Run) -> None:
    run.soon()
    with run.unreachable():
        if run.rng.random() < 0.5:
            run.site.caller_link.cut()
        else:
            run.site.caller_link.half_open()
        time.sleep(run.rng.uniform(0.1, 3.0))
        run.site.caller_link.mend()


def replies_reset(run: Run) -> None:
    """Commands that took effect and whose replies never came: LPUSH, EVALSHA, GET, whichever is next."""
    for _ in range(run.rng.randint(4, 12)):
        run.soon(0.05, 0.4)
        if run.rng.random() < 0.5:
            with run.unreachable():
                run.site.caller_link.reset_mid_reply(run.rng.randint(0, 3))
                time.sleep(0.05)
        else:
            run.site.writer_link.reset_mid_reply(run.rng.randint(0, 3))
    run.site.writer_link.mend()
    with run.unreachable():
        run.site.caller_link.mend()


def slow_links(run: Run) -> None:
    for link in (run.site.writer_link, run.site.caller_link):
        link.latency, link.jitter = run.rng.uniform(0.005, 0.04), run.rng.uniform(0, 0.04)
        link.bandwidth = run.rng.choice([0, 0, 200_000])
    time.sleep(3.0)
    for link in (run.site.writer_link, run.site.caller_link):
        link.mend()


def packets_lost(run: Run) -> None:
    """Between the gateway's namespace and Redis': delay and loss each way, now and then all of it."""
    shape = ["delay", f"{run.rng.randint(5, 60)}ms", "10ms", "loss", f"{run.rng.randint(1, 8)}%"]
    netem(run, "add", *shape)
    run.soon(0.5, 1.5)
    if run.rng.random() < 0.5:
        netem(run, "change", "loss", "100%")
        time.sleep(run.rng.uniform(0.5, 4.0))
        netem(run, "change", *shape)
        time.sleep(1.0)
    netem(run, "del")


def netem(run: Run, act: str, *shape: str) -> None:
    netem = ["netem", *shape] if shape else []
    for where in ([], ["-n", run.site.namespace]):
        command = ["tc", *where, "qdisc", act, "dev", "flt0", "root", *netem]
        subprocess.run(command, check=True, capture_output=True)
