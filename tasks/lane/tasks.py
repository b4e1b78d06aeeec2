"""The Celery tasks: what an API host sends and a gateway's writer runs. Checked before sending and again on arrival."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, cast

from celery import Task
from celery.local import PromiseProxy
from redis.exceptions import NoPermissionError

from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp, app
from peerlane.config.redis import reason
from peerlane.tasks.errors import Invalid, OutcomeUnknown, PeerlaneError, StorageError, TimedOut, WriterError
from peerlane.tasks.lane import quota as fairness
from peerlane.tasks.lane.admission import lanes_of
from peerlane.tasks.lane.redis_errors import SEND_ERRORS, is_refused, reaching
from peerlane.tasks.lane.registry import LANE_TASKS, LaneModel, LaneTaskRow
from peerlane.tasks.lane.result import LaneResult, settle
from peerlane.tasks.wire.bulk import ImportPeers
from peerlane.tasks.wire.model import CreatePeer, parse
from peerlane.tasks.wire.psk_cipher import cipher_of
from peerlane.tasks.wire.wish_digest import HEADER, wish_digest


class PeerWriter(Protocol):
    """What the tasks need of a gateway's writer. It returns the committed result or raises the committed refusal."""

    #: ``taken`` is the message in hand (peerlane.workers.lane.strategy); nothing here looks into it.
    def carry_out(self, task: str, taken: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]: ...


class LaneTask(Task[..., dict[str, Any]]):
    """A task of a gateway's lane. Its id is ``GATEWAY.<token>``; its arguments are keywords only."""

    abstract = True
    typing = False  # arguments are checked by the model, with sentences for people
    throws = (PeerlaneError,)  # refusals are outcomes, not faults: no traceback in the log
    ignore_result = False
    always_bulk: ClassVar[bool] = False
    model: ClassVar[LaneModel]
    #: Set on a gateway only (peerlane.workers.gateway): the writer that carries requests out.
    writer: PeerWriter | None = None

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - keywords only, on purpose
        self,
        args: tuple[object, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        task_id: str | None = None,
        *,
        expires: float | datetime | None = None,
        bulk: bool = False,
        **options: Any,
    ) -> LaneResult:
        """Send the request.

        ``expires`` (seconds, or a time) becomes a deadline on Redis' clock: Celery's own compares the clocks of two
        hosts. ``task_id`` is the request id; the same id twice is the same request, and ``get`` raises Conflict where
        it was used for another wish. ``bulk`` takes the lane's bulk queue, which yields to interactive requests.

        Raises:
            Invalid: the arguments do not pass; nothing was sent.
            Unavailable: no live writer, or a full lane; nothing was sent.
            Draining: a create for a gateway that is being emptied; nothing was sent.
            OutcomeUnknown: Redis could not be reached.
        """
        if args:
            raise Invalid(f"{self.name} takes keyword arguments only")
        if options.pop("countdown", None) or options.pop("eta", None):
            raise Invalid("a request is carried out now: countdown and eta are not taken")
        arguments = dict(kwargs or {})
        bulk = bulk or self.always_bulk
        wish = parse(self.model, arguments)
        application = cast("PeerlaneApp", self.app)
        if isinstance(wish, CreatePeer) and wish.preshared_key is not None:
            cipher = cipher_of(application.settings)
            arguments["preshared_key"] = cipher.encrypt(wish.gateway, wish.public_key, wish.preshared_key)
        request_id = task_id or names.request_id(wish.gateway, str(uuid.uuid4()))
        if not names.is_request_id(wish.gateway, request_id):
            raise Invalid(f"a request id is {wish.gateway}.TOKEN, the token of letters, digits, - and _, at most 64")
        lanes = lanes_of(application)
        with reaching("nothing was sent", request_id):
            lane = lanes.check(wish.gateway, bulk=bulk, create=self.model in (CreatePeer, ImportPeers))
            if wish.deadline is None:
                within = application.settings.request_deadline if expires is None else _seconds_until(expires)
                arguments["deadline"] = lanes.clock.now_ms() + int(within * 1000)
            if isinstance(wish, CreatePeer):
                fairness.join(lanes, lane, wish.labels, request_id, deadline=arguments["deadline"])
        wire, digest = _wire(arguments), wish_digest(self.name, wish)
        options["headers"] = {**(options.get("headers") or {}), HEADER: digest}
        options.setdefault("queue", names.bulk_queue(wish.gateway) if bulk else names.lane_queue(wish.gateway))
        try:
            # LaneResult waits by itself: Celery need not subscribe.
            options |= {"kwargsrepr": _shown(wire), "argsrepr": "()", "ignore_result": True}
            # Where the writer reads them without the body: what is late is struck out before it is taken.
            told = {names.SENT_AT: lanes.clock.now_ms(), "deadline": wire["deadline"]}
            options["headers"] = {**(options.get("headers") or {}), **told}
            sent = super().apply_async(kwargs=wire, task_id=request_id, **options)
        except SEND_ERRORS as error:
            # The message may have arrived all the same: make sure that the request has one outcome.
            # One attempt where Redis stands still: with the publish it takes 2 s, whatever the caller's timeout.
            # A user without the right to send learns that instead, whatever becomes of the attempt.
            with suppress(OutcomeUnknown) if is_refused(error) else nullcontext():
                settle(lanes, request_id, wire["deadline"], until=time.monotonic() + 0.9)
            if is_refused(error):
                raise StorageError(f"Redis refused, and nothing was sent: {reason(NoPermissionError())}") from error
            sent = self.AsyncResult(request_id)
        result = cast("LaneResult", sent)
        result.deadline, result.wish = wire["deadline"], digest
        result.ignored = False
        return result

    def AsyncResult(self, task_id: str, **kwargs: Any) -> LaneResult:  # noqa: N802 - Celery's name
        """A result whose ``get`` cancels when its timeout passes."""
        return LaneResult(task_id, backend=self.backend, task_name=self.name, app=self.app, **kwargs)

    def run(self, **arguments: Any) -> Any:
        """On the gateway: plan, apply, commit. The result is stored by the commit; this one is for logs and Flower."""
        taken = getattr(self.request, "taken", None)
        if self.writer is None or taken is None:
            raise WriterError("this worker is no gateway's writer: start it with `peerlane gateway run`")
        return in_short(self.writer.carry_out(self.name, taken, arguments))


