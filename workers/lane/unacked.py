"""Messages that are taken and not acknowledged: notes them, and returns those of a dead worker to its lane."""

from __future__ import annotations

import json
import logging
import time
import uuid
from contextlib import suppress
from typing import Any, cast

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import RedisError, ResponseError, WatchError

from peerlane.config import names
from peerlane.config.redis.failures import reason
from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.set_aside import read_request
from peerlane.workers.lane.poison import set_aside

log = logging.getLogger(__name__)

_QoS: Any = kombu_redis.QoS  # kombu carries no types for it


class LaneQoS(_QoS):
    """kombu's store of messages taken and not acknowledged.

    kombu lets one worker at a time look for old ones, under a lock that takes a Lua script to release. A lane has one
    worker, and where two overlap for a moment, each message comes back in a transaction that only one of them wins.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Tags of messages that were noted in the step that took them, and whether their requests were answered then.
        self.noted: dict[str, bool] = {}

    def append(self, message: Any, delivery_tag: str) -> None:
        """As kombu's; also sets ``message.answered``, whether its request has an outcome, in the same round trip.

        What was cancelled, or is asked or delivered again, is so known before anything is done for it.
        """
        noted = self.noted.pop(delivery_tag, None)
        if noted is not None:
            message.answered = noted
            virtual.QoS.append(self, message, delivery_tag)
            return
        exchange, queue = message.delivery_info["exchange"], message.delivery_info["routing_key"]
        gateway, request_id = names.gateway_of_queue(queue), message.headers.get("id")
        # Of a sound id only: another key might not be for this Redis user to read, which would end the whole step.
        lane = queue in (names.lane_queue(gateway), names.bulk_queue(gateway))
        asking = lane and names.is_request_id(gateway, request_id)
        with self.pipe_or_acquire() as pipe:
            pipe.zadd(self.unacked_index_key, {delivery_tag: time.time()})
            pipe.hset(self.unacked_key, delivery_tag, dumps([message._raw, exchange, queue]))  # noqa: SLF001 - as kombu does
            if asking:
                pipe.get(names.result_key(request_id))
            answers = cast("list[object]", pipe.execute(raise_on_error=False))
        for failed in answers[:2]:
            if isinstance(failed, Exception):
                raise failed
        # An error here is a key of another kind in the result's place: in doubt, too.
        message.answered = asking and answers[2] is not None
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. If Redis does not confirm that, it is delivered again, which is harmless."""
        try:
            super().ack(delivery_tag)
        except (RedisError, OSError) as error:
            log.warning("a message could not be acknowledged (%s): it will come again", type(error).__name__)
            # kombu would count it as being worked on for ever, and with prefetch 1 never take another.
            self._quick_ack(delivery_tag)

    def acknowledged_elsewhere(self, delivery_tag: str) -> None:
        """Forget a message that a commit has acknowledged."""
        virtual.QoS.ack(self, delivery_tag)

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Return messages to the lane that were taken longer ago than the visibility timeout."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        with self.channel.conn_or_acquire() as client:
            before = time.time() - self.visibility_timeout
            tags = client.zrange(
                self.unacked_index_key, before, 0, desc=True, byscore=True, offset=num and start, num=num
            )
            for tag in cast("list[bytes]", tags or []):
                self.restore_by_tag(tag, client)


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
    asked = read_request(message, PskCipher())
    if asked is None or asked.task not in (names.CREATE_PEER, names.CREATE_PEERS):
        return []
    return [part["public_key"] for part in asked.arguments.get("wishes", [asked.arguments])]


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
