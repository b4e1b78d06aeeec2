"""All errors of Peerlane. Each says what happened, whether anything was changed, and whether a retry can help.

PeerlaneError
├── Refused             definite: nothing was changed
│   ├── Invalid         the request is malformed or asks for what this gateway does not serve
│   ├── Conflict        the key or an address belongs to another wish
│   ├── PoolExhausted   no free address (or no room) is left on this gateway
│   ├── Draining        the gateway takes no new peers
│   ├── Unavailable     no live writer, or the lane is full; refused at once
│   └── TimedOut        the deadline passed first; the request can never take effect
├── OutcomeUnknown      Redis could not be reached, or takes no writes; asking again with the same request id settles it
├── Fenced              this writer has been replaced by a newer one
├── KernelError         the kernel refused; what was begun has been undone
│   └── NoDataPlane     this host cannot run a WireGuard device for us
├── StorageError        Redis holds something this writer cannot work with
│   └── RedisAway       a gateway could not start: Redis is not reached, or not ready
│       └── RedisRefuses    it does not let this user in, or not do what a gateway does
├── LaneHeld            another live writer holds this gateway's lane or device
├── WriterError         the writer failed in an unforeseen way; nothing was committed
└── SettingsError       a setting is missing or malformed

Errors travel as Celery failures (class name, module, arguments), so ``args`` are what the constructor takes.
"""

from __future__ import annotations

from typing import ClassVar


class PeerlaneError(Exception):
    """Base of all errors. ``args`` is ``(message,)`` or ``(message, retry_after)``."""

    code: ClassVar[str] = "error"
    #: Whether the same request, asked again later, can succeed without anybody changing anything.
    retryable: ClassVar[bool] = False
    #: Exit status of the command line: 1 refused or failed, 2 usage, 3 timed out, unavailable or unknown.
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(*([message] if retry_after is None else [message, retry_after]))
        self.message = message
        #: Seconds after which asking again is sensible, where that is known.
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message

    def as_dict(self) -> dict[str, object]:
        """The error for programs: ``code``, ``message``, ``retryable`` and, where known, ``retry_after``."""
        document: dict[str, object] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        if self.retry_after is not None:
            document["retry_after"] = self.retry_after
        return document


class Refused(PeerlaneError):
    """Definite: the request changed nothing and will never change anything."""

    code = "refused"


class Invalid(Refused):
    """The request is malformed, or asks for something this gateway does not serve."""

    code = "invalid"


class Conflict(Refused):
    """The public key is there with another wish, or an address overlaps another peer's."""

    code = "conflict"


class PoolExhausted(Refused):
    """The gateway has no free address left in a pool, or has reached its limit of peers."""

    code = "pool_exhausted"
    retryable = True


class Draining(Refused):
    """The gateway is being emptied and takes no new peers."""

    code = "draining"
    retryable = True


class Unavailable(Refused):
    """No live writer, an unknown gateway, or a lane that is full: refused at once, before anything was sent."""

    code = "unavailable"
    retryable = True
    exit_code = 3


class TimedOut(Refused):
    """The deadline passed before the commit; the request was cancelled and can never take effect."""

    code = "timed_out"
    retryable = True
    exit_code = 3


class OutcomeUnknown(PeerlaneError):
    """Redis could not be reached, or takes no writes. ``request_id`` asked again settles whether it took effect."""

    code = "outcome_unknown"
    retryable = True
    exit_code = 3

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(message)
        self.args = (message, request_id)
        self.request_id = request_id

    def as_dict(self) -> dict[str, object]:
        return {**super().as_dict(), "request_id": self.request_id}


class Fenced(PeerlaneError):
    """A newer writer has taken this gateway over; this one may change nothing any more."""

    code = "fenced"
    retryable = True


class KernelError(PeerlaneError):
    """The kernel refused a change, or could not be asked; what was begun has been undone."""

    code = "kernel_error"
    retryable = True


class NoDataPlane(KernelError):
    """This host has no WireGuard that this process may use; nothing was begun."""

    code = "no_data_plane"
    retryable = False


class StorageError(PeerlaneError):
    """Redis holds a record that cannot be read, or is not set up to keep what it confirms."""

    code = "storage_error"


class RedisAway(StorageError):
    """A gateway could not start because Redis cannot be used now; it may pass without anybody changing anything."""

    code = "redis_away"
    retryable = True
    exit_code = 3


class RedisRefuses(RedisAway):
    """Redis does not let this user in, or lacks rights or functions that a gateway needs. For an administrator."""

    code = "redis_refuses"
    retryable = False


class LaneHeld(PeerlaneError):
    """Another live writer holds the lane."""

    code = "lane_held"
    retryable = True


class WriterError(PeerlaneError):
    """The writer failed unexpectedly. Nothing was committed; its log has the details."""

    code = "writer_error"
    retryable = True


class SettingsError(PeerlaneError):
    """A setting is missing or malformed."""

    code = "settings"
    exit_code = 2


#: Where callers import the errors from, and the module that stored results and pickles name: it outlives moved files.
ERROR_MODULE = "peerlane"
#: Every class of the tree, by name.
ERRORS: dict[str, type[PeerlaneError]] = {
    name: kind for name, kind in list(globals().items()) if isinstance(kind, type) and issubclass(kind, PeerlaneError)
}


def _publish() -> None:
    for kind in ERRORS.values():
        kind.__module__ = ERROR_MODULE


_publish()
