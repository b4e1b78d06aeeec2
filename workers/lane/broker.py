"""A writer's broker connection: kombu's Redis transport, made safe against malformed messages."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any, cast

from celery.app.amqp import AMQP
from celery.exceptions import WorkerShutdown
from kombu.transport import redis as kombu_redis
from redis.exceptions import NoPermissionError, ResponseError

from peerlane.config import names
from peerlane.config.celery.broker import OwnConnection
from peerlane.config.redis.failures import reason
from peerlane.workers.lane.group import Group
from peerlane.workers.lane.poison import set_aside
from peerlane.workers.lane.polling import WaitingChannel, WaitingTransport
from peerlane.workers.lane.taking import BULK_BYTES, MOST_IN_A_GROUP, Dead, Noted, Taker
from peerlane.workers.lane.unacked import LaneQoS
from peerlane.workers.store.retry import ShutdownRequested

log = logging.getLogger(__name__)

#: Bytes of a whole message beyond which it is refused unread; the largest sound request is about 60 KiB.
MAX_MESSAGE = 512 * 1024

#: It becomes a field in Redis, so it has to be text that UTF-8 can hold: JSON can name what is none. Kombu's is a UUID.
_TAG = re.compile(r"[!-~]{1,200}")


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
        headers["task"] = ""  # a name that no task has; Celery would fail on one that cannot be looked up
    cast("dict[str, Any]", headers).pop("compression", None)  # kombu would inflate without a limit
    if not all(isinstance(envelope.get(name), str) for name in ("content-type", "content-encoding")):
        return "without a content type"
    if known.get("body_encoding") == "base64":
        try:
            kombu_redis.Channel.codecs["base64"].decode(envelope["body"])
        except (ValueError, TypeError):
            return "with a body that is no base64"
    return envelope


class LaneChannel(WaitingChannel):
    """A channel that takes the other waiting messages with each message, and checks each one it reads."""

    QoS = LaneQoS

    def _brpop_read(self, **options: Any) -> bool:
        # As in kombu 5.7, but that a message is looked at before it is delivered.
        try:
            answer = self.brpop_answer(**options)
            if answer is None:
                raise Empty
            queue, message = answer
            self._queue_cycle.rotate(queue)
            self._take_with_others(queue, message)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    #: While messages that were taken together are delivered: where Celery's strategy collects them.
    group: Group | None = None
    #: Ends what was struck out of the lane; set by the consumer (peerlane.workers.lane.worker).
    end_dead: Callable[[Sequence[Dead]], None] | None = None
    _taker: Taker | None = None
    #: Whether this user may not use the procedure: then each message is noted by itself.
    _one_by_one = False

    def _take_with_others(self, queue: str, raw: bytes) -> None:
        """Take the other messages that wait in the lane, and have all of them carried out as a group."""
        gateway = names.gateway_of_queue(queue)
        if self._one_by_one or queue not in (names.lane_queue(gateway), names.bulk_queue(gateway)):
            self.take(queue, raw)
            return
        if self._taker is None:
            self._taker = Taker(self.redis, gateway, result_ttl=self._result_ttl)
        try:
            taken, dead = self._taker(queue, raw)
        except ShutdownRequested:
            raise WorkerShutdown(0) from None
        except ResponseError as error:
            self._one_by_one = isinstance(error, NoPermissionError)
            log.warning("gateway %s: messages are taken one by one (%s)", gateway, reason(error))
            self.take(queue, raw)
            return
        bulk = (taken[0].queue if taken else queue) == names.bulk_queue(gateway)
        full = len(taken) >= MOST_IN_A_GROUP or (bulk and sum(len(each.message) for each in taken) >= BULK_BYTES)
        group, failures = Group(len(taken) + len(dead), bulk=bulk, full=full), list[Exception]()
        self.group = group
        for noted in taken:
            try:
                self._hand_on_noted(noted)
            except self.connection_errors as error:  # that message comes again; the others are in hand
                failures.append(error)
        self.group = None
        group.carry_out()
        if dead and self.end_dead is not None:  # last: nobody waits for it
            self.end_dead(dead)
        if failures:
            raise failures[0]

    @property
    def _result_ttl(self) -> int:
        return int(self.connection.client.transport_options["result_ttl"])

    def _hand_on_noted(self, noted: Noted) -> None:
        envelope = sound_envelope(noted.message)
        if isinstance(envelope, str):
            self.take(noted.queue, noted.message)  # sets it aside
            with self.conn_or_acquire() as client:
                gateway = names.gateway_of_queue(noted.queue)
                client.hdel(names.unacked_key(gateway), noted.tag)
                client.zrem(names.unacked_key(gateway, "_index"), noted.tag)
            return
        envelope["properties"]["delivery_tag"] = noted.tag
        self.qos.noted[noted.tag] = noted.answered
        self._deliver(envelope, noted.queue)

    def take(self, queue: str, raw: bytes) -> None:
        """Deliver a message; set it aside if it is malformed."""
        envelope = sound_envelope(raw)
        if isinstance(envelope, str):
            log.warning("a message of %d bytes on %s was refused: it is %s", len(raw), queue, envelope)
            with self.conn_or_acquire() as client:
                gateway, why = names.gateway_of_queue(queue), f"it is {envelope}"
                set_aside(client, gateway, why=why, queue=queue, message=raw)
            return
        self._deliver(envelope, queue)

    def _deliver(self, envelope: dict[str, Any], queue: str) -> None:
        # Where it came from is where it goes back to, whatever its sender has written there.
        envelope["properties"]["delivery_info"] |= {"exchange": "", "routing_key": queue}
        self.connection._deliver(envelope, queue)  # noqa: SLF001 - as kombu's own channel does


class LaneTransport(WaitingTransport):
    """The transport of processes that consume."""

    Channel = LaneChannel


class LaneConnection(OwnConnection):
    """A connection with that transport."""

    own_transport = LaneTransport


class LaneMessaging(AMQP):
    """Celery's AMQP with that connection; peerlane.config.celery.app names it for writers and observers."""

    Connection = LaneConnection
