"""Messages that a gateway has set aside: what ended its writer again and again, and what was no request at all.

They stay in a bounded list until somebody looks. A message may hold a secret in any place, so none is kept as it came:
of one that parses as a request, its checked arguments, the preshared key sealed or left out; of any other, its size.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp
from peerlane.tasks.errors import Invalid, PeerlaneError
from peerlane.tasks.lane.registry import LANE_TASKS
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire import outcome as results
from peerlane.tasks.wire.model import SEALED, parse
from peerlane.tasks.wire.psk_cipher import Sealing

#: Messages that are kept; the oldest go first.
MOST = 1_000
#: Bytes of a message that is read as a request; the largest sound one is about 60 KiB.
LONGEST = 64 * 1024

#: What may stand in a record of Redis' list in the place of a preshared key, besides a sealed one.
LEFT_OUT = "left out"


class SecretLeftOut(Invalid):
    """A message cannot be asked again: its preshared key was not kept. Nothing was sent, and the message stays."""

    code = "secret_left_out"


@dataclass(frozen=True, slots=True)
class Request:
    """What a set-aside message asks for: arguments that the task's model has checked, no preshared key in clear."""

    task: str
    arguments: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether it holds all that the message asked for."""
        return self.arguments.get("preshared_key") != LEFT_OUT


@dataclass(frozen=True, slots=True)
class SetAside:
    """One message."""

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
        found: dict[str, Any] = {"id": self.id, "at": self.at, "reason": self.reason, "queue": self.queue}
        found |= {"size": self.size, "request_id": self.request_id}
        if self.request is not None:
            found |= {"task": self.request.task, "arguments": dict(self.request.arguments)}
        return json.dumps(found, separators=(",", ":"))

    @classmethod
    def from_record(cls, record: bytes) -> SetAside | None:
        """From the stored form; None for what is not one."""
        try:
            fields = json.loads(record)
            request = fields.get("request_id")
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


def read_request(message: bytes, sealing: Sealing) -> Request | None:
    """What a message off a queue asks for, without its secret; None where it is no sound request of a lane."""
    if len(message) > LONGEST:
        return None
    try:
        envelope = json.loads(message)
        task, body = envelope["headers"]["task"], envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        _, arguments, _ = json.loads(body)
        wish = parse(LANE_TASKS[task].model, arguments)
    except (Invalid, ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError):
        return None
    # The model takes no argument that it does not know; what else the message held, in its headers say, is not kept.
    kept = {name: value for name, value in cast("dict[str, Any]", arguments).items() if value is not None}
    if (secret := kept.get("preshared_key")) is not None:
        sealed = sealing.seal(wish.gateway, kept["public_key"], secret)
        kept["preshared_key"] = sealed if sealed is not None and SEALED.fullmatch(sealed) else LEFT_OUT
    return Request(task, kept)


def set_aside_messages(redis: Redis, gateway: str) -> list[SetAside]:
    """All of them, the latest first. Raises redis.RedisError."""
    return [found for _, found in _records(redis, gateway)]


def find(redis: Redis, gateway: str, wanted: str) -> SetAside:
    """One by its id. Raises redis.RedisError.

    Raises:
        Invalid: there is none of this id.
    """
    for found in set_aside_messages(redis, gateway):
        if found.id == wanted:
            return found
    raise Invalid(f"the gateway {gateway} has set no message {wanted} aside; `peerlane gateway poison {gateway}` lists")


def drop(redis: Redis, gateway: str, wanted: str) -> None:
    """Forget one. Raises redis.RedisError.

    Raises:
        Invalid: there is none of this id.
    """
    find(redis, gateway, wanted)
    for record, found in _records(redis, gateway):
        if found.id == wanted:
            redis.lrem(names.poison_key(gateway), 0, cast("str", record))


def drop_all(redis: Redis, gateway: str) -> int:
    """Forget all; how many there were. Raises redis.RedisError."""
    pipe = redis.pipeline(transaction=True)
    pipe.llen(names.poison_key(gateway))
    pipe.delete(names.poison_key(gateway))
    return int(pipe.execute()[0])


def replay(app: PeerlaneApp, redis: Redis, gateway: str, wanted: str, *, timeout: float) -> dict[str, Any]:
    """Ask again for what a message asked for, as a new request; forget the message once that is done; the result.

    The message's own request has its outcome, and its deadline is past: neither can be had again.

    Raises:
        Invalid: no such message, or it is no request.
        SecretLeftOut: its preshared key was not kept.
        PeerlaneError: the request's refusal; the message stays.
    """
    found = find(redis, gateway, wanted)
    request = found.request
    if request is None:
        raise Invalid(f"the message {wanted} is no request that could be asked again: drop it")
    if not request.complete:
        raise SecretLeftOut(
            f"the message {wanted} cannot be asked again: it had a preshared key, which is kept only where"
            " PEERLANE_PSK_KEY_FILE seals it; ask for the peer anew, then drop the message"
        )
    arguments = {name: value for name, value in request.arguments.items() if name != "deadline"}
    if arguments.get("gateway") != gateway:
        raise Invalid(f"the message {wanted} is a request for another gateway: drop it")
    bulk = found.queue == names.bulk_queue(gateway)
    sent = task_of(app, request.task).apply_async(kwargs=arguments, expires=timeout, bulk=bulk)
    result = sent.get(timeout=timeout)
    drop(redis, gateway, wanted)
    return result


def shown(found: SetAside, outcome: str | None = None) -> dict[str, Any]:
    """A message for people and programs, without anything that may be secret. ``outcome`` is its commit record."""
    request = found.request
    about: dict[str, Any] = {"id": found.id, "at": found.at // 1000, "reason": found.reason, "queue": found.queue}
    about |= {"request_id": found.request_id, "size": found.size, "outcome": _outcome(outcome)}
    about["replayable"] = request is not None and request.complete
    if request is None:
        return about | {"not_shown": "it is no sound request: nothing of it was kept"}
    about["task"] = request.task
    try:
        # Checked once more: what stands in the list may be somebody else's.
        secret = "preshared_key" in request.arguments
        clear = {name: value for name, value in request.arguments.items() if name != "preshared_key"}
        parse(LANE_TASKS[request.task].model, clear)
    except Invalid as error:
        return about | {"not_shown": error.message}
    about["arguments"] = clear
    if secret:
        about["arguments"]["preshared_key"] = "(hidden)" if request.complete else "(was not kept)"
    return about


def _outcome(record: str | None) -> str | None:
    if record is None:
        return None
    try:
        return str(results.decode(record).get("outcome"))
    except PeerlaneError as error:
        return error.code


def _records(redis: Redis, gateway: str) -> list[tuple[bytes, SetAside]]:
    stored = cast("list[bytes]", redis.lrange(names.poison_key(gateway), 0, -1))
    return [(record, found) for record in stored if (found := SetAside.from_record(record)) is not None]
