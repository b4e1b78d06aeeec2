"""Faults of the hosts: the device goes, callers die and stop, clocks jump."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any, cast

from fault_of_order import await_epoch
from fault_play import Run

from peerlane.config import names

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def device_deleted(run: Run) -> None:
    for _ in range(run.rng.randint(1, 2)):
        run.soon(0.3, 1.5)
        run.site.outside.delete_device()


def callers_killed(run: Run) -> None:
    run.soon(0.3, 2.0)
    run.site.callers.signal(signal.SIGKILL)


def callers_stopped(run: Run) -> None:
    run.soon(0.3, 1.5)
    run.site.callers.signal(signal.SIGSTOP)
    time.sleep(run.rng.uniform(0.5, 3.0))
    run.site.callers.signal(signal.SIGCONT)


def race_of_timeout_and_commit(run: Run) -> None:
    run.site.fail_at(f"before_commit:sleep:{0.15 - run.rng.uniform(0.0, 0.03):.4f}")
    time.sleep(4.5)


def own_clocks(run: Run) -> None:
    """Gateway and callers start on clocks that a file moves."""
    site = run.site
    clock = site.directory / "clock"
    clock.write_text("+0")
    site.gateway.environment |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    # Not libfaketime: it breaks the timed waits of threads, of which callers have many and a writer has none.
    site.callers.environment["PEERLANE_TEST_CLOCK"] = str(clock)
    restart_both(run)


def restart_both(run: Run) -> None:
    site = run.site
    epoch = int(cast("Any", site.redis.get(names.epoch_key(site.name))))
    site.gateway.kill()
    site.callers.end()
    site.callers.start()
    await_epoch(run, epoch + 1, within=120)


def clocks_jump(run: Run) -> None:
    for _ in range(2):
        run.soon(0.3, 1.2)
        (run.site.directory / "clock").write_text(f"{run.rng.choice(['+', '-'])}{run.rng.randint(60, 120)}")


def real_clocks(run: Run) -> None:
    for process in (run.site.gateway, run.site.callers):
        for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "PEERLANE_TEST_CLOCK"):
            process.environment.pop(name, None)
    restart_both(run)


def machine_clock_jumps(run: Run) -> None:
    """The clock of the whole machine, Redis' included: deadlines are on it."""
    run.soon(0.3, 1.5)
    seconds = run.rng.choice([-1, 1]) * run.rng.randint(60, 120)
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    time.sleep(run.rng.uniform(0.5, 2.0))
    time.clock_settime(time.CLOCK_REALTIME, time.time() - seconds)
