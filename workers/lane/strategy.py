"""Celery's strategy for a lane's tasks: has the writer carry a taken message's request out. What a lane accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from celery import signals
from celery.utils.imports import symbol_by_name
from celery.worker import request as celery_request
from celery.worker.state import task_reserved
from kombu.transport import redis as kombu_redis

from peerlane.config import names
from peerlane.tasks.errors import Invalid, PeerlaneError, WriterError
from peerlane.tasks.wire.commit_record import HEADER, LATE, decode, sound_digest
from peerlane.tasks.wire.model import check_public_key
from peerlane.workers.lane import poison
from peerlane.workers.lane.group import Group, LaneWriter, LeanEnding, Member, TaskEvents
from peerlane.workers.lane.taking import TAKEN, Dead, TakenMessage
from peerlane.workers.request.request import Delivery

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

#: Bytes of a whole message beyond which it is refused unread; the largest sound request is about 60 KiB.
MAX_MESSAGE = 512 * 1024

#: It becomes a field in Redis, so it must be valid UTF-8, which a JSON string need not be. Kombu's is a UUID.
_TAG = re.compile(r"[!-~]{1,200}")


class LaneStrategy:
    """The strategy of one task, which Celery calls for each message. It has no ETA, expiry or rate limits."""

    def __init__(self, task: Any, app: Any, consumer: Any) -> None:
        self._task, self._app, self._consumer = task, app, consumer
        self._gateway = consumer.service.name
        self._request_ids = names.request_ids(self._gateway)
        self._eventer = consumer.event_dispatcher
        self._events = TaskEvents(task, self._eventer, consumer.hub)
        self._ending = LeanEnding(task, consumer, self._events)
        self._request_class = cast("Any", celery_request).create_request_cls(
            symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, self._eventer, app=app
        )

    def __call__(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        """Refuse the message, or have its request carried out, with its group or now."""
        del body
        redelivered = was_delivered(message)
        try:
            request_id, arguments = self._open(message, redelivered=redelivered)
        except PeerlaneError as error:
            self._consumer.refuse(message, message.headers.get("id"), error)
            return
        delivery = Delivery(
            request_id,
            message.delivery_tag,
            redelivered,
            message.answered,
            sound_digest(message.headers.get(HEADER)),
            sent_at=sent_at(message.headers),
            traceparent=parent_of(message.headers),
        )
        taken = TakenMessage(message, delivery, ack, reject)
        shown = shown_of(arguments)
        self._events.received(request_id, shown)
        run = partial(self._run, message, taken, arguments, shown, callbacks)
        writer = getattr(self._task, "writer", None)
        if not isinstance(writer, LaneWriter):  # an observer's, or none: Celery does it
            run()
            return
        together = cast("Group | None", message.channel.group)
        group = Group() if together is None else together
        group.add(writer, Member(self._task.name, taken, arguments, run, self._ending), lean=not callbacks)
        if together is None:
            group.carry_out()

    def _run(
        self, message: Any, taken: TakenMessage, arguments: dict[str, Any], shown: str, callbacks: Sequence[Any] | None
    ) -> None:
        """Have Celery run the task. Its outcome is in ``taken``, or is made now."""
        request = self._request(message, taken, arguments, shown)
        signals.task_received.send(sender=self._consumer, request=request)
        task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        self._consumer.on_task_request(request)

    def end_dead(self, dead: Dead) -> None:
        """End a request that was struck out of the lane, and so has its outcome."""
        outcome: dict[str, Any] | PeerlaneError
        try:
            outcome = decode(dead.record) if dead.record else LATE
        except PeerlaneError as error:
            outcome = error
        self._ending.struck_out(dead.request_id, outcome)

    def _open(self, message: Any, *, redelivered: bool) -> tuple[str, dict[str, Any]]:
        """Request id and arguments. Raises PeerlaneError for a message that is to be refused."""
        request_id = message.headers.get("id")
        if not isinstance(request_id, str) or not self._request_ids.fullmatch(request_id):
            raise Invalid(f"its id is not {self._gateway}.TOKEN")
        if redelivered and self._consumer.spent(message):
            raise WriterError(_SPENT)
        return open_request(message)

    def _request(self, message: Any, taken: TakenMessage, arguments: dict[str, Any], shown: str) -> Any:
        """Celery's request object, with these headers only, whatever the sender has written."""
        request_id = taken.delivery.request_id
        headers = {
            "lang": "py",
            "task": self._task.name,
            "id": request_id,
            "root_id": request_id,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": shown,
            "origin": str(message.headers.get("origin"))[:128],
            "retries": 0,
            TAKEN: taken,
        }
        return self._request_class(
            message,
            on_ack=taken.acknowledge,
            on_reject=taken.reject,
            app=self._app,
            hostname=self._consumer.hostname,
            eventer=self._eventer,
            task=self._task,
            connection_errors=self._consumer.connection_errors,
            body=((), arguments, {}),
            headers=headers,
            decoded=True,
            utc=True,
        )


