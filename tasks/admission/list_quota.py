"""Fair shares for lists: each wish of a list counts as a request (``quota``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from peerlane.tasks.admission.lane_state import LaneState, spread
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.admission.quota import FORGOTTEN_AFTER, LINGERS_MS, RETRY_AFTER, limit, share_key
from peerlane.tasks.errors import Unavailable
from peerlane.tasks.wire.bulk import SLICE


def members(gateway: str, label: str, request_id: str, arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """For each wish of a list of creates: the key of its share, and its member there.

    ``arguments`` may be anything: they are not checked yet.
    """
    wishes = arguments.get("wishes")
    listed = cast("list[object]", wishes)[:SLICE] if isinstance(wishes, list) else []
    return [
        (share_key(gateway, label, cast("dict[str, Any]", wish).get("labels")), f"{request_id}#{index}")
        for index, wish in enumerate(listed)
        if isinstance(wish, dict)
    ]


def join(lanes: Lanes, lane: LaneState, request_id: str, arguments: Mapping[str, Any], *, deadline: int) -> None:
    """Count a list in its shares before it is sent, if its gateway has a ``fair_label``. Raises redis.RedisError.

    A list that is alone in its share is let in, however small the share is.

    Raises:
        Unavailable: a value has used up its share; nothing was sent.
    """
    label = lane.facts.get("fair_label")
    if not label:
        return
    by_key: dict[str, list[str]] = {}
    for key, member in members(lane.gateway, label, request_id, arguments):
        by_key.setdefault(key, []).append(member)
    pipe = lanes.redis.pipeline(transaction=True)
    for key, own in by_key.items():
        pipe.zremrangebyscore(key, "-inf", lanes.clock.now_ms())
        pipe.zadd(key, dict.fromkeys(own, deadline + LINGERS_MS))
        pipe.zcard(key)
        pipe.expire(key, FORGOTTEN_AFTER)
    answers = cast("list[int]", pipe.execute())
    counts = zip(by_key.items(), answers[1::4], answers[2::4], strict=True)
    # What is asked again under the same id was counted before.
    used_up = [key for (key, own), added, waiting in counts if added and waiting > max(limit(lane), len(own))]
    if not used_up:
        return
    pipe = lanes.redis.pipeline(transaction=True)
    for key, own in by_key.items():
        pipe.zrem(key, *own)
    pipe.execute()
    whose = _whose(lane.gateway, label, used_up[0], arguments)
    raise Unavailable(f"the share of {whose} in the lane of {lane.gateway} is used up", spread(RETRY_AFTER))


def _whose(gateway: str, label: str, key: str, arguments: Mapping[str, Any]) -> str:
    for wish in cast("list[dict[str, Any]]", arguments["wishes"]):
        labels = cast("Mapping[str, str]", wish.get("labels") or {})
        if label in labels and share_key(gateway, label, labels) == key:
            return f"{label}={labels[label]}"
    return f"requests without the label {label}"
