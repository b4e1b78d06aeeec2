"""The commit record: a request's outcome in the form of Celery's result backend, so that plain Celery reads it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter

from peerlane.tasks.errors import ERROR_MODULE, ERRORS, Conflict, OutcomeUnknown, PeerlaneError, TimedOut, WriterError

if TYPE_CHECKING:
    from pydantic import BaseModel

#: The message header that has the digest of a wish (``wish_digest``).
HEADER = "wish"

_DIGEST = re.compile(r"[0-9a-f]{32}")
_to_json = TypeAdapter(Any).serializer.to_json
_encode = json.JSONEncoder(separators=(",", ":")).encode
#: The fields of a wish that names a public key and nothing else, as nearly all in a list do: it needs no dump.
_PLAIN = {"gateway", "public_key"}
_encode_sorted = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def encode(request_id: str, outcome: Mapping[str, Any] | PeerlaneError, wish: str = "") -> str:
    """The commit record of a success (a JSON object) or of an error; ``wish`` is its digest (``wish_digest``)."""
    if isinstance(outcome, PeerlaneError):
        kind = type(outcome)
        status, result = (
            "FAILURE",
            cast("Any", {"exc_type": kind.__name__, "exc_message": list(outcome.args), "exc_module": ERROR_MODULE}),
        )
    else:
        status, result = "SUCCESS", outcome
    meta: dict[str, Any] = {
        "status": status,
        "result": result,
        "traceback": None,
        "children": [],
        "date_done": datetime.now(UTC).isoformat(),
        "task_id": request_id,
    }
    if wish:
        meta["wish"] = wish
    return compact_json(meta)


def compact_json(value: object) -> str:
    """A value of JSON's types as JSON without spaces, in a sixth of the time that the json module takes."""
    try:
        return _to_json(value).decode()
    except ValueError:
        return _encode(value)  # half of a surrogate pair, quoted from a hostile message: UTF-8 has no such text


def tombstone(request_id: str, message: str = "cancelled: its caller had stopped waiting") -> str:
    """The commit record of a cancelled request, which can then never commit."""
    return encode(request_id, TimedOut(message))


def late(request_id: str) -> str:
    """The commit record of a request whose deadline passed before its commit. Made for each commit, rarely stored."""
    return _LATE.replace(ANY_ID, request_id, 1).replace(_DATE, datetime.now(UTC).isoformat(), 1)


#: What became of it, as ``decode`` has it.
LATE = TimedOut("its deadline had passed before the gateway could commit it")
#: Stands for an id in a record whose request is not known yet (workers/store/take.lua).
ANY_ID = "@request-id@"
_DATE = "@date@"
_LATE = json.dumps(
    {**json.loads(tombstone(ANY_ID, LATE.message)), "date_done": _DATE},
    separators=(",", ":"),
)


def error_from_wire(result: object) -> PeerlaneError:
    """The error in a FAILURE record; a WriterError if it is none of Peerlane's."""
    fields = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
    kind = ERRORS.get(str(fields.get("exc_type")))
    if kind is not None and fields.get("exc_module") == ERROR_MODULE:
        match fields.get("exc_message"):
            case [str(message), str(request_id)] if kind is OutcomeUnknown:
                return OutcomeUnknown(message, request_id)
            case [str(message), int() | float() as retry_after] if kind is not OutcomeUnknown:
                return kind(message, retry_after)
            case [str(message), *_]:
                return kind(message)
            case _:
                pass
    shown = str(fields.get("exc_type", "an unknown error"))[:64]
    return WriterError(f"the writer failed with {shown}; its log says more")


_BY_CODE = {kind.code: kind for kind in ERRORS.values()}


def error_from_dict(fields: object) -> PeerlaneError:
    """The error of a ``PeerlaneError.as_dict``, as lists contain it; a WriterError if it is none."""
    known = cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
    kind, message, retry_after = _BY_CODE.get(str(known.get("code"))), known.get("message"), known.get("retry_after")
    if kind is None or not isinstance(message, str):
        return WriterError("the writer failed with an unknown error; its log says more")
    if isinstance(retry_after, (int, float)) and kind is not OutcomeUnknown:
        return kind(message, retry_after)
    return kind(message)


def decode(stored: str | bytes, wish: str = "") -> dict[str, Any]:
    """The result in a commit record. ``wish`` is the digest of the wish, if it is known.

    Raises:
        Conflict: the record is that of another wish.
        PeerlaneError: the request ended in this error, or (WriterError) the record is not one.
    """
    try:
        meta = json.loads(stored)
        status, result, recorded = meta["status"], meta["result"], meta.get("wish")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise WriterError("what is stored under the request's id is no result") from None
    if wish and isinstance(recorded, str) and recorded != wish:
        raise Conflict("this request id was used for another request; nothing was changed: use a new id")
    if status == "SUCCESS" and isinstance(result, dict):
        return cast("dict[str, Any]", result)
    raise error_from_wire(result)


def in_short(result: Mapping[str, Any]) -> str:
    """A result in one line, because Celery's rendering of the whole result costs a tenth of a request."""
    if "answers" in result:
        kinds = Counter(str(answer.get("outcome") or answer["error"]["code"]) for answer in result["answers"])
        return " ".join(["listed", *(f"{kind}={count}" for kind, count in sorted(kinds.items()))])[:256]
    words = [str(result.get("outcome")), str(result.get("public_key", "")), *result.get("allowed_ips", ())]
    return " ".join(words)[:256]


def wish_digest(task: str, *wishes: BaseModel) -> str:
    """The digest of a checked wish, or of a list's wishes in their order.

    A record without one, as earlier versions and other senders make it, matches any wish. What is left out and what is
    named as the default are the same. The digest reveals nothing of a preshared key, which is 32 random bytes.
    """
    fields: list[dict[str, Any]] = [
        {name: getattr(wish, name) for name in _PLAIN}
        if wish.model_fields_set == _PLAIN
        else wish.model_dump(exclude={"deadline"}, exclude_defaults=True)
        for wish in wishes
    ]
    return hashlib.sha256(_encode_sorted([task, *fields]).encode()).hexdigest()[:32]


def sound_digest(value: object) -> str:
    """The digest in a message header; '' if there is none."""
    return value if isinstance(value, str) and _DIGEST.fullmatch(value) else ""
