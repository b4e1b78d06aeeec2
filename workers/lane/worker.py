"""Celery's worker and consumer for a lane: start and stop with the service, reconnecting, refusing bad messages."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from typing import Any, Protocol, cast

from celery.apps.worker import Worker
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.consumer import consumer as celery_consumer
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.redis.client import connect
from peerlane.config.redis.connections import NotPrimary
from peerlane.config.redis.failures import reason
from peerlane.tasks.errors import Invalid, PeerlaneError
from peerlane.tasks.wire.psk_cipher import cipher_of
from peerlane.tasks.wire.registry import TASKS
from peerlane.workers.host.pulse import PULSE
from peerlane.workers.lane import poison
from peerlane.workers.lane.group import LaneWriter
from peerlane.workers.lane.steps import ServeStep, SignalStep, TickStep
from peerlane.workers.lane.strategy import LaneStrategy
from peerlane.workers.lane.taking import Dead
from peerlane.workers.store.retry import OUTAGE

log = logging.getLogger(__name__)


#: Seconds between two tries to connect to Redis again: at first, more each time, at most. Celery's are 2, 2 and 30.
FIRST_PAUSE, MORE, LONGEST_PAUSE = 0.25, 0.25, 0.5


#: Seconds between two of Celery's events that tell monitors that the worker lives.
EVENT_EVERY = 10.0


class Service(Protocol):
    """The service that the worker starts, ticks and stops; see peerlane.workers.gateway and .observer."""

    name: str
    #: Whether another host serves its requests at present: then none is taken off the queue.
    paused: bool

    def start(self) -> None: ...
    def tick(self) -> None: ...
    def fill(self) -> bool: ...
    def stop(self) -> None: ...
    def refuse(self, request_id: str, error: PeerlaneError) -> None: ...


_Consumer: Any = Consumer  # celery-types knows none of its attributes


class LaneConsumer(_Consumer):
    """A consumer that refuses invalid messages without logging them, and tells the caller if the id is valid."""

    @property
    def service(self) -> Service:
        """The gateway's service, which the worker holds."""
        return cast("LaneWorker", self.controller).service

    _paused = False

    def on_ready(self) -> None:
        """Prepare for consuming, which has just begun."""
        super().on_ready()
        self._paused = False
        self.task_consumer.channel.end_dead = self.end_dead
        self.obey_pause()

    def end_dead(self, dead: Sequence[Dead]) -> None:
        """End a request that was struck out of the lane."""
        for request in dead:
            strategy = self.strategies.get(request.task)
            if isinstance(strategy, LaneStrategy):
                strategy.end_dead(request)
        writer = getattr(self.app.tasks[names.CREATE_PEER], "writer", None)
        if isinstance(writer, LaneWriter):
            writer.strike_out(dead)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect to Redis, and try again until that succeeds or the worker has to stop."""

        def failed(error: BaseException, _pause: float) -> None:
            PULSE.wait()
            OUTAGE.failed(reason(error))

        pauses = {"interval_start": FIRST_PAUSE, "interval_step": MORE, "interval_max": LONGEST_PAUSE}
        while True:
            connected = conn.ensure_connection(failed, None, callback=worker_state.maybe_shutdown, **pauses)
            try:
                self._try_to_write()
                break
            except NotPrimary as error:  # it answers, and takes no writes
                failed(error, LONGEST_PAUSE)
            worker_state.maybe_shutdown()
            time.sleep(LONGEST_PAUSE)
        self.first_connection_attempt = False
        OUTAGE.over()
        return connected

    def _try_to_write(self) -> None:
        """Raise NotPrimary if Redis takes no writes now, for a full disk too. Other errors are left to consuming."""
        taken = str(self.app.conf.broker_transport_options["unacked_key"])
        redis = connect(self.app.settings)
        try:
            redis.hdel(taken, "nothing")
        except NotPrimary:
            raise
        except RedisError as error:
            if str(error).startswith("MISCONF"):
                raise NotPrimary(str(error)) from error
            log.debug("whether Redis takes writes is not known (%s)", reason(error))
        finally:
            redis.close()

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        OUTAGE.failed(reason(exc))

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        OUTAGE.failed(reason(exc))
        super().on_connection_error_after_connected(exc)

    def obey_pause(self) -> None:
        """Stop taking requests while the service is paused, and continue afterwards."""
        if self._paused != self.service.paused:
            self._paused = self.service.paused
            (self.task_consumer.cancel if self._paused else self.task_consumer.consume)()

    def update_strategies(self) -> None:
        """Keep only Peerlane's tasks: anybody who can publish could run Celery's own (maps, chords, cleanups) here."""
        super().update_strategies()
        for name in self.strategies.keys() - TASKS.keys():
            del self.strategies[name]

    def spent(self, message: Any) -> bool:
        """Whether the message has reached the limit of deliveries."""
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
                cipher=cipher_of(self.app.settings),
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


class LaneWorker(Worker):
    """Celery's worker for one gateway. It sets the options that must not depend on the command line."""

    service: Service
    #: Why it did not start.
    refusal: PeerlaneError | None = None
    #: Whether a start waits for Redis where it is away, instead of failing.
    awaits_redis = False

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
        # Celery sends every two seconds, for clusters that elect a leader. The event tells Flower the interval.
        options["heartbeat_interval"] = options.get("heartbeat_interval") or EVENT_EVERY
        # Flower shows the gateway where the command line named no node.
        if not hostname or hostname.startswith("celery@"):
            hostname = names.node_name(gateway, socket.gethostname(), observer=chosen.role == "observer")
        # At the debug level Celery's pools show whole requests, preshared keys too.
        logging.getLogger("celery.pool").setLevel(logging.INFO)
        logging.getLogger("celery.worker.consumer.consumer").addFilter(_not_of_a_lost_connection)
        super().__init__(app=chosen, hostname=hostname, **options)

    def on_before_init(self, *args: Any, **options: Any) -> None:
        self.app.steps["worker"].add(ServeStep)
        self.app.steps["consumer"].update((TickStep, SignalStep))
        super().on_before_init(*args, **options)


_LOST = cast("Any", celery_consumer).CONNECTION_RETRY


def _not_of_a_lost_connection(record: logging.LogRecord) -> bool:
    """Drop Celery's log line about a lost connection, because OUTAGE has logged it."""
    return not (isinstance(record.args, tuple) and record.args[:1] == (_LOST,))
