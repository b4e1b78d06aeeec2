"""One kept connection of an asyncio program, which sends its requests and receives their outcomes.

It is subscribed to one channel for all requests, that of ``GATEWAY.REPLY`` for the ids ``GATEWAY.REPLY_N``, and to one
channel for each request whose id the caller has chosen. Requests of one turn of the loop go out as one push. A single
task makes the connection, reads it and closes it. When it reconnects, it reads missed outcomes from the result keys,
and pushes again, with the same ids, what Redis may not have received; that is harmless.
redis-py's PubSub is not used, because any send or read reconnects it, even after it was closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from peerlane.config import names
from peerlane.config.settings import Settings
from peerlane.tasks.client.aio_connections import ANSWERED_WITHIN, connections, end, over, read, unlogged
from peerlane.tasks.redis.errors import is_silent

#: Requests in one push.
PUSHED_AT_ONCE = 128
#: How a connection shows that it is lost; the last where it is closed under its reader.
_LOST = (RedisError, OSError, AttributeError)
#: What stands before the request's id in a commit record.
_ID = b'"task_id":'
#: Seconds before a lost connection is made anew.
_PAUSE = 0.1


@dataclass(slots=True, eq=False)
class Waiter:
    """A request for whose outcome a call waits."""

    id: str
    #: Its commit record.
    record: asyncio.Future[str]
    #: Whether its id is its caller's: then it has a channel of its own, and may have an outcome already.
    given: bool
    queue: str = ""
    #: What is to be pushed into the queue; empty once Redis has it.
    message: str = ""


@dataclass(slots=True, eq=False)
class _Command:
    """A command to send, with the requests it is for. Redis answers in the order of sending."""

    words: tuple[str, ...]
    waiters: list[Waiter] = field(default_factory=list[Waiter])

    def packed(self) -> tuple[str, ...]:
        """The command as bytes, with the messages of a push."""
        return (*self.words, *(waiter.message for waiter in self.waiters)) if self.words[0] == "LPUSH" else self.words


class ResultListener:
    """Sends requests to one gateway and waits for their outcomes. Belongs to one event loop."""

    def __init__(
        self, settings: Settings, gateway: str, pushed: Callable[[str, int], None] = lambda _queue, _length: None
    ) -> None:
        """``pushed`` is called with the length of a queue after a push into it."""
        self._pool = connections(settings)
        self.redis: Redis = Redis.from_pool(self._pool)
        self.loop = asyncio.get_running_loop()
        self._pushed = pushed
        self._reply = names.request_id(gateway, uuid.uuid4().hex)
        self._asked = 0
        self._serving: asyncio.Task[None] | None = None
        #: Whether requests can be sent: there is a connection, and it is subscribed.
        self.up = False
        #: The calls that wait for that.
        self._entering: list[asyncio.Future[None]] = []
        self._connection: AbstractConnection | None = None
        #: Commands to send; sent ones without an answer; the first of these at the last check of the connection.
        self._outbox: list[_Command] = []
        self._to_send = asyncio.Event()
        self._sent: deque[_Command] = deque()
        self._suspect: _Command | None = None
        self._heard = False
        #: Those who wait for a request, by its id: several may ask for the same.
        self._waiters: dict[str, list[Waiter]] = {}
        self._wanted = asyncio.Event()
        self._watching: asyncio.TimerHandle | None = None

    def new_id(self) -> str:
        """An id for a request whose outcome comes on this connection."""
        self._asked += 1
        return f"{self._reply}_{self._asked}"

    async def ready(self, until: float) -> None:
        """Return once requests can be sent; ``until`` is on the loop's clock.

        Raises:
            redis.RedisError, OSError: Redis cannot be reached; tried again while it is silent.
        """
        if self._serving is None or self._serving.done():
            self._serving = self.loop.create_task(self._serve())
        while not self.up:
            entering = self.loop.create_future()
            self._entering.append(entering)
            self._wanted.set()
            self._watch()
            try:
                # The last try leaves time to ask for the outcome within the two seconds that a call may take more.
                async with asyncio.timeout(max(0.5, until - self.loop.time())):
                    await entering
            except (RedisError, OSError) as error:
                if not is_silent(error) or self.loop.time() >= until:
                    raise
            finally:
                self._entering.remove(entering)
                self._want()

    def expect(self, request_id: str, *, given: bool, queue: str = "", message: str = "") -> Waiter:
        """Wait for a request until ``forget``; if there is a message, push it."""
        waiter = Waiter(request_id, self.loop.create_future(), given, queue, message)
        self._waiters.setdefault(request_id, []).append(waiter)
        self._wanted.set()
        self._watch()
        if self._connection is not None:  # what is new sends all that wait; it may have done so, and not be up yet
            self._subscribe(waiter)
            self._push(waiter)
            if given:
                self._look_for(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> bool:
        """Stop waiting; returns whether no call waits for the request any more."""
        waiters = self._waiters.get(waiter.id, [])
        if waiter not in waiters:
            return False
        waiters.remove(waiter)
        if waiters:
            return False
        del self._waiters[waiter.id]
        self._want()
        if waiter.given and self._connection is not None:
            self._tell(_Command(("UNSUBSCRIBE", names.result_key(waiter.id))))
        return True

    def _want(self) -> None:
        if not self._waiters and not self._entering:
            self._wanted.clear()

    def _subscribe(self, waiter: Waiter) -> None:
        if waiter.given:
            self._tell(_Command(("SUBSCRIBE", names.result_key(waiter.id)), [waiter]))

    def _push(self, waiter: Waiter) -> None:
        if not waiter.message:
            return
        words = ("LPUSH", waiter.queue)
        last = self._outbox[-1] if self._outbox else None
        if last is not None and last.words == words and len(last.waiters) < PUSHED_AT_ONCE:
            last.waiters.append(waiter)
        else:
            self._tell(_Command(words, [waiter]))

    def _look_for(self, waiter: Waiter) -> None:
        self._tell(_Command(("GET", names.result_key(waiter.id)), [waiter]))

    def _tell(self, command: _Command) -> None:
        self._outbox.append(command)
        self._to_send.set()

    async def _serve(self) -> None:
        """Serve the connection, and reconnect while calls wait."""
        while True:
            await self._wanted.wait()
            connection = unlogged(self._pool.make_connection())
            try:
                await connection.connect()
                await self._attend(connection)
            except _LOST as error:
                # Calls that have sent nothing yet get the error; the others wait for the next connection.
                if self._connection is None or isinstance(error, ResponseError):
                    self._refuse(error)
            finally:
                self._connection, self.up = None, False
                await connection.disconnect(nowait=True)
            await asyncio.sleep(_PAUSE)

    async def _attend(self, connection: AbstractConnection) -> None:
        """Subscribe, push again what Redis may not have, read missed outcomes; then read until disconnected."""
        self._connection, self._suspect = connection, None
        self._outbox, self._sent = [_Command(("SUBSCRIBE", names.result_key(self._reply)))], deque()
        self._to_send.set()
        waiting = [waiter for waiters in self._waiters.values() for waiter in waiters]
        for act in (self._subscribe, self._push, self._look_for):
            for waiter in waiting:
                act(waiter)
        sending = asyncio.create_task(self._send(connection))
        try:
            while connection.is_connected:
                self._take(await read(connection))
        finally:
            await end([sending])

    def _take(self, message: object) -> None:
        self._heard = True
        match message:
            case [b"message", bytes(), bytes(record)]:
                self._resolve(record)
            case [b"subscribe", bytes(), int()]:
                command = self._sent.popleft()
                if not command.waiters:
                    self._enter()
            case _:
                self._answered(self._sent.popleft(), message)

    def _answered(self, command: _Command, answer: object) -> None:
        if isinstance(answer, ResponseError):
            if not command.waiters and command.words[0] == "SUBSCRIBE":
                raise answer
            for waiter in command.waiters:
                if not waiter.record.done():
                    waiter.record.set_exception(answer)
        elif command.words[0] == "LPUSH":
            for waiter in command.waiters:
                waiter.message = ""
            self._pushed(command.words[1], cast("int", answer))
        elif command.words[0] == "GET" and isinstance(answer, bytes):
            for waiter in command.waiters:
                _give(waiter, answer)

    def _resolve(self, record: bytes) -> None:
        begin = record.find(b'"', record.rfind(_ID) + len(_ID)) + 1  # Celery's backend writes spaces there, we do not
        for waiter in self._waiters.get(record[begin : record.find(b'"', begin)].decode(errors="replace"), ()):
            _give(waiter, record)

    def _enter(self) -> None:
        self.up = True
        for entering in self._entering:
            if not entering.done():
                entering.set_result(None)

    def _refuse(self, error: Exception) -> None:
        cause = error if isinstance(error, (RedisError, OSError)) else ConnectionError(type(error).__name__)
        for entering in self._entering:
            if not entering.done():
                entering.set_exception(cause)

    async def _send(self, connection: AbstractConnection) -> None:
        """Send the outbox, all of it at once. If that fails redis-py disconnects."""
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            commands, self._outbox = self._outbox, []
            self._sent.extend(commands)
            packed = connection.pack_commands([command.packed() for command in commands])
            await connection.send_packed_command(packed, check_health=False)

    def _watch(self) -> None:
        """While calls wait, check that the connection still works."""
        if self._watching is None:
            self._watching = self.loop.call_later(ANSWERED_WITHIN, self._doubt)

    def _doubt(self) -> None:
        self._watching = None
        connection = self._connection
        if connection is not None:
            # Twice: this process may have stood still, with the answer waiting to be read.
            oldest = self._sent[0] if self._sent else None
            if oldest is not None and oldest is self._suspect:
                self.loop.create_task(connection.disconnect(nowait=True)).add_done_callback(over)
                return
            self._suspect = oldest
            if not self._heard and oldest is None and not self._outbox:
                self._tell(_Command(("PING",)))
            self._heard = False
        if self._waiters or self._entering:
            self._watch()

    async def close(self) -> None:
        """Close the connection. No call may be waiting any more."""
        if self._watching is not None:
            self._watching.cancel()
        serving, self._serving = self._serving, None
        try:
            if serving is not None:
                await end([serving])
        finally:
            # The pool was handed to the client, which therefore leaves it open.
            with contextlib.suppress(*_LOST):
                await self._pool.disconnect()


def _give(waiter: Waiter, record: bytes) -> None:
    if not waiter.record.done():
        waiter.record.set_result(record.decode(errors="replace"))
