"""The Celery tasks that API hosts send and a gateway's writer runs. Arguments are checked on both sides."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Protocol, cast

from celery import Task
from celery.local import PromiseProxy

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp, app
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import Invalid, PeerlaneError, WriterError
from peerlane.tasks.lane.celery_manners import LaneSignature, refuse_options
from peerlane.tasks.lane.request import Request, admit, checked, seconds_until, shown
from peerlane.tasks.lane.result import LaneResult, settle_unsent, withdraw
from peerlane.tasks.redis.errors import SEND_ERRORS, reaching
from peerlane.tasks.wire.commit_record import in_short
from peerlane.tasks.wire.psk_cipher import cipher_of
from peerlane.tasks.wire.registry import LANE_TASKS, LaneModel, LaneTaskRow


class PeerWriter(Protocol):
    """The part of a gateway's writer that the tasks call. It returns the committed result or raises the refusal."""

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
        refuse_options(options)
        application = cast("PeerlaneApp", self.app)
        lanes = lanes_of(application)
        request = checked(
            self.name,
            self.model,
            kwargs or {},
            cipher=lambda: cipher_of(application.settings),
            within=application.settings.request_deadline if expires is None else seconds_until(expires),
            request_id=task_id,
            bulk=bulk or self.always_bulk,
        )
        request.id = request.id or names.request_id(request.gateway, str(uuid.uuid4()))
        with reaching("nothing was sent", request.id):
            admit(lanes, request)
        try:
            sent = self.publish(request, **options)
        except SEND_ERRORS as error:
            settle_unsent(lanes, request.id, request.deadline, error)
            sent = self.AsyncResult(request.id)
        except BaseException:  # it may have arrived
            withdraw(lanes, request.id, request.deadline)
            raise
        sent.deadline, sent.wish = request.deadline, request.wish
        sent.ignored = False
        return sent

    def publish(self, request: Request, **options: Any) -> LaneResult:
        """Send an admitted request as Celery sends, with its signals. Raises SEND_ERRORS."""
        options.setdefault("queue", request.queue)
        options["headers"] = {**(options.get("headers") or {}), **request.headers()}
        # LaneResult waits by itself: Celery need not subscribe.
        options |= {"kwargsrepr": shown(request.arguments), "argsrepr": "()", "ignore_result": True}
        return cast("LaneResult", super().apply_async(kwargs=request.arguments, task_id=request.id, **options))

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> LaneSignature:
        """A signature of a request, for a group."""
        starkwargs.setdefault("app", self.app)
        return LaneSignature(self, args, *starargs, **starkwargs)

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> LaneSignature:
        """``signature`` with these arguments."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> LaneSignature:
        """``signature`` with these arguments, whatever came before it."""
        return self.signature(args, kwargs, immutable=True)

    def map(self, it: Any) -> Any:
        """Not supported: Celery would send one task of its own, which no gateway takes. Raises Invalid."""
        del it
        raise Invalid("a gateway's lane takes no map, starmap or chunks: use a group, or create_peers with a list")

    def starmap(self, it: Any) -> Any:
        """As ``map``."""
        return self.map(it)

    def chunks(self, it: Any, n: int) -> Any:
        """As ``map``."""
        del n
        return self.map(it)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> LaneResult:  # noqa: N802 - Celery's name
        """A result whose ``get`` cancels when its timeout passes."""
        return LaneResult(task_id, backend=self.backend, task_name=self.name, app=self.app, **kwargs)

    def run(self, **arguments: Any) -> Any:
        """Run on the gateway: plan, apply, commit. The commit stores the result; this one is for logs and Flower."""
        taken = getattr(self.request, "taken", None)
        if self.writer is None or taken is None:
            raise WriterError(
                "a lane's task is carried out by its gateway's writer (`peerlane gateway run`): send it by apply_async"
            )
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


#: Held while an app's tasks are registered: threads may ask for them at once.
_registering = threading.Lock()


def task_of(application: PeerlaneApp, name: str) -> LaneTask:
    """The app's own task of this name; registered now if it was not."""
    if name not in application.tasks:
        with _registering:
            if name not in application.tasks:
                register(application)
    return cast("LaneTask", application.tasks[name])


# Made when first used: registering reads the settings, and an import reads nothing.
create_peer = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.CREATE_PEER)))
delete_peer = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.DELETE_PEER)))
create_peers = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.CREATE_PEERS)))
delete_peers = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.DELETE_PEERS)))
