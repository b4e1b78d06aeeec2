"""Sets messages aside: those that ended the writer repeatedly, and those that are no valid request.

Only redeliveries are counted, so an ordinary request pays nothing for this.
"""

from __future__ import annotations

import json
import logging
import secrets
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.config.redis.failures import reason
from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.set_aside import MOST, SetAside, read_request

log = logging.getLogger(__name__)

#: Deliveries of one message; what has not come to an end after them is set aside at the next.
DELIVERIES = 3
#: Seconds for which deliveries are counted; above the longest deadline.
COUNTED_FOR = 90_000


def spent(redis: Redis, gateway: str, message: Any) -> bool:
    """Whether a redelivered message has reached the limit of deliveries. Counts this delivery.

    Raises redis.RedisError where Redis is away: then the message comes again.
    """
    key = names.deliveries_key(gateway, str(message.headers.get("id")))
    pipe = redis.pipeline(transaction=True)
    pipe.incr(key)
    pipe.expire(key, COUNTED_FOR)
    try:
        return int(pipe.execute()[0]) >= DELIVERIES
    except ResponseError as error:
        log.warning("a delivery could not be counted (%s)", reason(error))
        return False


def set_aside(
    redis: Redis,
    gateway: str,
    *,
    why: str,
    queue: str,
    message: bytes,
    request_id: str | None = None,
    cipher: PskCipher | None = None,
) -> None:
    """Store a message's request for people, replacing the oldest if the list is full. Logs no content; never raises.

    A preshared key is kept only if ``cipher`` has a key.
    """
    request = read_request(message, cipher or PskCipher())
    try:
        seconds, micros = redis.time()
        at = seconds * 1000 + micros // 1000
        record = SetAside(secrets.token_hex(4), at, why, queue, len(message), request, request_id)
        pipe = redis.pipeline(transaction=True)
        pipe.lpush(names.poison_key(gateway), record.record())
        pipe.ltrim(names.poison_key(gateway), 0, MOST - 1)
        pipe.execute()
        log.warning("a message of %d bytes was set aside: %s", len(message), why)
    except RedisError as error:
        log.warning("a message of %d bytes could not be set aside (%s)", len(message), reason(error))


def content(message: Any) -> bytes:
    """The bytes of a delivered message as it was on the queue."""
    with suppress(ValueError, TypeError):
        return json.dumps(message._raw).encode()  # noqa: SLF001 - what kombu itself puts back on a queue
    return b""
