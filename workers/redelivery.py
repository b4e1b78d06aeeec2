"""How messages that a dead worker had taken come back to its lane: kombu's way, without its lock."""

from __future__ import annotations

import logging
import time
from typing import Any, cast

from kombu.transport import redis as kombu_redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

_QoS: Any = kombu_redis.QoS  # kombu carries no types for it


class LaneQoS(_QoS):
    """kombu's store of messages taken and not acknowledged.

    kombu lets one worker at a time look for old ones, under a lock that takes a Lua script to release. A lane has one
    worker, and where two overlap for a moment, each message comes back in a transaction that only one of them wins.
    """

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
