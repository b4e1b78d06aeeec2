"""Takes the messages that wait in a lane in one round trip: notes them as taken, or strikes dead ones out.

``TakenMessage`` is one that is taken, with the outcome of its request. ``LaneQoS`` notes what is taken by itself, and
acknowledges.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from celery.worker import state as worker_state
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.tasks.wire import commit_record
from peerlane.workers.request.request import Delivery, Outcome
from peerlane.workers.store.procedures import Procedure
from peerlane.workers.store.retry import RetryUntilShutdown

log = logging.getLogger(__name__)

_QoS: Any = kombu_redis.QoS  # kombu carries no types for it

#: Messages carried out together. Redis is busy with their commit for about a millisecond, other gateways wait so long.
MOST_IN_A_GROUP = 64
#: Bytes of messages from the bulk queue after which no more are taken, so that later interactive requests wait for few.
BULK_BYTES = 16 * 1024
#: Dead requests struck out at the old end of a queue in one step: about three milliseconds of Redis' time.
MOST_STRUCK_OUT = 256
#: Milliseconds before its deadline from which on the oldest request says that the lane is late.
NEARLY_LATE = 100
#: Waiting messages from which on deletes are carried out first: they would wait for more than a few groups.
MANY = 256
#: Messages looked through for deletes in one step, more than come in meanwhile: about a millisecond of Redis' time.
LOOKED_THROUGH = 1024
#: Deletes that go first in one group; the rest of the group are the oldest requests of any kind.
MOST_DELETES = 48
#: How the names of the tasks begin that only make room.
MAKE_ROOM = (names.DELETE_PEER, names.REMOVE_PEERS)
#: Full groups of interactive requests one after the other, after which bulk has a turn where anything waits there.
BULK_TURN = 16

#: Where a task finds the TakenMessage of its request: an attribute of Celery's ``self.request``.
TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class Noted:
    """A message that is noted as taken, under ``tag``."""

    queue: str
    message: bytes
    tag: str
    #: Whether its request may have an outcome already.
    answered: bool


@dataclass(frozen=True, slots=True)
class Dead:
    """A message that was struck out: its request has an outcome, or got one because its deadline had passed."""

    message: bytes
    request_id: str
    task: str
    #: The commit record; empty if its deadline had passed.
    record: str


class Taker:
    """Takes from one gateway's lane."""

    def __init__(self, redis: Redis, gateway: str, *, result_ttl: int) -> None:
        self._gateway = gateway
        self._result_ttl = result_ttl
        self._take = Procedure(redis, "take")
        self._keys = [
            names.lane_queue(gateway),
            names.bulk_queue(gateway),
            names.unacked_key(gateway),
            names.unacked_key(gateway, "_index"),
        ]
        #: Of each queue: its length, and how many of its newest have not been looked through for deletes.
        self._known = [0, 0, 0, 0]
        self._full_groups = 0
        self._until_answered = RetryUntilShutdown(
            lambda: worker_state.should_stop is not None or worker_state.should_terminate is not None
        )

    def __call__(self, queue: str, raw: bytes) -> tuple[list[Noted], list[Dead]]:
        """Take a popped message and the others that wait; returns the taken and the struck-out ones.

        Raises:
            ShutdownRequested: the worker is to stop, and Redis is away.
            redis.ResponseError: this user may not, or Redis takes no writes.
        """
        tags = f"{uuid.uuid4().hex}."
        return self._until_answered(lambda: self.once(queue, raw, tags))

    def once(self, queue: str, raw: bytes, tags: str) -> tuple[list[Noted], list[Dead]]:
        """One try of a call; with the same ``tags`` it returns the same. Raises redis.RedisError."""
        answer = self._take(
            keys=self._keys,
            args=[
                *(repr(time.time()), tags, self._gateway, MOST_IN_A_GROUP, BULK_BYTES, queue, raw),
                *(commit_record.late(commit_record.ANY_ID), self._result_ttl, MOST_STRUCK_OUT, NEARLY_LATE),
                *(MANY, LOOKED_THROUGH, MOST_DELETES, int(self._full_groups >= BULK_TURN)),
                *self._known,
                *MAKE_ROOM,
            ],
        )
        taken, dead, self._known = cast("tuple[list[tuple[bytes, ...]], list[tuple[bytes, ...]], list[int]]", answer)
        interactive = len(taken) >= MOST_IN_A_GROUP and taken[0][0].decode() == self._keys[0]
        self._full_groups = self._full_groups + 1 if interactive else 0
        return (
            [
                Noted(source.decode(), message, tag.decode(), answered == b"1")
                for source, message, tag, answered in taken
            ],
            [
                Dead(message, request_id.decode(), task.decode(errors="replace"), record.decode())
                for message, request_id, task, record in dead
            ],
        )


class TakenMessage:
    """A taken message: its delivery, and its request's outcome once there is one. The result backend reads it too."""

    def __init__(
        self, message: Any, delivery: Delivery, acknowledge: Callable[..., None], reject: Callable[..., None]
    ) -> None:
        self.delivery = delivery
        self.outcome: Outcome | None = None
        self._message, self._acknowledge = message, acknowledge
        self.reject = reject

    def acknowledge(self, *context: Any) -> None:
        """Acknowledge it, unless the commit of its request has."""
        if self.outcome is not None and self.outcome.acknowledged:
            self._message.channel.qos.acknowledged_elsewhere(self.delivery.tag)
        else:
            self._acknowledge(*context)

    def give_back(self, log: logging.Logger, errors: Any) -> None:
        """Put it back on its queue at once, because the event loop keeps no order."""
        self._message.reject_log_error(log, errors, requeue=True)


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
