"""Takes the messages that wait in a lane in one round trip: notes them as taken, or strikes dead ones out.

``TakenMessage`` is one that is taken, with the outcome of its request.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from celery.worker import state as worker_state
from redis import Redis

from peerlane.config import names
from peerlane.tasks.wire import commit_record
from peerlane.workers.request.request import Delivery, Outcome
from peerlane.workers.store.procedures import Procedure
from peerlane.workers.store.retry import RetryUntilShutdown

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
