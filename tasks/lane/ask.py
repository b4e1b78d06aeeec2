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
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.admission.waits import Wait
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane.request import Request, admit, checked
from peerlane.tasks.lane.result import decided, leave, outcome_by, settle_unsent, withdraw
from peerlane.tasks.redis.errors import SEND_ERRORS, is_silent, unknown
from peerlane.tasks.redis.subscription import Listening
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.psk_cipher import cipher_of

if TYPE_CHECKING:
    from peerlane.config.celery.app import PeerlaneApp
    from peerlane.tasks.lane.tasks import LaneTask


#: Seconds between two tries to send; with less time left there is none.
AGAIN_AFTER = 0.2


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
        with _admitted(lanes, request, until, request_id) as listening:
            return _sent(lanes, task, request, listening, until, new=request_id is None)
    except RedisError as error:
        identity = request.id or names.request_id(request.gateway, str(uuid.uuid4()))
        raise unknown(error, "nothing was sent", identity) from error


def _admitted(lanes: Lanes, request: Request, until: float, request_id: str | None) -> Listening:
    """The connection of a request that its lane admits. While Redis is silent and time is left, it is asked again.

    A single lost packet makes it silent for as long as it may take to answer. Raises redis.RedisError.
    """
    listeners = lanes.listeners
    while True:
        listening: Listening | None = None
        try:
            listening = listeners.reply(request.gateway) if request_id is None else listeners.listen(request_id)
            request.id = listening.request_id
            admit(lanes, request)
        except BaseException as error:
            if listening is not None:
                listening.close()
            if not isinstance(error, RedisError) or not is_silent(error) or time.monotonic() + AGAIN_AFTER >= until:
                raise
        else:
            return listening


def _sent(
    lanes: Lanes, task: LaneTask, request: Request, listening: Listening, until: float, *, new: bool
) -> dict[str, Any]:
    """Send an admitted request and wait.

    ``new``: its id is new, so there is no earlier outcome, and nobody else waits for it.
    """
    wait = None if new else lanes.waits.enter(request.id)
    try:
        try:
            if watched():
                task.publish(request)
            else:
                lanes.pushed(request.gateway, listening.push(request.queue, request.message()), bulk=request.bulk)
        except SEND_ERRORS as error:
            return _send_again(lanes, request, until, error, wait)
        heard: Listening | None = listening
        if new:
            with suppress(RedisError):
                if (record := listening.wait(until)) is not None:
                    return commit_record.decode(record, request.wish)
                # On the same connection: where many give up at once, new ones might take longer than there is time.
                record = lanes.cancel(request.id, deadline=request.deadline, by=listening)
                return decided(record, request.within, request.wish)
            heard = None  # the connection is lost, or Redis has stored nothing: what is there tells more
        return _outcome(lanes, request, until, heard, wait)
    except PeerlaneError:
        raise
    except BaseException:
        if wait is None or wait.leave():
            withdraw(lanes, request.id, request.deadline)
        raise
    finally:
        if wait is not None:
            wait.leave()


def _outcome(
    lanes: Lanes, request: Request, until: float, listening: Listening | None, wait: Wait | None
) -> dict[str, Any]:
    about = lanes, request.id, request.deadline, request.wish
    return outcome_by(*about, until=until, within=request.within, listening=listening, wait=wait)


def _send_again(
    lanes: Lanes, request: Request, until: float, error: BaseException, wait: Wait | None
) -> dict[str, Any]:
    """After ``error`` at sending, which may have arrived all the same: send it again while time is left.

    The same message twice is one request: the writer answers the second from the record of the first, as it does with
    what is delivered again. Where no time is left, or Redis has answered with an error, the request is cancelled.
    """
    while not watched() and _is_lost(error) and time.monotonic() + AGAIN_AFTER < until:
        try:
            with lanes.listeners.listen(request.id) as listening:
                if (stored := lanes.stored(request.id)) is not None:
                    return commit_record.decode(stored, request.wish)
                lanes.pushed(request.gateway, listening.push(request.queue, request.message()), bulk=request.bulk)
                return _outcome(lanes, request, until, listening, wait)
        except SEND_ERRORS as later:
            error = later
        time.sleep(AGAIN_AFTER)
    leave(wait, request.id, request.within)
    return commit_record.decode(settle_unsent(lanes, request.id, request.deadline, error), request.wish)


def _is_lost(error: BaseException) -> bool:
    """Whether there was no answer, unlike an answer that refuses."""
    return isinstance(error, (RedisConnectionError, RedisTimeout, OSError)) and not isinstance(
        error, AuthenticationError
    )


def watched() -> bool:
    """Whether a receiver is connected to Celery's publishing signals."""
    return bool(signals.before_task_publish.receivers or signals.after_task_publish.receivers)
