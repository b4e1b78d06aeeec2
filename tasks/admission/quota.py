"""Fair shares of a lane: no single value of a gateway's ``fair_label`` (a tenant, for example) can fill it.

Waiting requests are counted per value in Redis, by id. A create is counted before it is sent, and removed by the commit
script. Entries of lost requests expire some time after their deadline, so nothing has to be cleaned up. Creates without
the label have one share together. Deletes and sweeps make room and are not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from peerlane.config import names
from peerlane.tasks.admission.lane_state import LaneState, spread
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Unavailable

#: Milliseconds for which a request counts beyond its deadline: a late one still takes its place in the lane.
LINGERS_MS = 30_000
#: Seconds after which a value without requests is forgotten; above the longest deadline.
FORGOTTEN_AFTER = 90_000
#: Seconds after which asking again is sensible: a lane moves a thousand requests and more in that time.
RETRY_AFTER = 1.0


def share_key(gateway: str, label: str, labels: object) -> str:
    """The key that counts the requests with the same value of ``label`` as ``labels``.

    ``labels`` may be anything: they are not checked yet.
    """
    value = cast("Mapping[object, object]", labels).get(label) if isinstance(labels, Mapping) else None
    text = value if isinstance(value, str) else ""
    digest = hashlib.sha256(f"{label}={text}".encode(errors="replace")).hexdigest()[:32]
    return names.share_key(gateway, digest)


def limit(lane: LaneState) -> int:
    """How many requests of one value a lane takes; at least one."""
    try:
        share = float(lane.facts.get("fair_share", "0.5"))
    except ValueError:
        share = 0.5
    return max(1, int(share * lane.cap)) if 0 < share <= 1 else lane.cap


def count(pipe: Any, key: str, request_id: str, *, now: int, deadline: int) -> None:
    """Add the commands that count a request to a transaction's pipeline; ``verdict`` reads their answers."""
    pipe.zremrangebyscore(key, "-inf", now)
    pipe.zadd(key, {request_id: deadline + LINGERS_MS})
    pipe.zcard(key)
    pipe.expire(key, FORGOTTEN_AFTER)


def verdict(lane: LaneState, labels: Mapping[str, str], answers: Sequence[Any]) -> Unavailable | None:
    """Why the share refuses the request, which the caller then removes (ZREM); None if it does not."""
    _, added, waiting, _ = cast("tuple[int, int, int, bool]", tuple(answers))
    if not added or waiting <= limit(lane):  # what is asked again under the same id was counted before
        return None
    label = lane.facts.get("fair_label", "")
    whose = f"{label}={labels[label]}" if label in labels else f"requests without the label {label}"
    return Unavailable(f"the share of {whose} in the lane of {lane.gateway} is used up", spread(RETRY_AFTER))


def join(lanes: Lanes, lane: LaneState, key: str, labels: Mapping[str, str], request_id: str, *, deadline: int) -> None:
    """Count a request in its share before it is sent. Raises redis.RedisError.

    Raises:
        Unavailable: its value has used up its share; nothing was sent.
    """
    pipe = lanes.redis.pipeline(transaction=True)
    count(pipe, key, request_id, now=lanes.clock.now_ms(), deadline=deadline)
    if (refusal := verdict(lane, labels, pipe.execute())) is not None:
        lanes.redis.zrem(key, request_id)
        raise refusal
