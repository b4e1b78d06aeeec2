"""What Celery's worker does beside consuming: it starts a service before, ticks it meanwhile, stops it afterwards."""

from __future__ import annotations

import logging
import signal
import socket
import time
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.exceptions import WorkerShutdown
from celery.worker import state as worker_state
from redis.exceptions import AuthenticationError, RedisError

from peerlane.config.redis.client import connect
from peerlane.config.redis.url import shown_url
from peerlane.tasks.errors import PeerlaneError, RedisAway
from peerlane.workers.host.pulse import PULSE
from peerlane.workers.store.retry import AWAY, OUTAGE, RetryUntilShutdown, ShutdownRequested

log = logging.getLogger(__name__)

#: Seconds of filling in one turn of the event loop, while nothing arrives: a turn costs as much as a few peers, and the
#: loop's timers wait for its end.
FILLING = 0.05


class ServeStep(bootsteps.StartStopStep):
    """Starts the service before the worker consumes, and stops it after the worker has stopped consuming."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        url = shown_url(parent.app.settings.redis_url.get_secret_value())
        OUTAGE.place = url
        try:
            if parent.awaits_redis:
                _await_redis(parent)
            parent.service.start()
            parent.app.bind(parent.service)
        except ShutdownRequested:
            raise SystemExit(0) from None
        except PeerlaneError as error:
            if isinstance(error, RedisAway) and _is_to_stop():
                raise SystemExit(0) from None
            log.critical("%s%s", error, f"; Redis is {url}" if isinstance(error, RedisAway) else "")
            parent.refusal = error
            raise SystemExit(error.exit_code) from None

    def stop(self, parent: Any) -> None:
        parent.service.stop()

    terminate = stop


def _is_to_stop() -> bool:
    return worker_state.should_stop is not None or worker_state.should_terminate is not None


def _await_redis(worker: Any) -> None:
    """Wait until Redis answers, with anything. Raises ShutdownRequested if the worker has to stop meanwhile."""
    redis = connect(worker.app.settings)

    def ask() -> None:
        try:
            redis.ping()
        except AuthenticationError:
            return  # a ConnectionError to redis-py, but the start's to tell
        except AWAY:
            raise
        except RedisError:
            return

    try:
        RetryUntilShutdown(_is_to_stop)(ask)
    finally:
        redis.close()


class TickStep(bootsteps.StartStopStep):
    """Ticks the service once a second, between requests, in the writer's thread, while the worker consumes."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._first: Any = None
        self._timer: Any = None
        #: A pair of which the first is always readable, while there is more to fill. The event loop then does not wait:
        #: each of its turns takes what messages there are, and fills. Its timers wait a millisecond or more.
        self._more: tuple[socket.socket, socket.socket] | None = None

    def start(self, parent: Any) -> None:
        PULSE.turn()
        # At a start it is due at once. After an outage of Redis others are given a second to come back.
        if self._first is None:
            self._first = parent.timer.call_after(0.0, self._tick, (parent,))
        # Set anew with each connection: a consumer that loses its connection clears the timer.
        self._timer = parent.timer.call_repeatedly(1.0, self._tick, (parent,))
        self._fill(parent)

    def _tick(self, parent: Any) -> None:
        try:
            parent.service.tick()
        except ShutdownRequested:
            raise WorkerShutdown(0) from None
        PULSE.turn()
        parent.obey_pause()
        if self._more is None:
            self._fill(parent)

    def _fill(self, parent: Any) -> None:
        """Fill slices until something arrives, or the worker is to stop; the event loop handles that first."""
        until = time.monotonic() + FILLING
        while True:
            if not parent.service.fill():
                self._end_filling(parent)
                return
            if self._more is None:
                near, far = self._more = socket.socketpair()
                far.send(b"\0")
                parent.hub.add_reader(near.fileno(), self._fill, parent)
            if time.monotonic() >= until or _is_to_stop() or self._something_arrived(parent):
                return

    def _something_arrived(self, parent: Any) -> bool:
        """Whether the event loop has anything to read besides the pair."""
        near = self._more[0].fileno() if self._more is not None else -1
        return any(descriptor != near for descriptor, _ in parent.hub.poller.poll(0) or ())

    def _end_filling(self, parent: Any) -> None:
        if self._more is not None:
            parent.hub.remove_reader(self._more[0].fileno())
            for end in self._more:
                end.close()
            self._more = None

    def stop(self, parent: Any) -> None:
        if self._first is not None:
            self._first.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if parent.event_dispatcher:
                parent.event_dispatcher.flush()  # while there is a connection
        self._end_filling(parent)


class SignalStep(bootsteps.StartStopStep):
    """Wakes the event loop at a signal. Otherwise a worker that is asked to end would do so at its next tick."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        #: The interpreter writes to the second at each signal.
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def start(self, parent: Any) -> None:
        near, far = self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)  # noqa: FBT003 - its only argument
        signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        parent.hub.add_reader(near.fileno(), _drain, near)

    def stop(self, parent: Any) -> None:
        if self._ends is not None:
            signal.set_wakeup_fd(-1)
            parent.hub.remove_reader(self._ends[0].fileno())
            for end in self._ends:
                end.close()
            self._ends = None


def _drain(socket_end: socket.socket) -> None:
    with suppress(BlockingIOError):
        socket_end.recv(4096)
