"""Cuts a list of any length into slices, sends a few at a time, and yields an answer for each wish in order.

The slices and their request ids depend only on the list and its request id. So a list that is sent again with the same
request id gets the same answers.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypedDict, cast

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import Invalid, OutcomeUnknown, PeerlaneError
from peerlane.tasks.lane.ask import watched
from peerlane.tasks.lane.list_push import push_slice
from peerlane.tasks.lane.pipeline import pipelined
from peerlane.tasks.lane.request import plain
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.redis.list_replies import ListReplies
from peerlane.tasks.wire.bulk import SLICE
from peerlane.tasks.wire.lists import SLICE_BYTES, delete_of, read_answers, wish_of
from peerlane.tasks.wire.model import CreatePeer, DeletePeer, PeerResult

#: Slices outstanding: enough that the writer never waits for the caller, few for others to wait behind.
WINDOW = 4
#: Characters of a list's token, so that its slices' numbers have room behind it.
LONGEST_TOKEN = 56

#: Characters of a wish that names a public key and nothing else, as JSON.
_LEAST = len(json.dumps({"public_key": "k" * 44}))

#: What became of one wish of a list: its result, or the error that would have been raised if it had been asked alone.
PeerAnswer = PeerResult | PeerlaneError


class _NamedPeer(TypedDict):
    public_key: str


class PeerWish(_NamedPeer, total=False):
    """One wish of a list: what ``Gateway.create_peer`` takes."""

    allowed_ips: Iterable[str] | None
    preshared_key: str | None
    keepalive: int
    ttl: float | timedelta | None
    labels: Mapping[str, str] | None
    pinned: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One wish of a slice."""

    #: As its model has checked it, or why it is refused before anything is sent.
    wish: CreatePeer | DeletePeer | Invalid
    #: As it goes into the request.
    sent: Any = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Some wishes of a list, in order; the valid ones are one request."""

    task: str
    gateway: str
    request_id: str
    #: That of the whole list: what its caller asks again with.
    list_id: str
    parts: tuple[Part, ...]
    #: Whether the list's id is new, so that nothing can have been asked under it before.
    new: bool = False

    @property
    def wishes(self) -> list[CreatePeer | DeletePeer]:
        """The valid wishes, which are sent."""
        return [part.wish for part in self.parts if not isinstance(part.wish, Invalid)]

    @property
    def arguments(self) -> dict[str, Any]:
        """The request's, without the gateway."""
        name = "wishes" if self.task == names.CREATE_PEERS else "public_keys"
        return {name: [part.sent for part in self.parts if not isinstance(part.wish, Invalid)]}

    def answers(self, outcome: Mapping[str, Any] | PeerlaneError) -> list[PeerAnswer]:
        """The answer to each wish, from the outcome of the request."""
        wishes = self.wishes
        if isinstance(outcome, PeerlaneError):
            answers = [self._refusal(outcome)] * len(wishes)
        else:
            try:
                answers = read_answers(outcome, wishes)
            except PeerlaneError as error:
                answers = [error] * len(wishes)
        sent = iter(answers)
        return [part.wish if isinstance(part.wish, Invalid) else next(sent) for part in self.parts]

    def _refusal(self, error: PeerlaneError) -> PeerlaneError:
        return OutcomeUnknown(error.message, self.list_id) if isinstance(error, OutcomeUnknown) else error


def new_list_id(gateway: str, request_id: str | None = None) -> str:
    """A list's request id: 32 hexadecimal digits, unless its caller has chosen another.

    Raises:
        Invalid: the one that is given is none.
    """
    list_id = names.request_id(gateway, uuid.uuid4().hex) if request_id is None else request_id
    if not names.is_request_id(gateway, list_id) or len(list_id) > len(gateway) + 1 + LONGEST_TOKEN:
        form = f"{gateway}.TOKEN, the token of letters, digits, - and _, at most {LONGEST_TOKEN}"
        raise Invalid(f"a list's request id is {form}")
    return list_id


