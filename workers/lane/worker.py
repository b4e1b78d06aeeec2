"""How Celery's worker serves a lane: what it takes off the queue, what it refuses there, when it stops."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from celery import bootsteps, current_task
from celery.apps.worker import Worker
from celery.exceptions import Reject, WorkerShutdown
from celery.utils.imports import symbol_by_name
from celery.worker import request as celery_request
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.state import task_reserved

from peerlane.config import names
from peerlane.config.routing import LANE_TASKS
from peerlane.tasks.errors import Fenced, Invalid, PeerlaneError, RedisAway, WriterError
from peerlane.tasks.wire.model import check_public_key
from peerlane.tasks.wire.psk_cipher import sealing_of
from peerlane.workers import failpoints
from peerlane.workers.lane import poison
from peerlane.workers.writer.retry import Stopping
from peerlane.workers.writer.writer import Writer

log = logging.getLogger(__name__)

EXIT_REPLACED = 1
#: Redis could not be used at the start. It passes by itself: a supervisor may try again (workers.host.supervisor).
EXIT_AWAY = RedisAway.exit_code

#: Header of a request that may have an outcome already.
DOUBTFUL = "doubtful"
#: Header: the tag of the message a request came by.
TAG = "tag"


class Service(Protocol):
    """What the worker drives; see peerlane.workers.service."""

    name: str
    #: Whether its requests are for somebody else just now: then none is taken off the queue.
    paused: bool

    def start(self) -> None: ...
    def tick(self) -> None: ...
    def stop(self) -> None: ...
    def refuse(self, request_id: str, error: PeerlaneError) -> None: ...


class LaneWriter:
    """The writer as the tasks see it: what must end the worker ends it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def carry_out(self, task: str, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See Writer.carry_out."""
        # What lane_strategy has written into the request's headers.
        doubtful = bool(getattr(current_task.request, DOUBTFUL, True)) if current_task else True
        tag = str(getattr(current_task.request, TAG, "")) if current_task else ""
        try:
            return self._writer.carry_out(task, request_id, arguments, doubtful=doubtful, tag=tag)
        except Fenced as error:
            # The request goes back to the lane for the writer that has taken over; this worker ends.
            worker_state.should_stop = EXIT_REPLACED
            raise Reject(error.message, requeue=True) from None
        except Stopping:
            raise WorkerShutdown(0) from None
        finally:
            failpoints.reach("before_acknowledge")

    def has_acknowledged(self, tag: str) -> bool:
        """Whether the message of this tag, the last one carried out, was acknowledged by its request's commit."""
        return bool(tag) and self._writer.acknowledged == tag


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


def lane_strategy(task: Any, app: Any, consumer: Any) -> Callable[..., None]:
    """Celery's per-task strategy for requests: the stock one without ETA, expiry, revocation and rate limits."""
    eventer = consumer.event_dispatcher
    sends_events = bool(eventer and eventer.enabled and task.send_events)
    request_class = cast("Any", celery_request).create_request_cls(
        symbol_by_name(task.Request), task, consumer.pool, consumer.hostname, eventer, app=app
    )
    handle = consumer.on_task_request
    gateway = cast("LaneConsumer", consumer).service.name

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        del body
        request_id = message.headers.get("id")
        if not names.is_request_id(gateway, request_id):
            consumer.refuse(message, request_id, Invalid(f"its id is not {gateway}.TOKEN"))
            return
        if poison.was_delivered(message) and consumer.spent(message):
            consumer.refuse(message, request_id, WriterError(_SPENT))
            return
        try:
            request_id, arguments = open_request(message)
        except Invalid as error:
            consumer.refuse(message, request_id, error)
            return
        headers = {
            "lang": "py",
            "task": task.name,
            "id": request_id,
            "root_id": request_id,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": shown(arguments),
            "origin": str(message.headers.get("origin"))[:128],
            "retries": 0,
            DOUBTFUL: poison.was_delivered(message) or message.answered,
            TAG: message.delivery_tag,
        }

        def acknowledge(*told: Any) -> None:
            tag, writer = message.delivery_tag, getattr(task, "writer", None)
            if isinstance(writer, LaneWriter) and writer.has_acknowledged(tag):
                message.channel.qos.struck_out = tag
            ack(*told)

        request = request_class(
            message,
            on_ack=acknowledge,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=eventer,
            task=task,
            connection_errors=consumer.connection_errors,
            body=((), arguments, {}),
            headers=headers,
            decoded=True,
            utc=True,
        )
        if sends_events:
            eventer.send(
                "task-received",
                uuid=request_id,
                name=task.name,
                args="()",
                kwargs=headers["kwargsrepr"],
                root_id=request_id,
                parent_id=None,
                retries=0,
                eta=None,
                expires=None,
            )
        task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        handle(request)

    return on_message


def shown(arguments: Mapping[str, Any]) -> str:
    """What events and Flower show of a request on its arrival: whose it is. The rest is not checked yet.

    A preshared key may stand in any of it, misnamed or in the wrong place; what was granted, the result shows.
    """
    key = arguments.get("public_key")
    try:
        return repr({"public_key": check_public_key(key)} if key is not None else {})
    except ValueError:
        return "{'public_key': '(malformed)'}"


_SPENT = (
    f"set aside after {poison.DELIVERIES} deliveries, of which none came to an end; an operator can look at it "
    "(gateway poison)"
)

_Consumer: Any = Consumer  # celery-types knows none of its attributes


class LaneConsumer(_Consumer):
    """Refuses what is no request without showing it in a log, and tells the caller where its id is sound."""

    @property
    def service(self) -> Service:
        """The gateway's service, which the worker holds."""
        return cast("LaneWorker", self.controller).service

    _paused = False

    def on_ready(self) -> None:
        """It has just begun to consume."""
        super().on_ready()
        self._paused = False
        self.obey_pause()

    def obey_pause(self) -> None:
        """Stop taking requests while the service is paused, and go on afterwards."""
        if self._paused != self.service.paused:
            self._paused = self.service.paused
            (self.task_consumer.cancel if self._paused else self.task_consumer.consume)()

    def update_strategies(self) -> None:
        """Requests alone: Celery's own tasks (maps, chords, cleanups) would run here for whoever can publish."""
        super().update_strategies()
        for name in self.strategies.keys() - LANE_TASKS:
            del self.strategies[name]

    def spent(self, message: Any) -> bool:
        """Whether the message has been delivered often enough without coming to an end."""
        with message.channel.conn_or_acquire() as client:
            return poison.spent(client, self.service.name, message)

    def refuse(self, message: Any, request_id: object, error: PeerlaneError) -> None:
        """Take the message off the queue, set it aside, and make ``error`` its outcome."""
        log.warning("a message was refused: %s", error)
        sound = names.is_request_id(self.service.name, request_id)
        queue = message.delivery_info["routing_key"]
        with message.channel.conn_or_acquire() as client:
            poison.set_aside(
                client,
                self.service.name,
                why=error.message,
                queue=queue,
                message=poison.content(message),
                request_id=str(request_id) if sound else None,
                sealing=sealing_of(self.app.settings),
            )
        if names.is_request_id(self.service.name, request_id):
            self.service.refuse(str(request_id), error)
        message.ack_log_error(log, self.connection_errors)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self.refuse(message, message.headers.get("id"), Invalid("the message names no task"))

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:
        self.refuse(message, message.headers.get("id"), Invalid("no such task in a gateway's lane"))

    def on_invalid_task(self, body: Any, message: Any, exc: Any) -> None:
        self.refuse(message, message.headers.get("id"), Invalid("the message is malformed"))

    def on_decode_error(self, message: Any, exc: Any) -> None:
        self.refuse(message, message.headers.get("id"), Invalid("the message cannot be decoded"))


class ServeStep(bootsteps.StartStopStep):
    """Before the worker consumes: lock, epoch, device, recovery. After it has stopped consuming: let go."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        try:
            parent.service.start()
            parent.app.bind(parent.service)
        except PeerlaneError as error:
            log.critical("%s", error)
            parent.refusal = error
            raise SystemExit(error.exit_code) from None

    def stop(self, parent: Any) -> None:
        parent.service.stop()

    terminate = stop


class TickStep(bootsteps.StartStopStep):
    """While the worker consumes: once a second, between requests, in the writer's own thread."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        # Set anew with each connection: a consumer that loses its connection clears the timer.
        self._timer = parent.timer.call_repeatedly(1.0, self._tick, (parent,))

    def _tick(self, parent: Any) -> None:
        parent.service.tick()
        parent.obey_pause()

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LaneWorker(Worker):
    """Celery's worker for one gateway: what must not be forgotten on a command line is set here."""

    service: Service
    #: Why it did not start.
    refusal: PeerlaneError | None = None

    def __init__(self, app: Any = None, hostname: str | None = None, **options: Any) -> None:
        chosen = app or self.app
        gateway = chosen.settings.gateway
        self.service = chosen.make_service()
        options |= {
            "without_gossip": True,
            "without_mingle": True,
            "pool_cls": "solo",
            "concurrency": 1,
            "prefetch_multiplier": 1,
            "queues": None,
            "exclude_queues": None,
            "beat": False,
        }
        # Flower shows the gateway where the command line named no node.
        named = gateway if chosen.role == "writer" else f"{gateway}-{chosen.role}"
        node = f"{named}@{socket.gethostname()}" if not hostname or hostname.startswith("celery@") else hostname
        # At the debug level Celery's pools show whole requests, preshared keys too.
        logging.getLogger("celery.pool").setLevel(logging.INFO)
        super().__init__(app=chosen, hostname=node, **options)

    def on_before_init(self, *args: Any, **options: Any) -> None:
        self.app.steps["worker"].add(ServeStep)
        self.app.steps["consumer"].add(TickStep)
        super().on_before_init(*args, **options)
