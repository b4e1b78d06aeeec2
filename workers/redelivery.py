"""Messages taken and not acknowledged: how they are noted, and how those of a dead worker come back to its lane."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from config import names

log = logging.getLogger(__name__)

_QoS: Any = kombu_redis.QoS  # kombu carries no types for it


class LaneQoS(_QoS):
    """kombu's store of messages taken and not acknowledged.

    kombu lets one worker at a time look for old ones, under a lock that takes a Lua script to release. A lane has one
    worker, and where two overlap for a moment, each message comes back in a transaction that only one of them wins.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        """As kombu's, and ``message.answered`` tells whether its request had an outcome then: in the same round trip.

        What was cancelled, or is asked or delivered again, is so known before anything is done for it.
        """
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
        """Strike a message out of the store; where Redis does not confirm that, it comes again, which is harmless."""
        try:
            super().ack(delivery_tag)
        except (RedisError, OSError) as error:
            log.warning("a message could not be acknowledged (%s): it will come again", type(error).__name__)
            # kombu would count it as being worked on for ever, and with prefetch 1 never take another.
            self._quick_ack(delivery_tag)

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Give back to the lane what was taken longer ago than the visibility timeout."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        with self.channel.conn_or_acquire() as client:
            before = time.time() - self.visibility_timeout
            found = client.zrange(
                self.unacked_index_key, before, 0, desc=True, byscore=True, offset=num and start, num=num
            )
            for tag in cast("list[bytes]", found or []):
                self.restore_by_tag(tag, client)