def cut(
    task: str, gateway: str, wishes: Iterable[object], list_id: str, *, size: int = SLICE, new: bool = False
) -> Iterator[Slice]:
    """The slices of a list: at most ``size`` wishes each, and fewer if they are large. ``new``: its id is new."""
    read = _create if task == names.CREATE_PEERS else _delete
    parts: list[Part] = []
    taken = sent = 0
    numbers = count()
    # The outcomes of the ids GATEWAY.REPLY_N are heard on one channel, that of GATEWAY.REPLY.
    separator = "_" if names.result_channels(f"{list_id}_0")[1:] else "-"

    def made() -> Slice:
        return Slice(task, gateway, f"{list_id}{separator}{next(numbers)}", list_id, tuple(parts), new)

    for wish in wishes:
        part, length = read(gateway, wish)
        if parts and (len(parts) >= size or (sent and taken + length > SLICE_BYTES)):
            yield made()
            parts, taken, sent = [], 0, 0
        parts.append(part)
        taken += length
        sent += not isinstance(part.wish, Invalid)
    if parts:
        yield made()


def _create(gateway: str, wish: object) -> tuple[Part, int]:
    if isinstance(wish, Invalid):  # its reader has said better what is wrong with it
        return Part(wish), 0
    if not isinstance(wish, Mapping):
        return Part(Invalid("a wish is a mapping with a public_key, and what else create_peer takes")), 0
    fields = {str(name): value for name, value in cast("Mapping[object, Any]", wish).items() if value is not None}
    fields |= {name: plain(fields[name]) for name in ("allowed_ips", "labels") if name in fields}
    try:
        checked = wish_of(gateway, fields)
    except Invalid as error:
        return Part(error), 0
    if "allowed_ips" in fields:
        fields["allowed_ips"] = [str(prefix) for prefix in fields["allowed_ips"]]
    if isinstance(ttl := fields.get("ttl"), timedelta):
        fields["ttl"] = int(ttl.total_seconds())
    # Of a wish that names the key alone, the length is known.
    return Part(checked, fields), _LEAST if len(fields) == 1 else len(json.dumps(fields))


def _delete(gateway: str, key: object) -> tuple[Part, int]:
    if isinstance(key, Invalid):
        return Part(key), 0
    try:
        return Part(delete_of(gateway, cast("str", key)), key), 64
    except Invalid as error:
        return Part(error), 0


def ask_list(
    app: PeerlaneApp,
    task: str,
    gateway: str,
    wishes: Iterable[object],
    *,
    timeout: float,
    request_id: str | None = None,
    size: int = SLICE,
    window: int = WINDOW,
) -> Generator[PeerAnswer]:
    """Send all slices, at most ``window`` outstanding, and yield each wish's answer in order.

    Every slice has ``timeout`` seconds of its own. Where the caller stops early, what is on its way is cancelled.

    Raises:
        Invalid: ``request_id`` is not one that a list can have.
    """
    slices = cut(task, gateway, wishes, new_list_id(gateway, request_id), size=size, new=request_id is None)
    with closing(ask_slices(app, slices, timeout=timeout, window=window)) as answered:
        for _, answers in answered:
            yield from answers


def ask_slices(
    app: PeerlaneApp, slices: Iterable[Slice], *, timeout: float, window: int
) -> Generator[tuple[Slice, list[PeerAnswer]]]:
    """Ask for slices, of several gateways perhaps, and yield what became of each in order. As ``ask_list``."""
    lanes = lanes_of(app)

    def send(part: Slice) -> LaneResult:
        if not part.wishes:
            raise Invalid("none of these wishes can be sent")
        task = task_of(app, part.task)
        if not part.new or watched():
            arguments = {"gateway": part.gateway, **part.arguments}
            return task.apply_async(kwargs=arguments, task_id=part.request_id, expires=timeout)
        return push_slice(lanes, task, part, replies, timeout)

    read: Callable[[dict[str, Any]], Mapping[str, Any]] = dict
    with (
        ListReplies(lanes.listeners) as replies,
        closing(pipelined(send, slices, read, timeout=timeout, size=window)) as answered,
    ):
        for answer in answered:
            yield answer.wish, answer.wish.answers(answer.outcome)


def interleaved(lists: Iterable[Iterator[Slice]]) -> Iterator[Slice]:
    """The slices of several lists, one of each in turn."""
    left = deque(lists)
    while left:
        items = left.popleft()
        if (item := next(items, None)) is not None:
            yield item
            left.append(items)
