"""The stored form of a message that a gateway has set aside: its request, or only its size.

A message may contain a secret anywhere, so it is not stored as it came. If it parses as a request, its checked
arguments are stored, with the preshared key encrypted or left out; otherwise only its size.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from peerlane.tasks.errors import Invalid
from peerlane.tasks.wire.lists import wishes_in
from peerlane.tasks.wire.model import SEALED, parse
from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.registry import LANE_TASKS

#: Messages that are kept; the oldest go first.
MOST = 1_000
#: Bytes of a message that is read as a request; the largest sound one is about 60 KiB.
LONGEST = 64 * 1024

#: Milliseconds since 1970 up to which there are dates.
LATEST = 253_402_300_800_000
#: What may stand in a record of Redis' list in the place of a preshared key, besides a sealed one.
LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Request:
    """The request of a message: arguments that the task's model has checked, without a preshared key in clear."""

    task: str
    arguments: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return all(part.get("preshared_key") != LEFT_OUT for part in parts(self.arguments))


@dataclass(frozen=True, slots=True)
class SetAside:
    """A message that was set aside."""

    id: str
    #: Milliseconds since 1970 on Redis' clock.
    at: int
    reason: str
    queue: str
    #: Bytes it had.
    size: int
    #: None where it was no sound request.
    request: Request | None = None
    #: Where it names a well-formed one of this gateway.
    request_id: str | None = None

    def record(self) -> str:
        """The stored form (JSON)."""
        fields: dict[str, Any] = {"id": self.id, "at": self.at, "reason": self.reason, "queue": self.queue}
        fields |= {"size": self.size, "request_id": self.request_id}
        if self.request is not None:
            fields |= {"task": self.request.task, "arguments": dict(self.request.arguments)}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_record(cls, record: bytes) -> SetAside | None:
        """From the stored form; None for any other text."""
        try:
            fields = json.loads(record)
            request = fields.get("request_id")
            if not 0 <= fields["at"] < LATEST:
                return None
            return cls(
                *(str(fields["id"])[:64], int(fields["at"]), str(fields["reason"])[:500], str(fields["queue"])[:200]),
                *(int(fields["size"]), _request(fields), request if isinstance(request, str) else None),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None


def _request(fields: Mapping[str, Any]) -> Request | None:
    task, arguments = fields.get("task"), fields.get("arguments")
    if not isinstance(task, str) or task not in LANE_TASKS or not isinstance(arguments, dict):
        return None
    return Request(task, cast("dict[str, Any]", arguments))


def parts(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a request's arguments that may have a preshared key: the arguments, or each wish of a list."""
    wishes = arguments.get("wishes")
    listed = cast("list[object]", wishes) if isinstance(wishes, list) else [arguments]
    return [cast("dict[str, Any]", part) for part in listed if isinstance(part, dict)]


def read_request(message: bytes, cipher: PskCipher) -> Request | None:
    """The request of a message, without its secret; None if it is no valid request of a lane."""
    if len(message) > LONGEST:
        return None
    try:
        envelope = json.loads(message)
        task, body = envelope["headers"]["task"], envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        _, arguments, _ = json.loads(body)
        wish = parse(LANE_TASKS[task].model, arguments)
        wishes_in(wish)
    except (Invalid, ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError):
        return None
    # The model takes no argument that it does not know; what else the message held, in its headers say, is not kept.
    kept = {name: value for name, value in cast("dict[str, Any]", arguments).items() if value is not None}
    for part in parts(kept):
        if (secret := part.get("preshared_key")) is not None:
            sealed = cipher.encrypt(wish.gateway, part["public_key"], secret)
            part["preshared_key"] = sealed if sealed is not None and SEALED.fullmatch(sealed) else LEFT_OUT
    return Request(task, kept)
