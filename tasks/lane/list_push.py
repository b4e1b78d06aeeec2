"""Sends a slice of a new list: one push on the connection that all of the list's outcomes are heard on.

Its wishes were checked when the list was cut, and are not checked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.lane.request import Request, admit, encrypt
from peerlane.tasks.lane.result import LaneResult, settle_unsent, withdraw
from peerlane.tasks.lane.telemetry import trace_headers
from peerlane.tasks.redis.errors import SEND_ERRORS, reaching
from peerlane.tasks.redis.list_replies import ListReplies
from peerlane.tasks.wire.commit_record import wish_digest
from peerlane.tasks.wire.model import CreatePeer, DeletePeer
from peerlane.tasks.wire.psk_cipher import cipher_of

if TYPE_CHECKING:
    from peerlane.config.celery.app import PeerlaneApp
    from peerlane.tasks.lane.tasks import LaneTask


class Sliced(Protocol):
    """The part of a slice that is used here."""

    @property
    def gateway(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def list_id(self) -> str: ...
    @property
    def wishes(self) -> Sequence[CreatePeer | DeletePeer]: ...
    @property
    def arguments(self) -> dict[str, Any]: ...


def push_slice(lanes: Lanes, task: LaneTask, part: Sliced, replies: ListReplies, within: float) -> LaneResult:
    """Send a slice. Raises as ``LaneTask.apply_async`` does."""
    request = _request(task, part, within)
    with reaching("nothing was sent", request.id):
        admit(lanes, request)
        reply = replies.expect(part.list_id, request.id)
    sent = task.AsyncResult(request.id)
    sent.deadline, sent.wish, sent.ignored = request.deadline, request.wish, False
    try:
        lanes.pushed(part.gateway, reply.push(request.queue, request.message()), bulk=True)
        sent.reply = reply
    except SEND_ERRORS as error:
        settle_unsent(lanes, request.id, request.deadline, error)
    except BaseException:  # it may have arrived
        withdraw(lanes, request.id, request.deadline)
        raise
    return sent


def _request(task: LaneTask, part: Sliced, within: float) -> Request:
    wishes, arguments = part.wishes, part.arguments
    settings = cast("PeerlaneApp", task.app).settings
    encrypt(wishes, arguments.get("wishes", ()), lambda: cipher_of(settings))
    return Request(
        task=task.name,
        gateway=part.gateway,
        arguments={"gateway": part.gateway, **arguments},
        queue=names.bulk_queue(part.gateway),
        bulk=True,
        creates="wishes" in arguments,
        labels=None,
        wish=wish_digest(task.name, *wishes),
        within=within,
        given=True,  # whose outcome is unknown is asked again under its id
        id=part.request_id,
        trace=trace_headers(),
    )
