"""Lists, replays and drops the messages that a gateway has set aside (peerlane.tasks.wire.set_aside)."""

from __future__ import annotations

import copy
from typing import Any, cast

from redis import Redis

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import Invalid, PeerlaneError
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.lists import wishes_in
from peerlane.tasks.wire.model import parse
from peerlane.tasks.wire.registry import LANE_TASKS
from peerlane.tasks.wire.set_aside import SetAside, parts


class SecretLeftOut(Invalid):
    """A message cannot be replayed: its preshared key was not kept. Nothing was sent, and the message stays."""

    code = "secret_left_out"


def set_aside_messages(redis: Redis, gateway: str) -> list[SetAside]:
    """All set-aside messages, the latest first. Raises redis.RedisError."""
    return [message for _, message in _records(redis, gateway)]


def find(redis: Redis, gateway: str, wanted: str) -> SetAside:
    """A message by its id. Raises redis.RedisError.

    Raises:
        Invalid: there is none of this id.
    """
    for message in set_aside_messages(redis, gateway):
        if message.id == wanted:
            return message
    raise Invalid(f"the gateway {gateway} has set no message {wanted} aside; `peerlane gateway poison {gateway}` lists")


def drop(redis: Redis, gateway: str, wanted: str) -> None:
    """Drop a message. Raises redis.RedisError.

    Raises:
        Invalid: there is none of this id.
    """
    find(redis, gateway, wanted)
    for record, message in _records(redis, gateway):
        if message.id == wanted:
            redis.lrem(names.poison_key(gateway), 0, cast("str", record))


def drop_all(redis: Redis, gateway: str) -> int:
    """Drop all messages; returns how many there were. Raises redis.RedisError."""
    pipe = redis.pipeline(transaction=True)
    pipe.llen(names.poison_key(gateway))
    pipe.delete(names.poison_key(gateway))
    return int(pipe.execute()[0])


def replay(app: PeerlaneApp, redis: Redis, gateway: str, wanted: str, *, timeout: float) -> dict[str, Any]:
    """Send a message's request again as a new request, and then drop the message; returns the result.

    The message's own request has its outcome, and its deadline is past: neither can be had again.

    Raises:
        Invalid: no such message, or it is no request.
        SecretLeftOut: its preshared key was not kept.
        PeerlaneError: the request's refusal; the message stays.
    """
    message = find(redis, gateway, wanted)
    request = message.request
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
    bulk = message.queue == names.bulk_queue(gateway)
    sent = task_of(app, request.task).apply_async(kwargs=arguments, expires=timeout, bulk=bulk)
    result = sent.get(timeout=timeout)
    drop(redis, gateway, wanted)
    return result


def shown(message: SetAside, outcome: str | None = None) -> dict[str, Any]:
    """A message for people and programs, without possible secrets. ``outcome`` is its commit record."""
    request = message.request
    about: dict[str, Any] = {
        "id": message.id,
        "at": message.at // 1000,
        "reason": message.reason,
        "queue": message.queue,
    }
    about |= {"request_id": message.request_id, "size": message.size, "outcome": _outcome(outcome)}
    about["replayable"] = request is not None and request.complete
    if request is None:
        return about | {"not_shown": "it is no sound request: nothing of it was kept"}
    about["task"] = request.task
    try:
        # Checked once more: another program may have written into the list.
        shown_arguments = copy.deepcopy(dict(request.arguments))
        secret = [part for part in parts(shown_arguments) if part.pop("preshared_key", None) is not None]
        wishes_in(parse(LANE_TASKS[request.task].model, shown_arguments))
    except Invalid as error:
        return about | {"not_shown": error.message}
    for part in secret:
        part["preshared_key"] = "(hidden)" if request.complete else "(was not kept)"
    return about | {"arguments": shown_arguments}


def _outcome(record: str | None) -> str | None:
    if record is None:
        return None
    try:
        return str(commit_record.decode(record).get("outcome"))
    except PeerlaneError as error:
        return error.code


def _records(redis: Redis, gateway: str) -> list[tuple[bytes, SetAside]]:
    stored = cast("list[bytes]", redis.lrange(names.poison_key(gateway), 0, -1))
    return [(record, message) for record in stored if (message := SetAside.from_record(record)) is not None]
