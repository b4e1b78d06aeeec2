"""Taking what waits in a lane: many messages in one round trip, noted as taken; the dead are struck out instead."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import cast

from celery.worker import state as worker_state
from redis import Redis

from peerlane.config import names
from peerlane.tasks.wire import commit_record
from peerlane.workers.store.procedures import Procedure
from peerlane.workers.store.retry import RetryUntilShutdown

#: Messages carried out together. Redis is busy with their commit for about a millisecond, other gateways wait so long.
MOST_IN_A_GROUP = 64
#: Bytes of messages from the bulk queue after which no more are taken: whoever comes meanwhile waits for few.
BULK_BYTES = 16 * 1024
#: Dead requests struck out at the old end of a queue in one step: about three milliseconds of Redis' time.
MOST_STRUCK_OUT = 256
#: Milliseconds before its deadline from which on the oldest request says that the lane is late.
NEARLY_LATE = 100
#: Newest messages of a late lane that are looked through for deletes, more than come in during one group; of the oldest
#: a quarter as many.
LOOKED_THROUGH = 1024
#: How the names of the tasks begin that only make room.
DELETES = names.DELETE_PEER


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
    """A message that was struck out: its request has an outcome, or its deadline had passed and it has one now."""

    queue: str
    message: bytes
    request_id: str
    task: str
    #: The commit record.
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
        self._until_answered = RetryUntilShutdown(
            lambda: worker_state.should_stop is not None or worker_state.should_terminate is not None
        )

    def __call__(self, queue: str, raw: bytes) -> tuple[list[Noted], list[Dead]]:
        """Take the message in hand, and what else waits; what there is to be carried out, and what was struck out.

        Raises:
            ShutdownRequested: the worker is to stop, and Redis is away.
            redis.ResponseError: this user may not, or Redis takes no writes.
        """
        tags = f"{uuid.uuid4().hex}."
        return self._until_answered(lambda: self.once(queue, raw, tags))

    def once(self, queue: str, raw: bytes, tags: str) -> tuple[list[Noted], list[Dead]]:
        """As it is called; with the same ``tags`` it answers the same. Raises redis.RedisError."""
        answer = self._take(
            keys=self._keys,
            args=[
                *(repr(time.time()), tags, self._gateway, MOST_IN_A_GROUP, BULK_BYTES, queue, raw),
                *(commit_record.late(commit_record.ANY_ID), self._result_ttl, MOST_STRUCK_OUT, NEARLY_LATE),
                *(LOOKED_THROUGH, DELETES),
            ],
        )
        taken, dead = cast("tuple[list[tuple[bytes, ...]], list[tuple[bytes, ...]]]", answer)
        return (
            [
                Noted(source.decode(), message, tag.decode(), answered == b"1")
                for source, message, tag, answered in taken
            ],
            [
                Dead(source.decode(), message, request_id.decode(), task.decode(errors="replace"), record.decode())
                for source, message, request_id, task, record in dead
            ],
        )