def sound_envelope(raw: bytes) -> dict[str, Any] | str:  # noqa: C901, PLR0912 - one question after another
    """Kombu's envelope, if kombu and Celery accept it without raising; else a text that says what is wrong.

    Both index into the envelope unasked, and an error there would end the worker. The body stays as it is.
    """
    if len(raw) > MAX_MESSAGE:
        return f"larger than {MAX_MESSAGE} bytes"
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(parsed, dict):
        return "not a JSON object"
    envelope = cast("dict[str, Any]", parsed)
    properties = envelope.get("properties")
    if not isinstance(properties, dict):
        return "without properties"
    known = cast("dict[str, Any]", properties)
    if not isinstance(known.get("delivery_tag"), str) or not _TAG.fullmatch(known["delivery_tag"]):
        return "without a delivery tag"
    info = known.get("delivery_info")
    if not isinstance(info, dict) or not all(
        isinstance(cast("dict[str, Any]", info).get(name), str) for name in ("exchange", "routing_key")
    ):
        return "without delivery information"
    if known.get("body_encoding") not in (None, "base64"):
        return "in an unknown body encoding"
    if not isinstance(envelope.get("body"), str):
        return "without a body"
    headers = envelope.get("headers")
    if not isinstance(headers, dict):
        return "without headers"
    if not isinstance(cast("dict[str, Any]", headers).setdefault("task", ""), str):
        headers["task"] = ""  # a name that no task has: Celery would fail on one that is not hashable
    cast("dict[str, Any]", headers).pop("compression", None)  # kombu would inflate without a limit
    if not all(isinstance(envelope.get(name), str) for name in ("content-type", "content-encoding")):
        return "without a content type"
    if known.get("body_encoding") == "base64":
        try:
            kombu_redis.Channel.codecs["base64"].decode(envelope["body"])
        except (ValueError, TypeError):
            return "with a body that is no base64"
    return envelope


def was_delivered(message: Any) -> bool:
    """Whether a message was delivered before, and comes from the store of unacknowledged messages."""
    info = message.delivery_info
    return message.headers.get("redelivered") is True or (isinstance(info, dict) and "redelivered" in info)


def open_request(message: Any) -> tuple[str, dict[str, Any]]:
    """The request id and keyword arguments of a message with a valid envelope.

    Only plain JSON is read, whatever kombu would decode; everything else that Celery's protocol can carry (ETA,
    callbacks, chords, time limits, other headers) is left behind.

    Raises:
        Invalid: the message is no request.
    """
    if message.content_type != "application/json" or str(message.content_encoding).lower() not in ("utf-8", "utf8"):
        raise Invalid("a request is JSON in UTF-8 (content type application/json)")
    try:
        body = json.loads(message.body)
    except (ValueError, TypeError, RecursionError):
        raise Invalid("the request's body is not JSON") from None
    if not isinstance(body, list) or len(cast("list[Any]", body)) != 3:
        raise Invalid("a request's body is [args, kwargs, embed], as Celery's protocol 2 has it")
    args, kwargs, _ = cast("list[Any]", body)
    if args:
        raise Invalid("a request takes keyword arguments only")
    if not isinstance(kwargs, dict):
        raise Invalid("a request's keyword arguments are a JSON object")
    if "self" in kwargs:  # Celery calls the task with it, and would fail before the model could refuse it
        raise Invalid("self: no such argument")
    return str(message.headers.get("id")), cast("dict[str, Any]", kwargs)


def sent_at(headers: Mapping[str, Any]) -> int:
    """When a message was sent, in ms on Redis' clock, from its header; 0 if the header is missing or malformed."""
    sent = headers.get(names.SENT_AT)
    return sent if isinstance(sent, int) and not isinstance(sent, bool) and 0 < sent < 2**53 else 0


def parent_of(headers: Mapping[str, Any]) -> str:
    """The caller's span in a message's headers; '' if there is none."""
    span = headers.get(names.TRACEPARENT)
    return span if isinstance(span, str) and _TRACEPARENT.fullmatch(span) else ""


def shown_of(arguments: Mapping[str, Any]) -> str:
    """The arguments as events and Flower show them: only the public key, because the rest is not checked yet.

    Any argument may contain a preshared key, misnamed or in the wrong place. The result shows what was granted.
    """
    key = arguments.get("public_key")
    for name in ("wishes", "public_keys"):
        if isinstance(listed := arguments.get(name), list):
            return repr({name: len(cast("list[object]", listed))})
    try:
        return repr({"public_key": check_public_key(key)} if key is not None else {})
    except ValueError:
        return "{'public_key': '(malformed)'}"


_SPENT = (
    f"set aside after {poison.DELIVERIES} deliveries, of which none came to an end; an operator can look at it "
    "(gateway poison)"
)
