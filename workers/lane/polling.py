"""Waits for messages with few commands and few connections while the lane is idle.

One connection waits in BRPOP, which answers at once when a message comes, and after ``BLOCKED_FOR`` seconds if none
does. The main thread's other commands use one other connection (``config.redis.client``).
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any, cast

from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from peerlane.config import names
from peerlane.config.celery.broker import UnboundChannel, UnboundTransport
from peerlane.config.redis.client import SharedRedis
from peerlane.config.redis.connections import NotPrimary

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
    """Drops a connection whose BRPOP is overdue; kombu would wait ``health_check_interval`` seconds more."""

    def maybe_check_brpop_health(self) -> None:
        for channel in self._channels:
            if channel.is_overdue():
                channel.drop_poll()


class WaitingChannel(UnboundChannel):
    """A channel with a long BRPOP that can be ended early: it also waits on a key of this channel."""

    _wake: str = ""
    _may_be_woken = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # kombu asks for a sign of life over a connection that only a channel which consumes has a use for.
        self.async_pool.disconnect()

    @property
    def redis(self) -> Redis:
        """The process' client for all commands except the wait."""
        return cast("SharedRedis", self.connection.client.transport_options["shared_redis"]).client

    @property
    def pool(self) -> Any:
        """The pool of the process' client; kombu closes a channel's own pool with the channel."""
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
        """The answer of BRPOP: the queue and the message; None if there was none."""
        connection = self.client.connection
        try:
            answer = cast("tuple[bytes, bytes] | None", self.client.parse_response(connection, "BRPOP", **options))
        except NoPermissionError:
            if not self._may_be_woken:
                raise
            self._may_be_woken, self.brpop_timeout = False, BLOCKED_BRIEFLY
            return None
        except ResponseError as error:
            if not str(error).startswith("MISCONF"):
                raise
            # Its disk is full: it takes no message off a queue until there is room.
            connection.disconnect()
            raise NotPrimary(str(error)) from error
        except self.connection_errors:
            connection.disconnect()
            raise
        if not answer or answer[0] == self._wake.encode():
            return None
        return answer[0].decode().rsplit(self.sep, 1)[0], answer[1]

    def is_overdue(self) -> bool:
        """Whether BRPOP should have answered by now."""
        connection: Any = self._in_poll
        if not connection or time.monotonic() - self._brpop_sent_at < self.brpop_timeout + OVERDUE:
            return False
        sock = connection._sock  # noqa: SLF001 - as kombu's own poller asks
        return sock is not None and not _kombu._socket_readable(sock)  # noqa: SLF001 - likewise

    def drop_poll(self) -> None:
        """Close the waiting connection; kombu makes another."""
        log.warning("Redis gave no answer to BRPOP in time; its connection is dropped")
        self._in_poll.disconnect()

    def close(self) -> None:
        """Close the channel. BRPOP is ended first, because kombu reads its answer so that no message is lost."""
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
    """The transport of a gateway's processes."""

    brpop_timeout = BLOCKED_FOR

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cycle = LanePoller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        cycle: Any = self.cycle
        cycle._brpop_health_tref.cancel()  # noqa: SLF001 - kombu's, which cancels it where it is set anew
        cycle._brpop_health_tref = loop.call_repeatedly(LOOK_EVERY, cycle.maybe_check_brpop_health)  # noqa: SLF001