def register(application: PeerlaneApp) -> dict[str, LaneTask]:
    """Give an app its own tasks, by name.

    Celery binds a task's class, not its instance, to an app: each app gets classes of its own.
    """
    return {name: application.register_task(_task(row)) for name, row in LANE_TASKS.items()}


def _task(row: LaneTaskRow) -> LaneTask:
    fields = {
        "name": row.name,
        "model": row.model,
        "always_bulk": row.queue is names.bulk_queue,
        "__doc__": f"{row.summary} Arguments as in {row.model.__module__}.{row.model.__name__}.",
    }
    return cast("LaneTask", type(row.name, (LaneTask,), fields)())


def task_of(application: PeerlaneApp, name: str) -> LaneTask:
    """The app's own task of this name; registered now if it was not."""
    if name not in application.tasks:
        register(application)
    return cast("LaneTask", application.tasks[name])


# Made when first used: registering reads the settings, and an import reads nothing.
create_peer = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.CREATE_PEER)))
delete_peer = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.DELETE_PEER)))


def _seconds_until(expires: float | datetime) -> float:
    if isinstance(expires, datetime):
        moment = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    elif isinstance(expires, (int, float)) and not isinstance(expires, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - callers of plain Celery are not typed
        seconds = float(expires)
    else:
        raise Invalid("expires is a number of seconds or a datetime")
    if not 0 < seconds <= 86_400:
        raise (
            TimedOut("the request had expired before it was sent")
            if seconds <= 0
            else Invalid("expires is at most a day")
        )
    return seconds


def _wire(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as JSON takes them."""
    found = {name: value for name, value in arguments.items() if value is not None}
    if "allowed_ips" in found:
        found["allowed_ips"] = [str(prefix) for prefix in found["allowed_ips"]]
    if hasattr(ttl := found.get("ttl"), "total_seconds"):
        found["ttl"] = int(cast("Any", ttl).total_seconds())
    return found


def in_short(result: Mapping[str, Any]) -> str:
    """A result in a line: Celery's own rendering of the whole costs a tenth of a request."""
    words = [str(result.get("outcome")), str(result.get("public_key", "")), *result.get("allowed_ips", ())]
    return " ".join(words)[:256]


def _shown(wire: Mapping[str, Any]) -> str:
    """What logs, events and Flower show of the arguments."""
    return repr({name: "(hidden)" if name == "preshared_key" else value for name, value in wire.items()})[:1024]
