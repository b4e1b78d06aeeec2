"""The checks of ``peerlane doctor``: whether this host and its Redis can do their work. Changes nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from peerlane.config.redis.client import connect
from peerlane.config.redis.failures import reason
from peerlane.config.settings import Settings
from peerlane.tasks.admission.lane_state import number
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import OutcomeUnknown, StorageError
from peerlane.tasks.status.fleet_snapshot import FleetReader, FleetSnapshot
from peerlane.tasks.status.gateway_status import GatewayStatus, missed_count
from peerlane.workers.cli.check import Check, Verdict
from peerlane.workers.cli.doctor_gateway import forwarding, on_this_host
from peerlane.workers.dataplane.factory import open_plane
from peerlane.workers.store.redis_checks import judge, memory, read_appendfsync

#: Seconds by which a host's clock may differ from Redis' before it is worth a word; deadlines use Redis' alone.
CLOCK_APART = 5.0


def examine(settings: Settings) -> Iterator[Check]:
    """Run every check; a check that cannot be made counts as failed and raises nothing."""
    yield Check("Python", "ok", sys.version.split(" ", 1)[0])
    yield from _kernel(settings)
    redis = connect(settings, timeout=2.0)
    try:
        yield from _redis(redis, settings.redis_appendfsync)
        yield from _gateways(redis)
        if settings.gateway is not None:
            facts = Lanes(redis, result_ttl=settings.result_ttl).look(settings.gateway).facts
            yield from on_this_host(settings, facts, redis)
    except (RedisError, OSError) as error:
        yield Check("Redis", "failed", f"cannot be used: {reason(error)}; see PEERLANE_REDIS_URL")
    finally:
        redis.close()


def _kernel(settings: Settings) -> Iterator[Check]:
    gateway = settings.gateway is not None
    plane = open_plane(settings)
    missing = plane.missing()
    if missing is None:
        yield Check("data plane", "ok", f"{plane.kind}: this process can use it here")
    else:
        verdict: Verdict = "failed" if gateway else "warning"
        needed = "" if gateway else "; only gateways need it"
        yield Check("data plane", verdict, f"{plane.kind}: {missing}{needed}")
    if gateway:
        yield from forwarding(settings)


def _redis(redis: Redis, stated: str | None) -> Iterator[Check]:
    began = time.time()
    seconds, micros = redis.time()
    took = time.time() - began
    try:
        info = redis.info()
    except NoPermissionError:
        yield Check("Redis", "ok", f"answers in {took * 1000:.1f} ms")
        sentence = "not looked at: this Redis user may not call INFO; an operator's or administrator's may"
        yield Check("durability", "warning", sentence)
        return
    kind = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version"))
    yield Check("Redis", "ok", f"{kind} {version}, answers in {took * 1000:.1f} ms")
    apart = seconds + micros / 1e6 - (began + took / 2)
    if abs(apart) > CLOCK_APART:
        sentence = f"this host's clock and Redis' are {abs(apart):.0f} s apart; nothing breaks, but logs will not match"
        yield Check("clock", "warning", sentence)
    if (scarce := memory(info)) is not None:
        yield Check("memory", "failed" if scarce.fatal else "warning", scarce.sentence)
    sentence = read_appendfsync(redis)
    findings = judge(info, sentence or stated)
    for item in findings:
        yield Check("durability", "failed" if item.fatal else "warning", item.sentence)
    if not findings:
        only = "" if sentence else ", as PEERLANE_REDIS_APPENDFSYNC states and this Redis user may not check"
        yield Check("durability", "ok", f"what is confirmed is on disk first{only}")


def _gateways(redis: Redis) -> Iterator[Check]:
    try:
        snapshot = FleetReader(redis).read()
    except (OutcomeUnknown, StorageError) as error:
        yield Check("gateways", "failed", error.message)
        return
    if not snapshot.gateways:
        yield Check("gateways", "warning", "none has registered yet: peerlane gateway run NAME")
    for status in snapshot.gateways:
        yield from _gateway(status)
    yield from _beat(snapshot)


def _gateway(status: GatewayStatus) -> Iterator[Check]:
    subject, lane = f"gateway {status.gateway}", status.lane
    peers, waiting_all = number(lane.facts.get("peers", "")), lane.waiting + lane.waiting_bulk
    waiting = f"{_counted(peers, 'peer')}, {_counted(waiting_all, 'request')} waiting"
    if lane.waiting_bulk:
        waiting += f", {lane.waiting_bulk:,} of them in bulk"
    if lane.stuck:
        sentence = f"stuck: its writer has served nothing for {lane.idle_for or 0:.0f} s; its log says what it does"
        yield Check(subject, "failed", f"{sentence}; {waiting}")
    elif lane.live:
        yield Check(subject, "ok", f"{lane.state}, {waiting}")
    elif lane.stopped:
        yield Check(subject, "failed", f"its writer was stopped, so it has no live writer; {waiting}")
    else:
        silent = "never gave a sign of life" if lane.silent_for is None else "has no live writer"
        yield Check(subject, "failed", f"{silent}; {waiting}")
    if max(lane.waiting, lane.waiting_bulk) >= lane.cap:
        yield Check(subject, "failed", f"its lane is full, {lane.cap:,} requests wait: more are refused")
    yield from _start(subject, status)
    for alarm in status.alarms:
        yield Check(subject, "failed", f"ALARM {alarm.kind}: {alarm.message} ({alarm.runbook})")
    if not status.visible:
        yield Check(subject, "warning", "this Redis user may not see its alarms, observer and sweeps")
    elif lane.live and not status.observed:
        yield Check(subject, "warning", f"{_unobserved(status)}: nothing is swept or reconciled")
    if status.set_aside:
        count = "1 message was" if status.set_aside == 1 else f"{status.set_aside:,} messages were"
        yield Check(subject, "warning", f"{count} set aside: peerlane gateway poison {status.gateway}")
    yield from _sweep(subject, status)


def _sweep(subject: str, status: GatewayStatus) -> Iterator[Check]:
    if (missed := missed_count(status.sweep)) or status.sweep.get("stopped"):
        stopped: Mapping[str, Any] = status.sweep.get("stopped") or {}
        why = f": {stopped['message']}" if "message" in stopped else ""
        yield Check(subject, "warning", f"its last sweep left {_counted(missed, 'stale peer')} in place{why}")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _start(subject: str, status: GatewayStatus) -> Iterator[Check]:
    if status.restarted:
        again = f"its writer was started again {status.writer_age or 0:.0f} s ago"
        yield Check(subject, "warning", f"{again}, epoch {status.lane.facts['epoch']}: its log says why")
    if status.recovering:
        yield Check(
            subject, "warning", f"{status.recovering:,} peers are still to be added to its device after a start"
        )


def _unobserved(status: GatewayStatus) -> str:
    silent = status.observer_silent_for
    if silent is None:
        return "no observer is running"
    return f"its observer has been silent for {silent:,.0f} s, so it hangs, was killed or cannot reach Redis"


def _beat(snapshot: FleetSnapshot) -> Iterator[Check]:
    silent = snapshot.beat_silent_for
    if silent is not None and all(s.beat_missing for s in snapshot.gateways if s.observed):
        yield Check("beat", "warning", f"has asked for nothing for {silent:,.0f} s: is one running?")
