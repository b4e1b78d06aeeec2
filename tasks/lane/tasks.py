"""The Celery tasks: what an API host sends and a gateway's writer runs. Checked before sending and again on arrival."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, cast

from celery import Task
from celery.local import PromiseProxy
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError, RedisError

from peerlane.config import names
from peerlane.config.celery_app import PeerlaneApp, app
from peerlane.config.redis import reason
from peerlane.tasks.errors import Invalid, OutcomeUnknown, PeerlaneError, StorageError, TimedOut, WriterError
from peerlane.tasks.lane import quota as fairness
from peerlane.tasks.lane.admission import lanes_of
from peerlane.tasks.lane.redis_errors import is_refused
from peerlane.tasks.lane.result import LaneResult, settle
from peerlane.tasks.wire.bulk import ImportPeers, MendPeers, RemovePeers
from peerlane.tasks.wire.model import CreatePeer, DeletePeer, parse
from peerlane.tasks.wire.psk_cipher import sealing_of


class PeerWriter(Protocol):
    """What the tasks need of a gateway's writer. Both return the committed result or raise the committed refusal."""

    def carry_out(self, task: str, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]: ...


class LaneTask(Task[..., dict[str, Any]]):
    """A task of a gateway's lane. Its id is ``GATEWAY.<token>``; its arguments are keywords only."""

    abstract = True
    typing = False  # arguments are checked by the model, with sentences for people
    throws = (PeerlaneError,)  # refusals are outcomes, not faults: no traceback in the log
    ignore_result = False
    always_bulk: ClassVar[bool] = False
    model: ClassVar[type[CreatePeer | DeletePeer | RemovePeers | MendPeers | ImportPeers]]
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
        hosts. ``task_id`` is the request id; the same id twice is the same request. ``bulk`` takes the lane's bulk
        queue, which yields to interactive requests.

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
            sealing = sealing_of(application.settings)
            arguments["preshared_key"] = sealing.seal(wish.gateway, wish.public_key, wish.preshared_key)
        request_id = task_id or names.request_id(wish.gateway, str(uuid.uuid4()))
        if not names.is_request_id(wish.gateway, request_id):
            raise Invalid(f"a request id is {wish.gateway}.TOKEN, the token of letters, digits, - and _, at most 64")
        lanes = lanes_of(application)
        try:
            lane = lanes.check(wish.gateway, bulk=bulk, create=self.model in (CreatePeer, ImportPeers))
            if wish.deadline is None:
                within = application.settings.request_deadline if expires is None else _seconds_until(expires)
                arguments["deadline"] = lanes.clock.now_ms() + int(within * 1000)
            if isinstance(wish, CreatePeer):
                fairness.join(lanes, lane, wish.labels, request_id, deadline=arguments["deadline"])
        except RedisError as error:
            raise OutcomeUnknown(
                f"Redis could not be reached ({reason(error)}); nothing was sent", request_id
            ) from error
        wire = _wire(arguments)
        options.setdefault("queue", names.bulk_queue(wish.gateway) if bulk else names.lane_queue(wish.gateway))
        try:
            # LaneResult waits by itself: Celery need not subscribe.
            options |= {"kwargsrepr": _shown(wire), "argsrepr": "()", "ignore_result": True}
            sent = super().apply_async(kwargs=wire, task_id=request_id, **options)
        except (OperationalError, RedisError, OSError, RuntimeError) as error:
            # The message may have arrived all the same: make sure that the request has one outcome.
            # One attempt where Redis stands still: with the publish it takes 2 s, whatever the caller's timeout.
            record = settle(lanes, request_id, wire["deadline"], until=time.monotonic() + 0.9)
            if record is None or is_refused(error):
                raise _not_sent(error, request_id) from error
            sent = self.AsyncResult(request_id)
        result = cast("LaneResult", sent)
        result.deadline = wire["deadline"]
        result.ignored = False
        return result

    def AsyncResult(self, task_id: str, **kwargs: Any) -> LaneResult:  # noqa: N802 - Celery's name
        """A result whose ``get`` cancels when its timeout passes."""
        return LaneResult(task_id, backend=self.backend, task_name=self.name, app=self.app, **kwargs)

    def run(self, **arguments: Any) -> Any:
        """On the gateway: plan, apply, commit. The result is stored by the commit; this one is for logs and Flower."""
        if self.writer is None:
            raise WriterError("this worker is no gateway's writer: start it with `peerlane gateway run`")
        return _in_short(self.writer.carry_out(self.name, str(self.request.id), arguments))


