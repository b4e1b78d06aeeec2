"""A gateway's broker connection: kombu's Redis transport with few commands and few connections while a lane is idle.

One connection waits in BRPOP, which answers at once when a message comes, and after ``BLOCKED_FOR`` seconds if none
does. The other messages that wait are taken with it (``taking``). The main thread's other commands use one other
connection (``config.redis.client``).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any, cast

from celery.app.amqp import AMQP
from celery.exceptions import WorkerShutdown
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from peerlane.config import names
from peerlane.config.celery.broker import OwnConnection, UnboundChannel, UnboundTransport
from peerlane.config.redis.client import SharedRedis
from peerlane.config.redis.connections import NotPrimary
from peerlane.config.redis.failures import reason
from peerlane.workers.lane.group import Group
from peerlane.workers.lane.poison import set_aside
from peerlane.workers.lane.strategy import sound_envelope
from peerlane.workers.lane.taking import BULK_BYTES, MOST_IN_A_GROUP, Dead, LaneQoS, Noted, Taker
from peerlane.workers.store.retry import ShutdownRequested

log = logging.getLogger(__name__)

#: Seconds after which BRPOP answers that there is nothing.
BLOCKED_FOR = 5
#: The same where this Redis user may not wait on a key of its own: a stop waits for that answer.
BLOCKED_BRIEFLY = 1
#: Seconds beyond the time above after which a connection without an answer counts as dead, and between two looks.
OVERDUE, LOOK_EVERY = 1.0, 1.0
#: Seconds for which a wake-up is kept if its BRPOP has had another answer meanwhile.
WAKE_KEPT_FOR = 10

_kombu: Any = kombu_redis  # it carries no types


class LanePoller(_kombu.MultiChannelPoller):
    """Drops a connection whose BRPOP is overdue; kombu would wait ``health_check_interval`` seconds more."""

    def maybe_check_brpop_health(self) -> None:
        for channel in self._channels:
            if channel.is_overdue():
                channel.drop_poll()


class LaneChannel(UnboundChannel):
    """Waits for a message in a long BRPOP, takes the others that wait with it, and checks each.

    BRPOP also waits on a key of this channel, so that it can be ended early.
    """

    QoS = LaneQoS

    _wake: str = ""
    _may_be_woken = True
    #: While messages that were taken together are delivered: where Celery's strategy collects them.
    group: Group | None = None
    #: Ends what was struck out of the lane; set by the consumer (peerlane.workers.lane.worker).
    end_dead: Callable[[Sequence[Dead]], None] | None = None
    _taker: Taker | None = None
    #: Whether this user may not use the procedure: then each message is noted by itself.
    _one_by_one = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gateway: str = self._transport_options["gateway"]
        # kombu checks the connection that only a consuming channel uses.
        self.async_pool.disconnect()

    @property
    def _transport_options(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.connection.client.transport_options)

    @property
    def redis(self) -> Redis:
        """The process' client for all commands except the wait."""
        return cast("SharedRedis", self._transport_options["shared_redis"]).client

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
            self._wake = names.wake_key(self._gateway, secrets.token_hex(8))
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

    def _brpop_read(self, **options: Any) -> bool:
        # As in kombu 5.7, but that a message is looked at before it is delivered.
        try:
            answer = self.brpop_answer(**options)
            if answer is None:
                raise Empty
            queue, message = answer
            self._queue_cycle.rotate(queue)
            self._take_with_others(queue, message)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _take_with_others(self, queue: str, raw: bytes) -> None:
        """Take the other messages that wait in the lane, and have all of them carried out as a group."""
        gateway = self._gateway
        if self._one_by_one or queue not in (names.lane_queue(gateway), names.bulk_queue(gateway)):
            self.take(queue, raw)
            return
        if self._taker is None:
            self._taker = Taker(self.redis, gateway, result_ttl=int(self._transport_options["result_ttl"]))
        try:
            taken, dead = self._taker(queue, raw)
        except ShutdownRequested:
            raise WorkerShutdown(0) from None
        except ResponseError as error:
            self._one_by_one = isinstance(error, NoPermissionError)
            log.warning("gateway %s: messages are taken one by one (%s)", gateway, reason(error))
            self.take(queue, raw)
            return
        bulk = (taken[0].queue if taken else queue) == names.bulk_queue(gateway)
        full = len(taken) >= MOST_IN_A_GROUP or (bulk and sum(len(noted.message) for noted in taken) >= BULK_BYTES)
        group, failures = Group(len(taken) + len(dead), bulk=bulk, full=full), list[Exception]()
        self.group = group
        for noted in taken:
            try:
                self._hand_on_noted(noted)
            except self.connection_errors as error:  # that message comes again; the others are in hand
                failures.append(error)
        self.group = None
        group.carry_out()
        if dead and self.end_dead is not None:  # last: it holds up no message
            self.end_dead(dead)
        if failures:
            raise failures[0]

    def _hand_on_noted(self, noted: Noted) -> None:
        envelope = sound_envelope(noted.message)
        if isinstance(envelope, str):
            self.take(noted.queue, noted.message)  # sets it aside
            with self.conn_or_acquire() as client:
                client.hdel(names.unacked_key(self._gateway), noted.tag)
                client.zrem(names.unacked_key(self._gateway, "_index"), noted.tag)
            return
        envelope["properties"]["delivery_tag"] = noted.tag
        self.qos.noted[noted.tag] = noted.answered
        self._deliver(envelope, noted.queue)

    def take(self, queue: str, raw: bytes) -> None:
        """Deliver a message; set it aside if it is malformed."""
        envelope = sound_envelope(raw)
        if isinstance(envelope, str):
            log.warning("a message of %d bytes on %s was refused: it is %s", len(raw), queue, envelope)
            with self.conn_or_acquire() as client:
                set_aside(client, self._gateway, why=f"it is {envelope}", queue=queue, message=raw)
            return
        self._deliver(envelope, queue)

    def _deliver(self, envelope: dict[str, Any], queue: str) -> None:
        # It goes back to the queue that it came from, whatever its sender has written there.
        envelope["properties"]["delivery_info"] |= {"exchange": "", "routing_key": queue}
        self.connection._deliver(envelope, queue)  # noqa: SLF001 - as kombu's own channel does

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
        cast("Any", self._in_poll).disconnect()

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


class LaneTransport(UnboundTransport):
    """The transport of a gateway's processes, which consume."""

    Channel = LaneChannel
    brpop_timeout = BLOCKED_FOR

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cycle = LanePoller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        cycle: Any = self.cycle
        cycle._brpop_health_tref.cancel()  # noqa: SLF001 - kombu's, which cancels it where it is set anew
        cycle._brpop_health_tref = loop.call_repeatedly(LOOK_EVERY, cycle.maybe_check_brpop_health)  # noqa: SLF001


class LaneConnection(OwnConnection):
    """A connection with that transport."""

    own_transport = LaneTransport


class LaneMessaging(AMQP):
    """Celery's AMQP with that connection; peerlane.config.celery.app names it for writers and observers."""

    Connection = LaneConnection
