"""Checks a request, has its lane admit it, sets its deadline, and builds its message.

The message has the form of Celery's (protocol 2) in kombu's Redis transport. It is built here because Celery's and
kombu's own code up to the socket costs a client more than the rest of a request.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, cast

from pydantic import TypeAdapter

from peerlane.config import names
from peerlane.tasks.admission import list_quota, quota
from peerlane.tasks.admission.lanes import Admitted, Lanes
from peerlane.tasks.errors import Invalid, TimedOut
from peerlane.tasks.lane.telemetry import trace_headers
from peerlane.tasks.wire.bulk import ImportPeers
from peerlane.tasks.wire.cancel import LONGEST_DEADLINE
from peerlane.tasks.wire.commit_record import HEADER, wish_digest
from peerlane.tasks.wire.lists import CreatePeers, wishes_in
from peerlane.tasks.wire.model import CreatePeer, DeletePeer, parse
from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.registry import LaneModel

#: What callers may give as a timeout.
Timeout = float | timedelta

_encode = TypeAdapter(Any).serializer.to_json
#: The third part of a message's body: what Celery would carry out next.
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@dataclass(slots=True)
class Request:
    """A checked request. ``arguments`` are in JSON's types; ``admit`` adds the deadline."""

    task: str
    gateway: str
    arguments: dict[str, Any]
    queue: str
    bulk: bool
    #: Whether it creates peers; deletes are never refused for the length of a lane.
    creates: bool
    #: Of a create that counts in a share of its lane.
    labels: Mapping[str, str] | None
    #: The digest of what is asked for.
    wish: str
    #: Seconds that its caller waits.
    within: float
    #: Whether its caller has chosen its id, and so may ask again.
    given: bool = False
    #: Set once it is known on whose channel its outcome is heard.
    id: str = ""
    #: In ms on Redis' clock: its deadline, and when it was let pass.
    deadline: int = 0
    sent_at: int = 0
    #: The caller's span, where it has one.
    trace: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def listed(self) -> bool:
        """Whether it is a list of creates: each of its wishes counts in a share of the lane."""
        return self.creates and "wishes" in self.arguments

    def headers(self) -> dict[str, Any]:
        """The message headers beyond Celery's own."""
        headers = {HEADER: self.wish, names.SENT_AT: self.sent_at, **self.trace}
        # The writer reads the deadline without the body: what is late is struck out before it is taken. A request that
        # may be asked again under its id is not: another message of it, with time left, may wait before this one.
        return headers if self.given else {**headers, "deadline": self.deadline}

    def message(self) -> str:
        """What is pushed into the lane."""
        body = _encode([(), self.arguments, _EMBED])
        headers = {"id": self.id, "root_id": self.id, "kwargsrepr": shown(self.arguments), **self.headers()}
        properties = {"correlation_id": self.id, "delivery_tag": os.urandom(16).hex()}
        same_headers, same_properties = _same_in_all(self.task, self.queue, os.getpid())
        return (
            f'{{"body":"{base64.b64encode(body).decode()}","content-encoding":"utf-8",'
            f'"content-type":"application/json","headers":{_joined(headers, same_headers)},'
            f'"properties":{_joined(properties, same_properties)}}}'
        )

    def enter(self, admitted: Admitted) -> str | None:
        """Set the sending time, and the deadline if it has none; returns the key of its share, if there is one."""
        lane, self.sent_at = admitted
        if not self.deadline:
            self.deadline = self.arguments["deadline"] = self.sent_at + int(self.within * 1000)
        label = lane.facts.get("fair_label")
        return quota.share_key(self.gateway, label, self.labels) if label and self.labels is not None else None


def checked(
    task: str,
    model: LaneModel,
    arguments: Mapping[str, Any],
    *,
    cipher: Callable[[], PskCipher],
    within: float,
    request_id: str | None = None,
    bulk: bool = False,
) -> Request:
    """The request that the arguments ask for. Does not use Redis.

    Raises:
        Invalid: the arguments do not pass.
    """
    wish = parse(model, arguments)
    create = wish if isinstance(wish, CreatePeer) else None
    listed = () if create else wishes_in(wish)
    kept = _as_json(arguments)
    encrypt(listed or [create], kept.get("wishes") or [kept], cipher)
    gateway = wish.gateway
    if request_id is not None and not names.is_request_id(gateway, request_id):
        raise Invalid(f"a request id is {gateway}.TOKEN, the token of letters, digits, - and _, at most 64")
    return Request(
        task=task,
        gateway=gateway,
        arguments=kept,
        queue=names.bulk_queue(gateway) if bulk else names.lane_queue(gateway),
        bulk=bulk,
        creates=create is not None or model in (CreatePeers, ImportPeers),
        labels=None if create is None else create.labels,
        wish=wish_digest(task, *(listed or [wish])),
        within=within,
        given=request_id is not None,
        id=request_id or "",
        deadline=wish.deadline or 0,
        trace=trace_headers(),
    )


