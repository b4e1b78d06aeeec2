"""The faults: what is done to a site while its callers call. Every random choice comes from the run's own generator."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from fault_bench import Run, Scenario, Work
from redis.exceptions import RedisError

from config import names

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


# The writer dies or stops.


def _writer_killed(run: Run) -> None:
    run.soon()
    run.site.gateway.kill()


def _writer_killed_while_it_takes_a_message(run: Run) -> None:
    """Redis has handed the message over and the writer has not noted it down: the queue forgets it."""
    run.soon()
    run.site.gateway.pause()
    time.sleep(run.rng.uniform(0.05, 0.6))
    run.site.gateway.kill()


def _killed_at(point: str, *, redelivered: bool = False) -> Scenario:
    def act(run: Run) -> None:
        run.site.fail_at(f"{point}:kill:{run.rng.randint(1, 12)}")
        run.happened()

    def after(run: Run) -> None:
        run.notes.append(f"{run.site.redeliver_now()} redelivered")
        time.sleep(1.5)  # the worker looks for them each second

    return Scenario(f"killed_{point}", act, after=after if redelivered else None)


def _unforeseen(run: Run) -> None:
    point = run.rng.choice(["before_apply", "after_apply", "before_commit", "after_commit"])
    run.site.fail_at(f"{point}:raise:{run.rng.randint(1, 10)}")
    run.happened()


def _writer_stopped(run: Run) -> None:
    run.soon()
    run.site.gateway.pause()
    time.sleep(run.rng.uniform(0.3, 3.0))
    run.site.gateway.resume()


def _killed_in_recovery(run: Run) -> None:
    run.soon(0.5, 1.5)
    run.site.fail_at("between_batches:kill:1")
    run.site.delete_device()
    run.happened(within=6)


# Redis dies, stops, forgets or fills up.


def _redis_killed(run: Run) -> None:
    run.soon()
    with run.unreachable():
        run.site.redis_server.restart_after = run.rng.uniform(0.1, 2.5)
        run.site.redis_server.kill()
        time.sleep(run.site.redis_server.restart_after + 0.1)
    run.site.redis_server.restart_after = 0.3


def _redis_killed_at_commit(run: Run) -> None:
    run.site.fail_at(f"before_commit:stop:{run.rng.randint(1, 10)}")
    if not run.happened():
        return
    with run.unreachable():
        run.site.redis_server.restart_after = 4.0
        run.site.redis_server.kill()
        run.site.gateway.resume()
        time.sleep(4.1)
    run.site.redis_server.restart_after = 0.3


def _redis_loses_its_last_second(run: Run) -> None:
    site = run.site
    site.redis.config_set("appendfsync", "everysec")
    (tail,) = (site.data / "appendonlydir").glob("*.incr.aof")
    before = tail.stat().st_size
    run.soon(0.5, 1.5)
    with run.unreachable():
        site.redis_server.restart_after = 0.6
        site.redis_server.kill()
        time.sleep(0.1)
        size = tail.stat().st_size
        with tail.open("r+b") as file:  # never more than this run has written
            file.truncate(max(before, size - run.rng.randint(200, 8000)))
        time.sleep(0.6)
    run.lost_at = time.monotonic()
    site.monitor.forget_epochs()
    site.redis_server.restart_after = 0.3


def _redis_frozen(run: Run) -> None:
    run.soon()
    with run.unreachable():
        run.site.redis_server.pause()
        time.sleep(run.rng.uniform(0.5, 5.0))
        run.site.redis_server.resume()


def _memory_full(run: Run) -> None:
    run.soon(0.2, 1.0)
    with run.unreachable():  # it answers, and takes no writes: no outcome can be stored
        run.site.redis.config_set("maxmemory", "1")
        time.sleep(run.rng.uniform(1.0, 3.0))
        run.site.redis.config_set("maxmemory", "0")


def _disk_full(run: Run) -> None:
    """With appendfsync always the server ends at the first write that fails; with everysec it takes no writes."""
    site = run.site
    always = run.rng.random() < 0.5
    if not always:
        site.redis.config_set("appendfsync", "everysec")
    run.soon(0.2, 1.0)
    with run.unreachable():
        ballast = site.data / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(65_536)) == 65_536:
                pass
        time.sleep(run.rng.uniform(1.5, 3.0))
        ballast.unlink()
    time.sleep(0.5)
    site.redis_up()
    with suppress(RedisError):
        site.redis.config_set("appendfsync", "always")


# The network.


def _writer_half_open(run: Run) -> None:
    run.soon()
    run.site.writer_link.half_open()
    time.sleep(run.rng.uniform(0.5, 4.0))
    run.site.writer_link.mend()


def _writer_cut_off(run: Run) -> None:
    run.soon()
    run.site.writer_link.cut()
    time.sleep(run.rng.uniform(0.1, 4.0))
    run.site.writer_link.mend()


def _callers_cut_off(run: Run) -> None:
    run.soon()
    with run.unreachable():
        if run.rng.random() < 0.5:
            run.site.caller_link.cut()
        else:
            run.site.caller_link.half_open()
        time.sleep(run.rng.uniform(0.1, 3.0))
        run.site.caller_link.mend()


def _replies_reset(run: Run) -> None:
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


def _slow_links(run: Run) -> None:
    for link in (run.site.writer_link, run.site.caller_link):
        link.latency, link.jitter = run.rng.uniform(0.005, 0.04), run.rng.uniform(0, 0.04)
        link.bandwidth = run.rng.choice([0, 0, 200_000])
    time.sleep(3.0)
    for link in (run.site.writer_link, run.site.caller_link):
        link.mend()


def _packets_lost(run: Run) -> None:
    """Between the gateway's namespace and Redis': delay and loss each way, now and then all of it."""
    shape = ["delay", f"{run.rng.randint(5, 60)}ms", "10ms", "loss", f"{run.rng.randint(1, 8)}%"]
    _netem(run, "add", *shape)
    run.soon(0.5, 1.5)
    if run.rng.random() < 0.5:
        _netem(run, "change", "loss", "100%")
        time.sleep(run.rng.uniform(0.5, 4.0))
        _netem(run, "change", *shape)
        time.sleep(1.0)
    _netem(run, "del")


def _netem(run: Run, act: str, *shape: str) -> None:
    netem = ["netem", *shape] if shape else []
    for where in ([], ["-n", run.site.namespace]):
        command = ["tc", *where, "qdisc", act, "dev", "flt0", "root", *netem]
        subprocess.run(command, check=True, capture_output=True)


# Two writers, stale writers, messages twice and out of order.


def _second_writer(run: Run) -> None:
    run.soon()
    second = run.site.make_gateway("second")
    with second.log.open("ab") as log:
        done = subprocess.run(
            second.command, env=second.environment, stdout=log, stderr=log, check=False, timeout=60, cwd=Path.cwd()
        )
    assert done.returncode != 0, "a second writer of the device has served"
    assert f"process {run.site.gateway.pid}" in second.said, second.said[-2000:]


def _stale_writer(run: Run) -> None:
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


def _rival_elsewhere(run: Run) -> None:
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
    _await_epoch(run, before + 1, within=40)
    site.gateway.resume()
    time.sleep(run.rng.uniform(1.0, 3.0))
    rival.leave()
    if namespace:
        subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
    site.device_file.with_suffix(".rival").unlink(missing_ok=True)


def _await_epoch(run: Run, epoch: int, *, within: float) -> None:
    until = time.monotonic() + within
    while time.monotonic() < until:
        lane = run.site.look()
        if lane and lane.live and lane.facts.get("phase") == "serving" and int(lane.facts.get("epoch", 0)) >= epoch:
            return
        time.sleep(0.05)
    raise AssertionError(f"no writer of epoch {epoch} served within {within:g} s")


def _messages_twice_and_out_of_order(run: Run) -> None:
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


# The device, the callers, the clocks.


def _device_deleted(run: Run) -> None:
    for _ in range(run.rng.randint(1, 2)):
        run.soon(0.3, 1.5)
        run.site.delete_device()


def _callers_killed(run: Run) -> None:
    run.soon(0.3, 2.0)
    run.site.callers.signal(signal.SIGKILL)


def _callers_stopped(run: Run) -> None:
    run.soon(0.3, 1.5)
    run.site.callers.signal(signal.SIGSTOP)
    time.sleep(run.rng.uniform(0.5, 3.0))
    run.site.callers.signal(signal.SIGCONT)


def _race_of_timeout_and_commit(run: Run) -> None:
    run.site.fail_at(f"before_commit:sleep:{0.15 - run.rng.uniform(0.0, 0.03):.4f}")
    time.sleep(4.5)


def _own_clocks(run: Run) -> None:
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
    _restart_both(run)


def _restart_both(run: Run) -> None:
    site = run.site
    epoch = int(cast("Any", site.redis.get(names.epoch_key(site.name))))
    site.gateway.kill()
    site.callers.end()
    site.callers.start()
    _await_epoch(run, epoch + 1, within=40)


def _clocks_jump(run: Run) -> None:
    for _ in range(2):
        run.soon(0.3, 1.2)
        (run.site.directory / "clock").write_text(f"{run.rng.choice(['+', '-'])}{run.rng.randint(60, 120)}")


def _real_clocks(run: Run) -> None:
    for process in (run.site.gateway, run.site.callers):
        for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "PEERLANE_TEST_CLOCK"):
            process.environment.pop(name, None)
    _restart_both(run)


def _machine_clock_jumps(run: Run) -> None:
    """The clock of the whole machine, Redis' included: deadlines are on it."""
    run.soon(0.3, 1.5)
    seconds = run.rng.choice([-1, 1]) * run.rng.randint(60, 120)
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    time.sleep(run.rng.uniform(0.5, 2.0))
    time.clock_settime(time.CLOCK_REALTIME, time.time() - seconds)


