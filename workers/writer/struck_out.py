"""Ends what is left of requests that were struck out of the lane: their shares of it, and what was begun of them.

No commit does that for them. Begun are the creates that an earlier writer had in hand when Redis lost data
(``PeerTable.begun``): their peers stay on the device at a start, as their callers may know them. Who cancels does not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from redis.exceptions import ResponseError

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.set_aside import read_request
from peerlane.workers.peers.plan import Plan
from peerlane.workers.request.request import Delivery, error_code
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)


def end_struck_out(writer: Writer, dead: Sequence[tuple[str, bytes, str]]) -> None:
    """End what is left of requests, given by id, message and record ('' if their deadlines had passed).

    Raises:
        ShutdownRequested: the worker is to stop, and Redis is away; they count until their deadlines have passed.
    """
    _undo_begun(writer, dead)
    _leave_shares(writer, dead)


def created_by(message: bytes) -> list[str]:
    """The public keys that a message asks to create; none if it asks for something else."""
    asked = read_request(message, PskCipher())
    if asked is None or asked.task not in (names.CREATE_PEER, names.CREATE_PEERS):
        return []
    return [part["public_key"] for part in asked.arguments.get("wishes", [asked.arguments])]


def _undo_begun(writer: Writer, dead: Sequence[tuple[str, bytes, str]]) -> None:
    """Remove the peers of creates that are cancelled or refused, not of those that are only late."""
    table = writer.table
    if not table.begun:
        return
    cancelled = [message for _, message, record in dead if record and _is_refusal(record)]
    keys = {key for message in cancelled for key in created_by(message)} & table.begun
    writer.settle([Plan("deleted", key, table.peers[key], None) for key in sorted(keys)])


def _is_refusal(record: str) -> bool:
    try:
        commit_record.decode(record)
    except PeerlaneError as error:
        return error.message != commit_record.LATE.message
    return False


def _leave_shares(writer: Writer, dead: Sequence[tuple[str, bytes, str]]) -> None:
    """Remove requests from their shares; does nothing if the lane has no shares."""
    if not writer.has_shares:
        return
    shares: list[tuple[str, str]] = []
    for request_id, message, _ in dead:
        asked = read_request(message, PskCipher())
        if asked is None:
            continue
        request = writer.request(asked.task, Delivery(request_id), asked.arguments)
        shares += [(request.share, request_id)] if request.share else writer.shares_of_list(request)
    try:
        writer.until_answered(lambda: writer.store.leave_shares(shares))
    except ResponseError as error:
        log.warning("%d requests count on in their shares for a while (%s)", len(shares), error_code(error))
