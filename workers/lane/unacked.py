"""Messages that earlier writers had taken and not acknowledged: whose they are, and back to the lane. For a start."""

from __future__ import annotations

import json
import logging
import uuid
from contextlib import suppress
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError, WatchError

from peerlane.config import names
from peerlane.config.redis.failures import reason
from peerlane.workers.lane.poison import set_aside
from peerlane.workers.writer.struck_out import created_by

log = logging.getLogger(__name__)


def keys_in_hand(redis: Redis, gateway: str) -> frozenset[str]:
    """The public keys of the creates that earlier writers had taken and not brought to an end.

    What the device has of them and Redis has not is the beginning of what they did. Raises redis.RedisError where
    Redis is away.
    """
    keys: set[str] = set()
    try:
        for tag in cast("list[bytes]", redis.zrange(names.unacked_key(gateway, "_index"), 0, -1)):
            noted = cast("bytes | None", redis.hget(names.unacked_key(gateway), cast("str", tag)))
            keys.update(_created_by(noted) if noted is not None else ())
    except ResponseError as error:
        log.warning("what an earlier writer had in hand is not known (%s)", reason(error))
    return frozenset(keys)


def _created_by(noted: bytes) -> list[str]:
    try:
        message = json.dumps(json.loads(noted)[0]).encode()
    except (ValueError, TypeError, LookupError, RecursionError):
        return []
    return created_by(message)


def take_back(redis: Redis, gateway: str) -> int:
    """Return messages of earlier writers to the head of the lane, the oldest first; returns how many.

    For a writer that has the newest epoch and does not consume yet: all of it is in the hands of writers that can
    commit nothing any more, whether they are dead or not. Nothing is lost where this is interrupted.
    Raises redis.RedisError where Redis is away.
    """
    count = 0
    try:
        tags = cast("list[bytes]", redis.zrange(names.unacked_key(gateway, "_index"), 0, -1))
        for tag in reversed(tags):  # the newest first, as each is put in front of the others
            count += _take_back(redis, gateway, cast("str", tag))  # redis-py takes bytes too
    except ResponseError as error:
        log.warning("what an earlier writer had taken comes back only after a while (%s)", reason(error))
    return count


def _take_back(redis: Redis, gateway: str, tag: str) -> bool:
    unacked = names.unacked_key(gateway)
    with redis.pipeline() as pipe:
        while True:
            pipe.watch(unacked)
            noted = cast("bytes | None", pipe.hget(unacked, tag))
            again = _again(gateway, noted) if noted is not None else None
            pipe.multi()
            pipe.zrem(names.unacked_key(gateway, "_index"), tag)
            pipe.hdel(unacked, tag)
            if again is not None:
                pipe.rpush(*again)
            with suppress(WatchError):  # an earlier writer that still runs has acknowledged a message just now
                pipe.execute()
                break
    if noted is not None and again is None:
        set_aside(
            redis,
            gateway,
            why="it was noted as taken, but not by a writer",
            queue=names.lane_queue(gateway),
            message=noted,
        )
    return again is not None


def _again(gateway: str, noted: bytes) -> tuple[str, str] | None:
    """(queue, message) of a note, marked as redelivered; None if it is no note that a writer makes."""
    try:
        message, _, queue = json.loads(noted)
        if queue not in (names.lane_queue(gateway), names.bulk_queue(gateway)):
            return None
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
        # Another tag: a writer that lives on, somewhere else, strikes out nothing of ours by acknowledging late.
        message["properties"]["delivery_tag"] = str(uuid.uuid4())
        return queue, json.dumps(message)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
