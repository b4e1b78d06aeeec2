"""How a gateway's process waits for messages: few commands and few connections while nobody asks for anything.

One connection waits in BRPOP, which answers at once when a message comes, and after ``BLOCKED_FOR`` seconds when none
does. All that the process' main thread asks besides goes over one other connection (``config.redis.SharedRedis``).
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any, cast

from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from peerlane.config import names
from peerlane.config.celery.broker import UnboundChannel, UnboundTransport
from peerlane.config.redis.client import SharedRedis

log = logging.getLogger(__name__)

#: Seconds after which BRPOP answers that there is nothing.
BLOCKED_FOR = 5
#: The same where this Redis user may not wait on a key of its own: a stop waits for that answer.
BLOCKED_BRIEFLY = 1
#: Seconds beyond the time above after which a connection without an answer counts as dead, and between two looks.
OVERDUE, LOOK_EVERY = 1.0, 1.0
#: Seconds that a word to a BRPOP is kept which has had another answer meanwhile.
WAKE_KEPT_FOR = 10

_kombu: Any = kombu_redis  # it carries no types


class LanePoller(_kombu.MultiChannelPoller):
    """Drops a connection whose BRPOP has no answer; kombu allows it ``health_check_interval`` seconds more."""

    def maybe_check_brpop_health(self) -> None:
        for channel in self._channels:
            if channel.is_overdue():
                channel.drop_poll()


class WaitingChannel(UnboundChannel):
    """Waits for long, and can be woken: BRPOP has a key of this channel's own besides the queues."""

    _wake: str = ""
    _may_be_woken = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # kombu asks for a sign of life over a connection that only a channel which consumes has a use for.
        self.async_pool.disconnect()

    @property
    def redis(self) -> Redis:
        """The process' client for all but the wait."""
        return cast("SharedRedis", self.connection.client.transport_options["shared_redis"]).client

    @property
    def pool(self) -> Any:
        """Not the channel's own: kombu closes that with the channel."""
        return self.redis.connection_pool

    def _create_client(self, asynchronous: bool = False) -> Redis:  # noqa: FBT001, FBT002 - kombu's signature
        return cast("Redis", super()._create_client(asynchronous=True)) if asynchronous else self.redis

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = cast("list[str]", self._queue_cycle.consume(len(self.active_queues)))
        if not queues:
            return
        if not self._wake:
            self._wake = names.wake_key(names.gateway_of_queue(queues[0]), secrets.token_hex(8))
        keys = [*queues, self._wake] if self._may_be_woken else queues
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command("BRPOP", *keys, timeout or self.brpop_timeout)

    def brpop_answer(self, **options: Any) -> tuple[str, bytes] | None:
        """What BRPOP has taken, and off which queue; None if nothing."""
        connection = self.client.connection
        try:
            answer = cast("tuple[bytes, bytes] | None", self.client.parse_response(connection, "BRPOP", **options))
        except NoPermissionError:
            if not self._may_be_woken:
                raise
            self._may_be_woken, self.brpop_timeout = False, BLOCKED_BRIEFLY
            return None
        except self.connection_errors:
            connection.disconnect()
            raise
        if not answer or answer[0] == self._wake.encode():
            return None
        return answer[0].decode().rsplit(self.sep, 1)[0], answer[1]

    def is_overdue(self) -> bool:
        """Whether BRPOP should have answered long ago."""
        connection: Any = self._in_poll
        if not connection or time.monotonic() - self._brpop_sent_at < self.brpop_timeout + OVERDUE:
            return False
        sock = connection._sock  # noqa: SLF001 - as kombu's own poller asks
        return sock is not None and not _kombu._socket_readable(sock)  # noqa: SLF001 - likewise

    def drop_poll(self) -> None:
        """Close the connection that waits; kombu makes another."""
        log.warning("Redis gave no answer to BRPOP in time; its connection is dropped")
        self._in_poll.disconnect()

    def close(self) -> None:
        """Kombu reads the answer that BRPOP still owes, so that no message is lost: here it comes at once."""
        if self._in_poll and self._may_be_woken:
            try:
                with self.redis.pipeline(transaction=False) as pipe:
                    pipe.lpush(self._wake, b"")
                    pipe.expire(self._wake, WAKE_KEPT_FOR)
                    pipe.execute()
            except (RedisError, OSError):
                self._in_poll.disconnect()
        super().close()


class WaitingTransport(UnboundTransport):
    """That of a gateway's processes."""

    brpop_timeout = BLOCKED_FOR

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cycle = LanePoller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        cycle: Any = self.cycle
        cycle._brpop_health_tref.cancel()  # noqa: SLF001 - kombu's, which cancels it where it is set anew
        cycle._brpop_health_tref = loop.call_repeatedly(LOOK_EVERY, cycle.maybe_check_brpop_health)  # noqa: SLF001
