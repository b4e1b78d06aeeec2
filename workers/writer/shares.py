"""Removes struck-out requests from their shares of the lane, which no commit does for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from redis.exceptions import ResponseError

from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.set_aside import read_request
from peerlane.workers.request.request import Delivery, error_code
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)


def leave_shares(writer: Writer, dead: Sequence[tuple[str, bytes]]) -> None:
    """Remove requests, given by id and message, from their shares; does nothing if the lane has no shares.

    Raises:
        ShutdownRequested: the worker is to stop, and Redis is away; they count until their deadlines have passed.
    """
    if not writer.has_shares:
        return
    shares: list[tuple[str, str]] = []
    for request_id, message in dead:
        asked = read_request(message, PskCipher())
        if asked is None:
            continue
        request = writer.request(asked.task, Delivery(request_id), asked.arguments)
        shares += [(request.share, request_id)] if request.share else writer.shares_of_list(request)
    try:
        writer.until_answered(lambda: writer.store.leave_shares(shares))
    except ResponseError as error:
        log.warning("%d requests count on in their shares for a while (%s)", len(shares), error_code(error))
