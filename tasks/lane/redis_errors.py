"""What redis-py's errors mean to a caller that reads: Redis is away, or it answered and refused."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from peerlane.config.redis import reason
from peerlane.tasks.errors import OutcomeUnknown, StorageError


@contextmanager
def reading(after: str = "") -> Generator[None]:
    """Raise the errors of the one tree for those of redis-py; ``after`` ends the sentence of an outage.

    Raises:
        StorageError: Redis answered and refused: this user has no right to it, or the server does not serve it.
        OutcomeUnknown: Redis could not be reached.
    """
    try:
        yield
    except ResponseError as error:
        raise StorageError(f"Redis refused: {reason(error)}") from error
    except (RedisError, OSError) as error:
        raise OutcomeUnknown(f"Redis could not be reached ({reason(error)}){after}") from error


def is_refused(error: BaseException) -> bool:
    """Whether this Redis user has no right to what failed; kombu hands such an error on as the cause of its own."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None or isinstance(cause, NoPermissionError):
            break
        cause = cause.__cause__ or cause.__context__
    return isinstance(cause, NoPermissionError)
