"""Checks, at a writer's start, whether the Redis server can keep what a gateway confirms.

A server on which a promise cannot hold is refused. A server that may lose confirmed peers when it stops or the power
fails is a warning; with ``PEERLANE_REQUIRE_DURABLE`` it is refused too. See docs/guarantees.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from peerlane.config.redis.failures import reason
from peerlane.tasks.errors import RedisAway, RedisRefuses, StorageError

log = logging.getLogger(__name__)

#: The oldest Redis: SET with NX and GET at once, EXPIRE in scripts, selectors of users. Every Valkey has them.
OLDEST = (7, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding about a server, for the gateway's operator."""

    sentence: str
    #: Refused whatever the settings say.
    fatal: bool = False
    #: Fatal now, but it passes by itself: starting the writer again later may succeed.
    passing: bool = False


def judge(info: Mapping[str, Any], appendfsync: str | None) -> list[Finding]:
    """The findings about a server, worst first, from its INFO; ``appendfsync`` is None if it is not known."""
    return [*_fatal(info), *_lossy(info, appendfsync)]


def _fatal(info: Mapping[str, Any]) -> list[Finding]:
    findings: list[Finding] = []
    version = str(info.get("redis_version", "0"))
    if "valkey_version" not in info and _numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        findings.append(Finding(f"Redis {version} is too old: {oldest} or newer is needed, or any Valkey", fatal=True))
    if str(info.get("cluster_enabled", "0")) == "1" or info.get("redis_mode") == "cluster":
        sentence = "Redis runs as a cluster, where queues and peers are on different servers: use one server per fleet"
        findings.append(Finding(sentence, fatal=True))
    if str(info.get("role", "master")) != "master":
        sentence = "Redis is a replica, and takes no writes: name the primary in PEERLANE_REDIS_URL"
        findings.append(Finding(sentence, fatal=True, passing=True))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if str(info.get("maxmemory", "0")) != "0" and policy != "noeviction":
        findings.append(Finding(f"Redis may evict peers (maxmemory-policy {policy}): set it to noeviction", fatal=True))
    return findings


def _lossy(info: Mapping[str, Any], appendfsync: str | None) -> list[Finding]:
    findings: list[Finding] = []
    if str(info.get("aof_enabled", "0")) != "1":
        findings.append(
            Finding("Redis keeps no append-only file: CONFIRMED PEERS ARE LOST WHEN IT STOPS (set appendonly yes)")
        )
    elif appendfsync is None:
        findings.append(Finding(_UNKNOWN))
    elif appendfsync != "always":
        sentence = f"Redis syncs its append-only file {appendfsync}: a power loss can lose confirmed peers"
        findings.append(Finding(f"{sentence} (appendfsync always keeps all)"))
    if str(info.get("aof_last_write_status", "ok")) != "ok":
        findings.append(Finding("Redis could not write its append-only file the last time: is its disk full?"))
    replicas = str(info.get("connected_slaves", "0"))
    if replicas != "0" and "min_slaves_good_slaves" not in info:
        sentence = f"Redis has {replicas} replicas and confirms without them: a failover can lose confirmed peers"
        findings.append(Finding(f"{sentence} (set min-replicas-to-write 1)"))
    return findings


#: Share of maxmemory from which on its end is near.
NEARLY_FULL = 0.9


def memory(info: Mapping[str, Any]) -> Finding | None:
    """The finding that Redis' memory is full (``fatal``) or nearly full; None if it is not, or has no limit."""
    used, most = (int(info.get(name) or 0) for name in ("used_memory", "maxmemory"))
    if most == 0 or used < most * NEARLY_FULL:
        return None
    size = f"{used / 2**20:,.0f} of {most / 2**20:,.0f} MiB (maxmemory)"
    if used < most:
        return Finding(f"Redis has used {size}: beyond that nothing can be asked for, deletes and sweeps included")
    return Finding(
        f"Redis' memory is full, {size}: no request can be put into a lane, deletes and sweeps included, until "
        "there is room (`CONFIG SET maxmemory` needs no restart)",
        fatal=True,
    )


_UNKNOWN = (
    "Redis keeps an append-only file, but whether it syncs it at each write is unknown: only CONFIG GET tells, which "
    "this Redis user may not give, as it shows passwords too. If an administrator finds `CONFIG GET appendfsync` to be "
    "always, state it: PEERLANE_REDIS_APPENDFSYNC=always"
)


def read_appendfsync(redis: Redis) -> str | None:
    """Redis' appendfsync; None if this user may not read it. Raises redis.RedisError."""
    try:
        return cast("dict[str, str]", redis.config_get("appendfsync")).get("appendfsync")
    except ResponseError as error:
        log.debug("appendfsync cannot be read: %s", reason(error))
        return None


def check_durability(redis: Redis, *, require: bool = False, stated: str | None = None) -> None:
    """Check the server; warn or refuse. ``stated`` is appendfsync if Redis does not tell it. Raises redis.RedisError.

    Raises:
        StorageError: the server is not fit to hold a gateway; with ``require``, whatever else could lose a peer too.
    """
    info = redis.info()
    appendfsync = read_appendfsync(redis)
    if appendfsync is None and stated is not None:
        log.info("appendfsync is %s, as PEERLANE_REDIS_APPENDFSYNC states; this Redis user may not read it", stated)
    for finding in judge(info, appendfsync or stated):
        if finding.fatal or require:
            demanded = "" if finding.fatal else "; PEERLANE_REQUIRE_DURABLE forbids that"
            raise (RedisAway if finding.passing else StorageError)(finding.sentence + demanded)
        log.warning("%s", finding.sentence)


def away(error: RedisError) -> RedisAway:
    """The error of a gateway that cannot start, from redis-py's error."""
    refused = isinstance(error, AuthenticationError | NoPermissionError)
    return (RedisRefuses if refused else RedisAway)(f"Redis cannot be used: {reason(error)}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split(".")[:2])
