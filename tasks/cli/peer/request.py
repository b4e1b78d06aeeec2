"""Sends one request for a command: Ctrl-C, SIGTERM and SIGHUP cancel it, and a new private key is never lost."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from peerlane.config import names
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.cli.interrupts import undisturbed
from peerlane.tasks.cli.output import as_document
from peerlane.tasks.cli.program import INTERRUPTED, Exit
from peerlane.tasks.cli.session import Session
from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError
from peerlane.tasks.lane.result import settle
from peerlane.tasks.wire.cancel import result_of
from peerlane.tasks.wire.model import PeerResult, peer_result

#: Seconds in which an interrupted request is settled.
SETTLE = 2.0


class Interrupted(PeerlaneError):
    """Ctrl-C. Before the outcome: the request was cancelled and can never take effect."""

    code = "interrupted"
    retryable = True
    exit_code = INTERRUPTED


def new_request_id(gateway: str, token: str | None = None) -> str:
    """A request id of this gateway; with ``token``, if given, with or without the gateway's name before it."""
    token = str(uuid.uuid4()) if token is None else token
    return token if token.startswith(f"{gateway}.") else names.request_id(gateway, token)


def ask(session: Session, request_id: str, send: Callable[[], PeerResult]) -> PeerResult:
    """Call ``send`` and return its result. If Ctrl-C interrupts it, the request is settled first.

    Raises:
        PeerlaneError: as ``send`` does.
        Interrupted: nothing was changed, nor will be.
        OutcomeUnknown: Redis could not be reached to find out.
    """
    try:
        return send()
    except KeyboardInterrupt:
        with undisturbed():
            record = settle(lanes_of(session.app), request_id, 0, until=time.monotonic() + SETTLE)
    interrupted = Interrupted("interrupted: the request was cancelled and will never take effect")
    return peer_result(result_of(record, interrupted))


def fail(session: Session, error: PeerlaneError, secrets: dict[str, str | None], again: str, **about: object) -> Exit:
    """Print an error. ``secrets`` are shown if they may still be needed, because only the caller has them.

    ``again`` is the command that asks for the same again, which settles an unknown outcome.
    """
    kept = {name: value for name, value in secrets.items() if value is not None}
    if not isinstance(error, OutcomeUnknown):
        kept = {}
    output = session.output
    output.error(as_document(error, **about, **kept))
    if isinstance(error, OutcomeUnknown):
        session.name_redis()
        if again:
            output.note(f"to settle it, ask again: {again}")
        for name, value in kept.items():
            output.warn(f"{name.replace('_', ' ')}, shown this once: {value}")
    return Exit(error.exit_code)
