"""Celery's other features: groups of requests work; a feature that a lane does not have is refused by name."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from celery.canvas import Signature
from celery.result import GroupResult

from peerlane.config import names
from peerlane.tasks.errors import Invalid, OutcomeUnknown, PeerlaneError
from peerlane.tasks.lane.result import LaneResult, withdraw_all
from peerlane.tasks.wire.registry import LANE_TASKS

#: Seconds beyond its timeout after which a group looks for no more outcomes where Redis cannot be reached.
LATEST = 2.0

_CALLBACKS = "a gateway runs no callbacks: get() the outcome, then go on"
_QUEUE = "the queue is the gateway's, which the argument gateway names; bulk=True takes the lane's bulk queue"
_TIME = "a request ends by its deadline: expires=SECONDS"
#: Celery's options that ask for what a lane cannot do.
_REFUSED: Mapping[str, str] = {
    "link": _CALLBACKS,
    "link_error": _CALLBACKS,
    "chain": _CALLBACKS,
    "chord": _CALLBACKS,
    "queue": _QUEUE,
    "exchange": _QUEUE,
    "routing_key": _QUEUE,
    "priority": "a lane has two priorities: interactive, and bulk=True",
    "time_limit": _TIME,
    "soft_time_limit": _TIME,
    "countdown": "a request is carried out now",
    "eta": "a request is carried out now",
    "headers": "a gateway reads no header of its callers; labels stay with the peer",
}


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse options that a lane cannot honour, except those that Celery's groups add.

    Raises:
        Invalid: names the option, and what to do instead.
    """
    for name, instead in _REFUSED.items():
        if options.get(name) not in (None, [], (), {}):
            raise Invalid(f"a gateway's lane takes no {name}: {instead}")


@Signature.register_type("peerlane.lane")
class LaneSignature(Signature):  # pyright: ignore[reportMissingTypeArgument, reportUntypedBaseClass] - celery-types has none
    """A signature of a request. Its id begins with its gateway's name, in a group too."""

    @classmethod
    def from_dict(cls, d: Any, app: Any = None) -> LaneSignature:
        return cls(d, app=app)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self["subtask_type"] = "peerlane.lane"
        #: What Celery's group holds of it.
        self._frozen: LaneResult | None = None

    def freeze(self, _id: str | None = None, *args: Any, **options: Any) -> Any:
        """As Celery's. A signature without a gateway keeps Celery's id, and is refused when it is sent."""
        gateway = self.kwargs.get("gateway")
        if "task_id" not in self.options and isinstance(gateway, str):
            _id = names.request_id(gateway, str(uuid.uuid4()))
        self._frozen = cast("LaneResult", super().freeze(_id, *args, **options))
        return self._frozen

    _freeze = freeze

    def apply_async(self, args: Any = None, kwargs: Any = None, route_name: Any = None, **options: Any) -> Any:
        """Send it. In a group, a refusal before sending is that request's own result."""
        del route_name
        refuse_options(self.options | options)  # a chord of refused requests would wait for ever
        frozen = self._frozen
        try:
            sent = cast("LaneResult", super().apply_async(args or (), kwargs or {}, **options))
        except PeerlaneError as refusal:
            if frozen is None or not (self.options | options).get("group_id"):
                raise
            frozen.refusal = refusal
            return frozen
        if frozen is not None:
            frozen.deadline, frozen.wish = sent.deadline, sent.wish
        return sent


class LaneGroupResult(GroupResult):
    """The results of a group. ``get`` cancels the requests that have no outcome at its timeout."""

    def get(  # pyright: ignore[reportIncompatibleMethodOverride] - Celery's tail is in options
        self,
        timeout: float | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        **options: Any,
    ) -> list[Any]:
        """All outcomes in order, within ``timeout`` seconds together; requests without one are then cancelled.

        Left by any exception, it cancels those of which it has no outcome. ``callback`` is called with the id and the
        outcome of each, which are then not returned, as by Celery.

        Raises:
            PeerlaneError: the first refusal, once all have their outcomes; without ``propagate`` it is in the list.
        """
        results = self._of_lanes()
        if results is None:
            return super().get(timeout, propagate, **options)
        outcomes: list[Any] = []
        try:
            first = self._wait(results, timeout, outcomes)
        except BaseException:
            withdraw_all(results[len(outcomes) :])
            raise
        if propagate and first is not None:
            raise first
        if (callback := options.get("callback")) is None:
            return outcomes
        for result, outcome in zip(results, outcomes, strict=True):
            callback(result.id, outcome)
        return []

    join = get  # pyright: ignore[reportAssignmentType] - likewise
    join_native = get  # pyright: ignore[reportAssignmentType] - likewise

    def revoke(self, *args: Any, **options: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - nothing of it but this means anything
        """Cancel all requests that have no outcome. Raises OutcomeUnknown as ``LaneResult.cancel`` does."""
        results = self._of_lanes()
        if results is None:
            super().revoke(*args, **options)
        for result in results or ():
            result.revoke()

    def _of_lanes(self) -> list[LaneResult] | None:
        """The results, if all of them are requests of lanes."""
        results: list[Any] = self.results or []
        return results if all(isinstance(result, LaneResult) for result in results) else None

    @staticmethod
    def _wait(results: Sequence[LaneResult], timeout: float | None, outcomes: list[Any]) -> PeerlaneError | None:
        """Fill ``outcomes``; the first refusal among them."""
        until = None if timeout is None else time.monotonic() + timeout
        first: PeerlaneError | None = None
        for result in results:
            left = None if until is None else max(0.001, until - time.monotonic())
            try:
                outcomes.append(result.get(left))
            except PeerlaneError as refusal:
                first = first or refusal
                outcomes.append(refusal)
                if isinstance(refusal, OutcomeUnknown) and until is not None and time.monotonic() > until + LATEST:
                    # Redis is away: each of the others would take as long to say so.
                    unasked = results[len(outcomes) :]
                    withdraw_all(unasked)
                    outcomes += [each.refusal or OutcomeUnknown(refusal.message, str(each.id)) for each in unasked]
                    break
        return first


def send_lane_task(application: Any, name: str, args: Any, kwargs: Any, **options: Any) -> LaneResult | None:
    """Send a lane's task by its name; None for other tasks, which Celery sends. Raises as ``apply_async``."""
    if name not in LANE_TASKS:
        return None
    from peerlane.tasks.lane.tasks import task_of  # noqa: PLC0415 - it imports this

    return task_of(application, name).apply_async(args, kwargs, **options)
