"""A gateway's whole way of a message in this process: from the bytes on the queue to the device in memory.

All of it is what a worker runs (transport, Celery's consumer, strategy, writer, commit on a real server); only the
blocking read and the event loop are left out, so that a hundred thousand messages take a minute or two.
"""

from __future__ import annotations

import base64
import json
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from celery import _state as _celery_state
from celery.signals import setup_logging
from fuzz_messages import Case
from gateways import close, new_name
from keys import some_key
from redis import Redis
from servers import RedisServer

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import read
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.stored_peer import Peer
from peerlane.workers.dataplane import Change, RemovePeer, SetPeer
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.gateway import GatewayApp
from peerlane.workers.writer.writer import Writer

_state: Any = _celery_state
_LOG = logging.getLogger("peerlane.workers")


def _leave_it(**_: Any) -> None:
    """Celery sets logging up for the whole process, unless somebody says that he does."""


class FuzzedLane:
    """One gateway, fed by hand. What it has done is checked against what it was asked for."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.name = new_name()
        self.queue = names.lane_queue(self.name)
        self.redis = Redis.from_url(server.url)
        settings = read(
            redis_url=server.url, gateway=self.name, dataplane="memory", private_key_file=directory / f"{self.name}.key"
        )
        # A process has one current app and one level of logging; this one is not the lane's own.
        self._before = (_state._tls.current_app, _LOG.level)  # noqa: SLF001
        _LOG.setLevel(logging.CRITICAL)
        app: Any = GatewayApp(settings)
        setup_logging.connect(_leave_it)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of root, which is nobody here
            self._worker = app.Worker(quiet=True)
        setup_logging.disconnect(_leave_it)
        self._worker.service.start()
        app.bind(self._worker.service)
        self._consumer = self._worker.consumer
        self._consumer.update_strategies()
        self._connection = app.connection_for_read()
        self._channel = self._connection.default_channel
        self._channel.end_dead = self._consumer.end_dead
        consuming = app.amqp.TaskConsumer(self._connection, on_decode_error=self._consumer.on_decode_error)
        consuming.on_message = self._consumer.create_task_handler()
        consuming.consume()
        self._app = PeerlaneApp(read(redis_url=server.url))
        self.changes: list[Change] = []
        #: What became of the cases, by family and outcome.
        self.outcomes: Counter[tuple[str, str]] = Counter()
        plane = cast("MemoryDataPlane", self.writer.plane)
        apply = plane.apply

        def watched(changes: Sequence[Change]) -> None:
            self.changes += changes
            apply(changes)

        plane.apply = watched

    @property
    def writer(self) -> Writer:
        """The writer."""
        return cast("Writer", self._worker.service.writer)

    def captured(self, count: int = 40) -> list[bytes]:
        """Messages as a client sends them; taken off the lane before anybody sees them."""
        create, delete = (task_of(self._app, name) for name in (names.CREATE_PEER, names.DELETE_PEER))
        messages: list[bytes] = []
        for number in range(count):
            wish: dict[str, Any] = {"gateway": self.name, "public_key": some_key()}
            if number % 4 == 3:
                delete.apply_async(kwargs=wish, expires=3600, ignore_result=True)
            else:
                extra = {"preshared_key": some_key(), "labels": {"n": str(number)}} if number % 2 else {}
                create.apply_async(kwargs=wish | extra, expires=3600, ignore_result=True)
            messages.append(cast("bytes", self.redis.rpop(self.queue)))
        return messages

    def take(self, raw: bytes) -> None:
        """One message off the queue, to its end. What a worker does not survive is raised."""
        self._channel.take(self.queue, raw)
        for callback in self._consumer.hub._pop_ready():  # noqa: SLF001 - what the event loop does next: acknowledge
            callback()

    def play(self, case: Case) -> None:
        """One case. AssertionError if it did what it may not."""
        self.changes.clear()
        try:
            self.take(case.raw)
        except BaseException as error:
            raise AssertionError(f"seed {case.seed} ({case.family}) ends the worker: {error!r}") from error
        touched = {change.public_key for change in self.changes if isinstance(change, (SetPeer, RemovePeer))}
        if touched:
            assert not case.barren, f"seed {case.seed} ({case.family}) changes the device"
            assert touched <= named_keys(case.raw), f"seed {case.seed} ({case.family}) changes what it does not name"
        self.outcomes[case.family, "changed the device" if self.changes else "changed nothing"] += 1

    def check(self) -> None:
        """After a batch: a good request is served, device and Redis are equal, and nothing lies about."""
        raw, key = self.captured(1)[0], some_key()
        message = json.loads(raw)
        request = names.request_id(self.name, f"good-{key[:4].encode().hex()}")
        message["headers"]["id"] = request
        message["body"] = base64.b64encode(
            json.dumps([[], {"gateway": self.name, "public_key": key}, {}]).encode()
        ).decode()
        self.take(json.dumps(message).encode())
        stored = cast("bytes | None", self.redis.get(names.result_key(request)))
        assert stored is not None, "a good request got no answer"
        assert commit_record.decode(stored)["outcome"] in {"created", "existing"}
        records = cast("dict[bytes, bytes]", self.redis.hgetall(names.peers_key(self.name)))
        peers = {name.decode(): Peer.from_record(name.decode(), record) for name, record in records.items()}
        device = self.writer.plane.peers()
        assert device.keys() == peers.keys(), "the device holds other peers than Redis"
        assert all(device[key].allowed_ips == frozenset(peer.allowed_ips) for key, peer in peers.items())
        assert self.writer.table.peers.keys() == peers.keys()
        assert not self.redis.exists(names.unacked_key(self.name)), "a message was not acknowledged"
        self._no_stray_keys()

    def _no_stray_keys(self) -> None:
        allowed = (f"peerlane:{{{self.name}}}:", names.RESULT_PREFIX + self.name + ".")
        strays: list[str] = []
        for raw in cast("Any", self.redis.scan_iter(count=5_000)):
            key = cast("bytes", raw).decode(errors="replace")
            if self.name in key and not key.startswith(allowed):
                strays.append(key)
        assert not strays, f"keys that nobody should have made: {strays[:5]}"
        for key in ("stolen", "peerlane.unrouted", "celery"):
            assert not self.redis.exists(key), f"something was sent to {key}"

    def close(self) -> None:
        """Let go."""
        self._channel.close()
        self._connection.close()
        self._worker.service.stop()
        close(self._app)
        self.redis.close()
        _state._tls.current_app, level = self._before  # noqa: SLF001
        _LOG.setLevel(level)


def named_keys(raw: bytes) -> set[str]:
    """Every public key that a message names anywhere in its arguments; read without any code of the product's."""
    try:
        message = json.loads(raw)
        body = message["body"]
        if message["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        arguments = json.loads(body)[1]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return set()
    keys: list[Any] = [arguments.get("public_key"), *(arguments.get("keys") or ())]
    keys += cast("list[Any]", listed) if isinstance(listed := arguments.get("public_keys"), list) else []
    for name in ("victims", "wishes"):
        keys += [wish.get("public_key") for wish in arguments.get(name) or () if isinstance(wish, dict)]
    return {key for key in keys if isinstance(key, str)}
