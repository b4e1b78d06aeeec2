"""Translates what redis-py and kombu raise into Peerlane's errors, in one place."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from peerlane.config.redis.failures import failure, reason
from peerlane.tasks.errors import OutcomeUnknown, StorageError

#: What sending a message through Celery may raise.
SEND_ERRORS = (OperationalError, RedisError, OSError, RuntimeError)

#: Fields of a hash read per round trip.
PAGE = 1_000

#: What a request's caller has to know where its outcome could not be learned.
UNSETTLED = "whether the request took effect is unknown; ask again with the same id"


def unknown(error: BaseException, consequence: str = "", request_id: str = "") -> OutcomeUnknown:
    """The error for a caller: what failed, and what that means for the request."""
    return OutcomeUnknown("; ".join(filter(None, (failure(error), consequence))), request_id)


def may_not_send() -> StorageError:
    """The error for a user without the right to push into the lane."""
    return StorageError(f"Redis refused, and nothing was sent: {reason(NoPermissionError())}")


@contextmanager
def reaching(consequence: str = "", request_id: str = "", *, refused: str | None = None) -> Generator[None]:
    """Translate each failure of the Redis commands inside the block.

    With ``refused`` a refusal by Redis is an error of its own, and ``refused`` says what follows from it.

    Raises:
        OutcomeUnknown: a command failed; ``consequence`` says what follows from that.
        StorageError: Redis refused a command, and ``refused`` was given.
    """
    try:
        yield
    except RedisError as error:
        if refused is not None and isinstance(error, ResponseError):
            raise StorageError(f"{failure(error)}; {refused}") from None  # its text may quote what was sent
        raise unknown(error, consequence, request_id) from error


def reading(consequence: str = "nothing was read") -> AbstractContextManager[None]:
    """As ``reaching``, for commands that only read: a refusal, such as a missing right, is a StorageError."""
    return reaching(consequence, refused=consequence)


def scan(redis: Redis, key: str) -> Iterator[tuple[bytes, bytes]]:
    """A hash's fields and values, in no order; one that changes meanwhile may come twice. Raises as ``reading``."""
    pages = cast("Iterator[tuple[bytes, bytes]]", redis.hscan_iter(key, count=PAGE))
    while True:
        with reading():
            try:
                entry = next(pages)
            except StopIteration:
                return
        yield entry


def is_silent(error: BaseException) -> bool:
    """Whether Redis did not answer at all. On a unix socket redis-py wraps that in another error."""
    return any(isinstance(cause, (TimeoutError, RedisTimeoutError)) for cause in (error, error.__cause__))


def is_refused(error: BaseException) -> bool:
    """Whether a command failed because this Redis user lacks the right; kombu wraps that error in its own."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None or isinstance(cause, NoPermissionError):
            break
        cause = cause.__cause__ or cause.__context__
    return isinstance(cause, NoPermissionError)
