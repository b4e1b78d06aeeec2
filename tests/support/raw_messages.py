"""Requests that nobody admits: the client's messages, pushed into Redis without a look at the lane."""

from __future__ import annotations

import base64
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

from keys import some_key
from redis import Redis

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.lane.request import checked
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.psk_cipher import cipher_of

#: What stands in a template for what differs from one message to the next.
_ID, _TAG, _DEADLINE, _SENT_AT = "0" * 40, "1" * 32, 1_111_111_111_111, 2_222_222_222_222


class RawMessages:
    """Makes messages for one gateway; their requests' ids are ``GATEWAY.TOKEN_NUMBER``."""

    def __init__(self, app: PeerlaneApp, redis: Redis, gateway: str) -> None:
        self.gateway = gateway
        self.token = uuid.uuid4().hex
        seconds, micros = redis.time()
        self._ahead = seconds * 1000 + micros // 1000 - int(time.monotonic() * 1000)
        self._templates = {name: self._template(app, name) for name in (names.CREATE_PEER, names.DELETE_PEER)}

    def _template(self, app: PeerlaneApp, name: str) -> tuple[str, str, str, str]:
        """(The message, its body in base64, that body as text, the key in it)."""
        key = some_key()
        arguments = {"gateway": self.gateway, "public_key": key}
        model = task_of(app, name).model
        request = checked(name, model, arguments, cipher=lambda: cipher_of(app.settings), within=1.0)
        request.id, request.sent_at = names.request_id(self.gateway, _ID), _SENT_AT
        request.deadline = request.arguments["deadline"] = _DEADLINE
        message = request.message()
        body = message.split('"body":"', 1)[1].split('"', 1)[0]
        tag = message.split('"delivery_tag":"', 1)[1].split('"', 1)[0]
        return message.replace(tag, _TAG), body, base64.b64decode(body).decode(), key

    def request_id(self, number: int) -> str:
        return names.request_id(self.gateway, f"{self.token}_{number}")

    def message(self, task: str, number: int, timeout: float) -> str:
        """A request of a key of its own, to be answered within ``timeout`` seconds from now."""
        template, body, text, key = self._templates[task]
        fresh, sent_at = some_key(), int(time.monotonic() * 1000) + self._ahead
        deadline = str(sent_at + int(timeout * 1000))
        own = base64.b64encode(text.replace(key, fresh).replace(str(_DEADLINE), deadline).encode()).decode()
        return (
            template.replace(body, own)
            .replace(names.request_id(self.gateway, _ID), self.request_id(number))
            .replace(_TAG, uuid.uuid4().hex)
            .replace(key, fresh)
            .replace(str(_DEADLINE), deadline)
            .replace(str(_SENT_AT), str(sent_at))
        )


class RawFlood:
    """Keeps so many creates waiting in a lane, each to be answered within ``timeout`` seconds. A context manager."""

    def __init__(self, app: PeerlaneApp, redis_url: str, gateway: str, *, waiting: int, timeout: float) -> None:
        self._redis = Redis.from_url(redis_url, socket_timeout=10)
        self._messages = RawMessages(app, self._redis, gateway)
        self._queue, self._waiting, self._timeout = names.lane_queue(gateway), waiting, timeout
        self._ended, self.full = threading.Event(), threading.Event()
        #: Creates that were sent.
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        length = 0
        while not self._ended.is_set():
            if length >= self._waiting:
                self.full.set()
                time.sleep(0.002)
            few: list[Any] = []
            for _ in range(min(256, max(1, self._waiting - length))):
                self.sent += 1
                few.append(self._messages.message(names.CREATE_PEER, self.sent, self._timeout))
            length = self._redis.lpush(self._queue, *few)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.full.wait(60), "the lane never had as many waiting as were wanted"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(10)
        self._redis.close()

    def request_ids(self) -> list[str]:
        """Of all that were sent."""
        return [self._messages.request_id(number) for number in range(1, self.sent + 1)]
