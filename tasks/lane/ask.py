"""Sends a request to a gateway's writer and waits: one push on a kept connection, which also receives the outcome.

If a receiver is connected to Celery's publishing signals (tracing, for example), Celery sends the request.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from celery import signals
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane.request import Request, admit, checked
from peerlane.tasks.lane.result import outcome_by, settle_unsent, withdraw
from peerlane.tasks.redis.errors import SEND_ERRORS, unknown
from peerlane.tasks.redis.subscription import Listening
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.psk_cipher import cipher_of

if TYPE_CHECKING:
    from peerlane.config.celery.app import PeerlaneApp
    from peerlane.tasks.lane.tasks import LaneTask


def ask(
    lanes: Lanes,
    task: LaneTask,
    arguments: Mapping[str, Any],
    *,
    within: float,
    request_id: str | None = None,
    bulk: bool = False,
) -> dict[str, Any]:
    """Send a request and wait for its outcome, at most ``within`` seconds plus two.

    Left by any exception, it cancels the request.

    Raises:
        PeerlaneError: as Gateway.create_peer.
    """
    until = time.monotonic() + within
    request = checked(
        task.name,
        task.model,
        arguments,
        cipher=lambda: cipher_of(cast("PeerlaneApp", task.app).settings),
        within=within,
        request_id=request_id,
        bulk=bulk,
    )
    request.id = request_id or ""
    try:
        listeners = lanes.listeners
        listening = listeners.reply(request.gateway) if request_id is None else listeners.listen(request_id)
        request.id = listening.request_id
        with listening:
            admit(lanes, request)
            return _sent(lanes, task, request, listening, until, new=request_id is None)
    except RedisError as error:
        identity = request.id or names.request_id(request.gateway, str(uuid.uuid4()))
        raise unknown(error, "nothing was sent", identity) from error


def _sent(
    lanes: Lanes, task: LaneTask, request: Request, listening: Listening, until: float, *, new: bool
) -> dict[str, Any]:
    """Send an admitted request and wait. ``new``: its id is new, so there is no earlier outcome."""
    try:
        try:
            if watched():
                task.publish(request)
            else:
                lanes.pushed(request.gateway, listening.push(request.queue, request.message()), bulk=request.bulk)
        except SEND_ERRORS as error:
            return commit_record.decode(settle_unsent(lanes, request.id, request.deadline, error), request.wish)
        heard: Listening | None = listening
        if new:
            with suppress(RedisError):
                if (record := listening.wait(until)) is not None:
                    return commit_record.decode(record, request.wish)
            heard = None  # it is lost, or the time is up: what is stored tells more
        about = lanes, request.id, request.deadline, request.wish
        return outcome_by(*about, until=until, within=request.within, listening=heard)
    except PeerlaneError:
        raise
    except BaseException:
        withdraw(lanes, request.id, request.deadline)
        raise


def watched() -> bool:
    """Whether a receiver is connected to Celery's publishing signals."""
    return bool(signals.before_task_publish.receivers or signals.after_task_publish.receivers)