def _several(run: Run) -> None:
    """Two or three of the simple ones, one after the other or at once."""
    acts = [_writer_killed, _writer_stopped, _redis_killed, _redis_frozen, _writer_cut_off, _callers_cut_off]
    for act in run.rng.sample([*acts, _device_deleted, _replies_reset, _unforeseen], run.rng.randint(2, 3)):
        run.notes.append(act.__name__.strip("_"))
        act(run)


_RACE = Work(calls=24, threads=1, tasks=0, pace=0.0, timeouts=tuple(0.145 + step / 1000 for step in range(11)))
_FLOOD = Work(calls=40, threads=2, tasks=10, seconds=6.0, pace=0.0, timeouts=(5.0, 8.0), bulk=True)
_LONG = Work(seconds=12.0, calls=30, pace=0.6)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("writer_killed", _writer_killed),
        Scenario("writer_killed_taking", _writer_killed_while_it_takes_a_message),
        _killed_at("before_apply", redelivered=True),
        _killed_at("after_apply"),
        _killed_at("before_commit"),
        _killed_at("after_commit", redelivered=True),
        _killed_at("before_acknowledge", redelivered=True),
        Scenario("killed_in_recovery", _killed_in_recovery),
        Scenario("unforeseen_error", _unforeseen),
        Scenario("writer_stopped", _writer_stopped),
        Scenario("redis_killed", _redis_killed),
        Scenario("redis_killed_at_commit", _redis_killed_at_commit, Work(seconds=6.0, pace=0.4)),
        Scenario("redis_loses_last_second", _redis_loses_its_last_second),
        Scenario("redis_frozen", _redis_frozen),
        Scenario("memory_full", _memory_full),
        Scenario("disk_full", _disk_full, planes=("kernel",)),
        Scenario("writer_half_open", _writer_half_open),
        Scenario("writer_cut_off", _writer_cut_off),
        Scenario("callers_cut_off", _callers_cut_off),
        Scenario("replies_reset", _replies_reset),
        Scenario("slow_links", _slow_links),
        Scenario("packets_lost", _packets_lost, planes=("kernel",)),
        Scenario("second_writer", _second_writer),
        Scenario("stale_writer", _stale_writer),
        Scenario("rival_elsewhere", _rival_elsewhere, _LONG),
        Scenario("messages_twice", _messages_twice_and_out_of_order),
        Scenario("device_deleted", _device_deleted),
        Scenario("callers_killed", _callers_killed),
        Scenario("callers_stopped", _callers_stopped),
        Scenario("timeout_races_commit", _race_of_timeout_and_commit, _RACE),
        Scenario("clocks_jump", _clocks_jump, before=_own_clocks, after=_real_clocks),
        Scenario("machine_clock_jumps", _machine_clock_jumps, planes=("kernel",), needs_own_machine=True),
        Scenario("flood_and_kill", _writer_killed, _FLOOD),
        Scenario("several_at_once", _several, Work(seconds=7.0, calls=20)),
    )
}
