"""What must not be: two writers, stale writers, messages twice and out of order."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any, cast

from fault_play import Run

from peerlane.config import names


def second_writer(run: Run) -> None:
    run.soon()
    second = run.site.make_gateway("second")
    with second.log.open("ab") as log:
        done = subprocess.run(
            second.command, env=second.environment, stdout=log, stderr=log, check=False, timeout=60, cwd=Path.cwd()
        )
    assert done.returncode != 0, "a second writer of the device has served"
    assert f"process {run.site.gateway.pid}" in second.said, second.said[-2000:]


def stale_writer(run: Run) -> None:
    """The writer is stopped; meanwhile a newer one has been there, and has deleted a peer; then it goes on."""
    site = run.site
    if run.rng.random() < 0.5:
        site.fail_at(
            f"{run.rng.choice(['before_apply', 'before_commit', 'after_commit'])}:stop:{run.rng.randint(1, 8)}"
        )
        run.happened()
    else:
        run.soon()
    site.gateway.pause()
    site.redis.incr(names.epoch_key(site.name))
    time.sleep(run.rng.uniform(0.2, 1.0))
    site.gateway.resume()


def rival_elsewhere(run: Run) -> None:
    """The writer is stopped until another, on its own device, has taken over; then both run, then only the first."""
    site = run.site
    run.soon(0.2, 0.8)
    site.gateway.pause()
    if site.plane == "kernel":
        namespace = f"{site.namespace}r"
        for command in (
            ["ip", "netns", "add", namespace],
            ["ip", "-n", namespace, "link", "set", "lo", "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        rival = site.make_gateway(
            "rival", prefix=["ip", "netns", "exec", namespace], PEERLANE_REDIS_URL=f"unix://{site.socket}"
        )
    else:
        namespace = ""
        rival = site.make_gateway(
            "rival",
            PEERLANE_INTERFACE=f"{site.name}r",
            PEERLANE_TEST_DEVICE=str(site.device_file.with_suffix(".rival")),
        )
    before = int(cast("Any", site.redis.get(names.epoch_key(site.name))))
    rival.start()
    await_epoch(run, before + 1, within=40)
    site.gateway.resume()
    time.sleep(run.rng.uniform(1.0, 3.0))
    rival.leave()
    if namespace:
        subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
    site.device_file.with_suffix(".rival").unlink(missing_ok=True)


def await_epoch(run: Run, epoch: int, *, within: float) -> None:
    until = time.monotonic() + within
    while time.monotonic() < until:
        lane = run.site.look()
        if lane and lane.live and lane.facts.get("phase") == "serving" and int(lane.facts.get("epoch", 0)) >= epoch:
            return
        time.sleep(0.05)
    said = run.site.gateway.said[-3000:]
    raise AssertionError(f"no writer of epoch {epoch} served within {within:g} s; the gateway said:\n{said}")


def messages_twice_and_out_of_order(run: Run) -> None:
    site = run.site
    for _ in range(run.rng.randint(1, 3)):
        run.soon(0.2, 0.6)
        site.gateway.pause()
        time.sleep(run.rng.uniform(0.2, 0.6))
        queue = names.lane_queue(site.name)
        messages = cast("list[str]", site.redis.lrange(queue, 0, -1))
        pipe = site.redis.pipeline(transaction=True)
        copies = [message for message in messages for _ in range(run.rng.randint(1, 3))]
        run.rng.shuffle(copies)
        run.notes.append(f"{len(messages)} messages became {len(copies)}, in another order")
        pipe.delete(queue)
        for message in copies:
            pipe.lpush(queue, message)
        pipe.execute()
        site.gateway.resume()
