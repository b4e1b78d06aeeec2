"""Celery's strategy for requests: what it makes of a message that was taken, and how the writer is called for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from celery.utils.imports import symbol_by_name
from celery.worker import request as celery_request
from celery.worker.state import task_reserved

from peerlane.config import names
from peerlane.tasks.errors import Invalid, PeerlaneError, WriterError
from peerlane.tasks.wire.model import check_public_key
from peerlane.tasks.wire.wish_digest import HEADER, sound_digest
from peerlane.workers.lane import poison
from peerlane.workers.lane.group import Group, Member
from peerlane.workers.lane.taken import TAKEN, LaneWriter, TakenMessage
from peerlane.workers.writer.delivery import Delivery

#: Events sent as one message at the end of the event loop's turn; those of a whole group. Celery's default is 24.
EVENTS_AT_ONCE = 512


class LaneStrategy:
    """What Celery calls for each message of one task: the stock strategy without ETA, expiry and rate limits."""

    def __init__(self, task: Any, app: Any, consumer: Any) -> None:
        self._task, self._app, self._consumer = task, app, consumer
        self._eventer = consumer.event_dispatcher
        self._sends_events = bool(self._eventer and self._eventer.enabled and task.send_events)
        if self._sends_events:
            self._eventer.buffer_limit = EVENTS_AT_ONCE
        self._request_class = cast("Any", celery_request).create_request_cls(
            symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, self._eventer, app=app
        )

    def __call__(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        """Refuse the message, or have Celery run the task for it."""
        del body
        try:
            request_id, arguments = self._open(message)
        except PeerlaneError as error:
            self._consumer.refuse(message, message.headers.get("id"), error)
            return
        wish = sound_digest(message.headers.get(HEADER))
        redelivered = poison.was_delivered(message)
        delivery = Delivery(request_id, message.delivery_tag, redelivered, message.answered, wish)
        taken = TakenMessage(message, delivery, ack)
        request = self._request(message, taken, arguments, reject)
        if self._sends_events:
            self._tell_received(request_id, arguments)
        task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        run = partial(self._consumer.on_task_request, request)
        group, writer = cast("Group | None", message.channel.group), getattr(self._task, "writer", None)
        if group is not None and isinstance(writer, LaneWriter):
            group.add(writer, Member(self._task.name, taken, arguments, run))
        else:
            run()

    def _open(self, message: Any) -> tuple[str, dict[str, Any]]:
        """Request id and arguments. Raises PeerlaneError for a message that is to be refused."""
        gateway = self._consumer.service.name
        if not names.is_request_id(gateway, message.headers.get("id")):
            raise Invalid(f"its id is not {gateway}.TOKEN")
        if poison.was_delivered(message) and self._consumer.spent(message):
            raise WriterError(_SPENT)
        return open_request(message)

    def _request(self, message: Any, taken: TakenMessage, arguments: dict[str, Any], reject: Any) -> Any:
        """Celery's request. Its headers are these and no others, whatever the sender has written."""
        request_id = taken.delivery.request_id
        headers = {
            "lang": "py",
            "task": self._task.name,
            "id": request_id,
            "root_id": request_id,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": shown(arguments),
            "origin": str(message.headers.get("origin"))[:128],
            "retries": 0,
            TAKEN: taken,
        }
        return self._request_class(
            message,
            on_ack=taken.acknowledge,
            on_reject=reject,
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

    def _tell_received(self, request_id: str, arguments: Mapping[str, Any]) -> None:
        self._eventer.send(
            "task-received",
            uuid=request_id,
            name=self._task.name,
            args="()",
            kwargs=shown(arguments),
            root_id=request_id,
            parent_id=None,
            retries=0,
            eta=None,
            expires=None,
        )


def open_request(message: Any) -> tuple[str, dict[str, Any]]:
    """The request id and keyword arguments of a message whose envelope is sound.

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


def shown(arguments: Mapping[str, Any]) -> str:
    """What events and Flower show of a request on its arrival: whose it is. The rest is not checked yet.

    A preshared key may stand in any of it, misnamed or in the wrong place; what was granted, the result shows.
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