def admit(lanes: Lanes, request: Request) -> None:
    """Have the lane admit a request that has its id. Raises redis.RedisError as it comes.

    Raises:
        Unavailable: no live writer, a full lane, a share that is used up, or more waiting than its time allows for.
        Draining: a create for a gateway that is being emptied.
    """
    admitted = lanes.check(request.gateway, bulk=request.bulk, create=request.creates, within=request.within)
    if (share := request.enter(admitted)) is not None:
        quota.join(lanes, admitted.lane, share, request.labels or {}, request.id, deadline=request.deadline)
    elif request.listed:
        list_quota.join(lanes, admitted.lane, request.id, request.arguments, deadline=request.deadline)


def _as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in arguments.items() if value is not None}
    if "allowed_ips" in kept:
        kept["allowed_ips"] = [str(prefix) for prefix in kept["allowed_ips"]]
    if hasattr(ttl := kept.get("ttl"), "total_seconds"):
        kept["ttl"] = int(cast("Any", ttl).total_seconds())
    if "wishes" in kept:
        kept["wishes"] = [_as_json(fields) for fields in kept["wishes"]]
    return kept


def encrypt(
    wishes: Sequence[CreatePeer | DeletePeer | None],
    places: Sequence[dict[str, Any]],
    cipher: Callable[[], PskCipher],
) -> None:
    """Encrypt the wishes' preshared keys in place, if this host has a key for that."""
    for wish, place in zip(wishes, places, strict=False):
        if isinstance(wish, CreatePeer) and wish.preshared_key is not None:
            place["preshared_key"] = cipher().encrypt(wish.gateway, wish.public_key, wish.preshared_key)


def plain(value: object) -> object:
    """A mapping as a dict, another iterable as a list; anything else unchanged, text too: the model checks it."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    is_text = isinstance(value, (str, bytes))
    return list(cast("Iterable[Any]", value)) if isinstance(value, Iterable) and not is_text else value


def seconds_of(*timeouts: Timeout | None) -> float:
    """The first of these that is set, in seconds.

    0 is refused: a call waits for its outcome, and cancels what it has not heard of. Who does not want to wait sends
    with ``create_peer.apply_async``.

    Raises:
        Invalid: it is no number of seconds above 0, or more than a day.
    """
    timeout = next(timeout for timeout in timeouts if timeout is not None)
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST_DEADLINE:  # pyright: ignore[reportUnnecessaryIsInstance] - callers are not all typed
        raise Invalid(
            "timeout: a number of seconds above 0, a day at most, or a timedelta; apply_async sends without waiting"
        )
    return float(seconds)


def seconds_until(expires: float | datetime) -> float:
    """The seconds until a request expires, which are how long it may wait.

    Raises:
        Invalid: it is neither a number of seconds nor a time, or more than a day ahead.
        TimedOut: it has passed.
    """
    if isinstance(expires, datetime):
        moment = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    elif isinstance(expires, (int, float)) and not isinstance(expires, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - callers of plain Celery are not typed
        seconds = expires
    else:
        raise Invalid("expires is a number of seconds or a datetime")
    if not 0 < seconds <= LONGEST_DEADLINE:
        raise (
            TimedOut("the request had expired before it was sent")
            if seconds <= 0
            else Invalid("expires is at most a day")
        )
    return float(seconds)


def shown(arguments: Mapping[str, Any]) -> str:
    """The arguments as logs, events and Flower show them; of a list, the number of wishes."""
    safe = {name: "(hidden)" if name == "preshared_key" else value for name, value in arguments.items()}
    return repr(safe | {name: len(arguments[name]) for name in ("wishes", "public_keys") if name in arguments})[:1024]


@lru_cache(maxsize=1024)
def _same_in_all(task: str, queue: str, process: int) -> tuple[bytes, bytes]:
    """Headers and properties that all messages of a task to a queue have, in JSON."""
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": (None, None),
        "parent_id": None,
        "argsrepr": "()",
        "origin": f"gen{process}@{_host()}",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
    }
    return _encode(headers), _encode(properties)


def _joined(own: Mapping[str, Any], same: bytes) -> str:
    """One JSON object of both."""
    return f"{_encode(own)[:-1].decode()},{same[1:].decode()}"


@cache
def _host() -> str:
    return socket.gethostname()