class CreatePeerTask(LaneTask):
    """Create a peer on a gateway; arguments as in peerlane.tasks.wire.model.CreatePeer."""

    name = names.CREATE_PEER
    model = CreatePeer


class DeletePeerTask(LaneTask):
    """Delete a peer from a gateway; arguments as in peerlane.tasks.wire.model.DeletePeer."""

    name = names.DELETE_PEER
    model = DeletePeer


class RemovePeersTask(LaneTask):
    """Remove a slice of what a sweep found stale; arguments as in peerlane.tasks.wire.bulk.RemovePeers."""

    name = names.REMOVE_PEERS
    model = RemovePeers
    always_bulk = True


class MendPeersTask(LaneTask):
    """Mend a slice of what a reconciliation found; arguments as in peerlane.tasks.wire.bulk.MendPeers."""

    name = names.MEND_PEERS
    model = MendPeers
    always_bulk = True


class ImportPeersTask(LaneTask):
    """Take over staged peers, or the live device's; arguments as in peerlane.tasks.wire.bulk.ImportPeers."""

    name = names.IMPORT_PEERS
    model = ImportPeers
    always_bulk = True


#: Every task of a lane, by name.
TASKS: dict[str, type[LaneTask]] = {
    names.CREATE_PEER: CreatePeerTask,
    names.DELETE_PEER: DeletePeerTask,
    names.REMOVE_PEERS: RemovePeersTask,
    names.MEND_PEERS: MendPeersTask,
    names.IMPORT_PEERS: ImportPeersTask,
}


def register(application: PeerlaneApp) -> dict[str, LaneTask]:
    """Give an app its own tasks, by name.

    Celery binds a task's class, not its instance, to an app: each app gets classes of its own.
    """
    return {
        name: application.register_task(cast("LaneTask", type(name, (kind,), {})())) for name, kind in TASKS.items()
    }


def task_of(application: PeerlaneApp, name: str) -> LaneTask:
    """The app's own task of this name; registered now if it was not."""
    if name not in application.tasks:
        register(application)
    return cast("LaneTask", application.tasks[name])


# Made when first used: registering reads the settings, and an import reads nothing.
create_peer = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.CREATE_PEER)))
delete_peer = cast("LaneTask", PromiseProxy(lambda: task_of(app, names.DELETE_PEER)))

_UNREACHABLE = "Redis could not be reached: whether the request took effect is unknown; ask again with the same id"


def _not_sent(error: BaseException, request_id: str) -> PeerlaneError:
    """Why a message was not sent: this Redis user may not, or Redis could not be reached."""
    if is_refused(error):
        return StorageError(f"Redis refused, and nothing was sent: {reason(NoPermissionError())}")
    return OutcomeUnknown(_UNREACHABLE, request_id)


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


def _in_short(result: Mapping[str, Any]) -> str:
    """A result in a line: Celery's own rendering of the whole costs a tenth of a request."""
    words = [str(result.get("outcome")), str(result.get("public_key", "")), *result.get("allowed_ips", ())]
    return " ".join(words)[:256]


def _shown(wire: Mapping[str, Any]) -> str:
    """What logs, events and Flower show of the arguments."""
    return repr({name: "(hidden)" if name == "preshared_key" else value for name, value in wire.items()})[:1024]
