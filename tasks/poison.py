"""Messages that a gateway has set aside: what ended its writer again and again, and what was no request at all.

They stay in a bounded list until somebody looks. A message may hold a secret in any place: nothing of one is shown but
what parses as a request, and of that no preshared key.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from config import names
from config.celery_app import PeerlaneApp
from tasks import results
from tasks.definitions import TASKS, task_of
from tasks.errors import Invalid, PeerlaneError
from tasks.model import parse

#: Messages that are kept; the oldest go first.
MOST = 1_000
#: Bytes of a message that are kept; the largest sound request is about 60 KiB.
KEPT = 64 * 1024


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
    #: As it was taken off the queue, cut after ``KEPT`` bytes.
    message: bytes
    #: Where it names a well-formed one of this gateway.
    request_id: str | None = None

    def record(self) -> str:
        """The stored form (JSON)."""
        found: dict[str, Any] = {"id": self.id, "at": self.at, "reason": self.reason, "queue": self.queue}
        found |= {"size": self.size, "request_id": self.request_id}
        return json.dumps(found | {"message": base64.b64encode(self.message[:KEPT]).decode()}, separators=(",", ":"))

    @classmethod
    def from_record(cls, record: bytes) -> SetAside | None:
        """From the stored form; None for what is not one."""
        try:
            fields = json.loads(record)
            message = base64.b64decode(fields["message"], validate=True)
            request = fields.get("request_id")
            return cls(
                *(str(fields["id"])[:64], int(fields["at"]), str(fields["reason"])[:500], str(fields["queue"])[:200]),
                *(int(fields["size"]), message, request if isinstance(request, str) else None),
            )
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Request:
    """What a set-aside message asks for."""

    task: str
    arguments: Mapping[str, Any]


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
        PeerlaneError: the request's refusal; the message stays.
    """
    found = find(redis, gateway, wanted)
    request = request_in(found)
    arguments = {name: value for name, value in request.arguments.items() if name != "deadline"}
    if arguments.get("gateway") != gateway:
        raise Invalid(f"the message {wanted} is a request for another gateway: drop it")
    bulk = found.queue == names.bulk_queue(gateway)
    sent = task_of(app, request.task).apply_async(kwargs=arguments, expires=timeout, bulk=bulk)
    result = sent.get(timeout=timeout)
    drop(redis, gateway, wanted)
    return result


def request_in(found: SetAside) -> Request:
    """What a message asks for, unchecked.

    Raises:
        Invalid: it is no request.
    """
    try:
        if found.size > len(found.message):
            raise ValueError("cut")
        envelope = json.loads(found.message)
        task, body = envelope["headers"]["task"], envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        _, arguments, _ = json.loads(body)
        if task not in TASKS or not isinstance(arguments, dict):
            raise ValueError("no task of a lane")
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError):
        raise Invalid(f"the message {found.id} is no request that could be asked again: drop it") from None
    return Request(task, cast("dict[str, Any]", arguments))


def shown(found: SetAside, outcome: str | None = None) -> dict[str, Any]:
    """A message for people and programs, without anything that may be secret. ``outcome`` is its commit record."""
    about: dict[str, Any] = {"id": found.id, "at": found.at // 1000, "reason": found.reason, "queue": found.queue}
    about |= {"request_id": found.request_id, "size": found.size, "whole": found.size == len(found.message)}
    about["outcome"] = _outcome(outcome)
    try:
        request = request_in(found)
        about["task"] = request.task
        wish = parse(TASKS[request.task].model, request.arguments)
        about["arguments"] = wish.model_dump(mode="json", exclude={"preshared_key"}, exclude_none=True)
        if request.arguments.get("preshared_key") is not None:
            about["arguments"]["preshared_key"] = "(hidden)"
    except Invalid as error:
        about["not_shown"] = error.message
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
