"""Raises, clears and reads a gateway's alarms. There is at most one of each kind."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis import Redis

from peerlane.config import names
from peerlane.tasks.values.metrics import number

log = logging.getLogger(__name__)

#: Every kind there is: the headings of its section in ``RUNBOOKS``.
KINDS = ("clock", "counters", "device", "key_changed", "redis_lost_data", "sweep", "unattended", "unknown_peers")
#: Where it is written what to do, in the repository.
RUNBOOKS = "docs/runbooks.md"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm. ``since`` is in seconds since 1970 on Redis' clock; ``detail`` is for programs.

    ``at`` is when the message was written last: its numbers are of that moment.
    """

    kind: str
    message: str
    since: int
    detail: Mapping[str, Any]
    at: int = 0

    @property
    def runbook(self) -> str:
        """The section of the runbooks: a file of the repository, and the heading in it."""
        return f"{RUNBOOKS}#{self.kind}" if self.kind in KINDS else RUNBOOKS

    def as_dict(self) -> dict[str, Any]:
        """The alarm for programs."""
        return {**asdict(self), "runbook": self.runbook}


def raise_alarm(
    redis: Redis,
    gateway: str,
    kind: str,
    message: str,
    *,
    now: int,
    began: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Raise an alarm, since ``began`` or ``now``. If it is raised already, its ``since`` stays.

    A message says nothing that changes with time alone: readers show for how long it stands. Raises redis.RedisError.
    """
    before = _parsed(kind, cast("bytes | None", redis.hget(names.alarms_key(gateway), kind)))
    since = before.since if before is not None else now if began is None else began
    if before is None or before.message != message:
        log.error("gateway %s: ALARM %s: %s", gateway, kind, message)
    record = json.dumps(
        {"message": message, "since": since, "at": now, "detail": dict(detail or {})}, separators=(",", ":")
    )
    redis.hset(names.alarms_key(gateway), kind, record)


def clear_alarm(redis: Redis, gateway: str, kind: str, why: str = "its cause is gone") -> bool:
    """Clear an alarm; whether there was one. Raises redis.RedisError."""
    if not redis.hdel(names.alarms_key(gateway), kind):
        return False
    log.warning("gateway %s: the alarm %s is over: %s", gateway, kind, why)
    return True


def read_alarms(redis: Redis, gateway: str) -> list[Alarm]:
    """All alarms of a gateway, the oldest first. Raises redis.RedisError."""
    return parse_alarms(cast("dict[bytes, bytes]", redis.hgetall(names.alarms_key(gateway))))


def parse_alarms(stored: Mapping[bytes, bytes]) -> list[Alarm]:
    """The alarms in a gateway's hash, the oldest first."""
    alarms = [_parsed(kind.decode(errors="replace"), record) for kind, record in stored.items()]
    return sorted((alarm for alarm in alarms if alarm is not None), key=lambda alarm: (alarm.since, alarm.kind))


def _parsed(kind: str, record: bytes | None) -> Alarm | None:
    if record is None:
        return None
    try:
        fields = json.loads(record)
        detail = cast("dict[str, Any]", fields["detail"])
        since = int(number(fields["since"]))
        return Alarm(kind, str(fields["message"]), since, dict(detail), int(number(fields.get("at", since))))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        # Written by another version or by hand: shown as an alarm all the same.
        return Alarm(kind, record.decode(errors="replace")[:500], 0, {})
