"""Faults of Redis: it dies, stops, forgets, fills up."""

from __future__ import annotations

import time
from contextlib import suppress

from fault_play import Run
from redis.exceptions import RedisError


def redis_killed(run: Run) -> None:
    run.soon()
    with run.unreachable():
        run.site.redis_server.restart_after = run.rng.uniform(0.1, 2.5)
        run.site.redis_server.kill()
        time.sleep(run.site.redis_server.restart_after + 0.1)
    run.site.redis_server.restart_after = 0.3


def redis_killed_at_commit(run: Run) -> None:
    run.site.fail_at(f"before_commit:stop:{run.rng.randint(1, 10)}")
    if not run.happened():
        return
    with run.unreachable():
        run.site.redis_server.restart_after = 4.0
        run.site.redis_server.kill()
        run.site.gateway.resume()
        time.sleep(4.1)
    run.site.redis_server.restart_after = 0.3


def takes_no_writes(run: Run) -> None:
    """It answers, and is a replica, or lacks replicas: in the middle of a failover."""
    redis = run.site.redis
    run.soon(0.2, 1.0)
    with run.unreachable():
        if run.rng.random() < 0.5:
            run.notes.append("READONLY")
            redis.replicaof("127.0.0.1", "1")
            time.sleep(run.rng.uniform(0.5, 3.0))
            redis.replicaof("NO", "ONE")
        else:
            run.notes.append("NOREPLICAS")
            redis.config_set("min-replicas-to-write", "1")
            time.sleep(run.rng.uniform(0.5, 3.0))
            redis.config_set("min-replicas-to-write", "0")


def redis_and_writer_lose_the_last_second(run: Run) -> None:
    """Power is lost: only the gateway's redo file knows what Redis has forgotten."""
    run.redo_alone = True
    redis_loses_its_last_second(run)


def redis_loses_its_last_second(run: Run) -> None:
    site = run.site
    site.redis.config_set("appendfsync", "everysec")
    (tail,) = (site.data / "appendonlydir").glob("*.incr.aof")
    before = tail.stat().st_size
    run.soon(0.5, 1.5)
    with run.unreachable():
        site.redis_server.restart_after = 0.6
        if run.redo_alone:
            site.gateway.kill()
        site.redis_server.kill()
        time.sleep(0.1)
        size = tail.stat().st_size
        with tail.open("r+b") as file:  # never more than this run has written
            file.truncate(max(before, size - run.rng.randint(200, 8000)))
        time.sleep(0.6)
    run.lost_at = time.monotonic()
    site.monitor.forget_epochs()
    site.redis_server.restart_after = 0.3


def redis_frozen(run: Run) -> None:
    run.soon()
    with run.unreachable():
        run.site.redis_server.pause()
        time.sleep(run.rng.uniform(0.5, 5.0))
        run.site.redis_server.resume()


def memory_full(run: Run) -> None:
    run.soon(0.2, 1.0)
    with run.unreachable():  # it answers, and takes no writes: no outcome can be stored
        run.site.redis.config_set("maxmemory", "1")
        time.sleep(run.rng.uniform(1.0, 3.0))
        run.site.redis.config_set("maxmemory", "0")


def disk_full(run: Run) -> None:
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
