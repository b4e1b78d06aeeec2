"""A group's requests end for Flower and for listeners as Celery's tasks end, in both forms."""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from celery import signals
from celery.events.state import State
from celery.worker import state as worker_state
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close
from grouped_lane import GroupedLane
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE, eventually

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import Conflict, TimedOut
from peerlane.tasks.lane.tasks import task_of

FORMS = ["lean", "Celery's own"]
SUPPORT = Path(__file__).parents[1] / "support"


class Watched:
    """What Flower's receiver makes of a gateway's events: Celery's own state of a cluster."""

    def __init__(self, app: PeerlaneApp) -> None:
        self.state: Any = State()
        self._stopped = threading.Event()
        self._connection = app.connection_for_read()
        self._receiver: Any = app.events.Receiver(self._connection, handlers={"*": self.state.event})
        self._thread = threading.Thread(target=self._capture, daemon=True)
        self._thread.start()

    def _capture(self) -> None:
        while not self._stopped.is_set():
            try:
                for _ in self._receiver.itercapture(limit=None, timeout=0.2, wakeup=False):
                    if self._stopped.is_set():
                        return
            except TimeoutError:
                continue

    def tasks(self) -> dict[str, Any]:
        return dict(self.state.tasks.items())

    def processed(self, gateway: str) -> int:
        """How many requests the gateway's last heartbeat counted."""
        workers: dict[str, Any] = dict(self.state.workers.items())
        return next((each.processed or 0 for name, each in workers.items() if name.startswith(f"{gateway}@")), 0)

    def end(self) -> None:
        self._stopped.set()
        self._thread.join(10)
        self._connection.close()


@contextmanager
def watching(app: PeerlaneApp) -> Generator[Watched]:
    watched = Watched(app)
    try:
        yield watched
    finally:
        watched.end()


def start(site: GatewayProcess, form: str, heard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = "peerlane.workers.gateway" if form == "lean" else "listening_gateway"
    # The heartbeats of which the test awaits two come every 10 s otherwise.
    site.program = ["-m", "celery", "-A", application, "worker", "--heartbeat-interval", "1", "-l"]
    if form != "lean":
        monkeypatch.setenv("LISTENING_GATEWAY_FILE", str(heard))
        path = os.pathsep.join(filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH"))))
        monkeypatch.setenv("PYTHONPATH", path)
    site.start()


@pytest.mark.parametrize("form", FORMS)
def test_flower_sees_each_request_of_a_group_end_as_it_did(
    gateway: MakeGateway,
    client: MakeClient,
    own_redis: RedisServer,
    settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    site, heard = gateway(redis=own_redis, start=False), tmp_path / "heard"
    start(site, form, heard, monkeypatch)
    client(site).create_peer(some_key())
    app = PeerlaneApp(settings(redis_url=own_redis.url))
    create, delete = task_of(app, names.CREATE_PEER), task_of(app, names.DELETE_PEER)
    keys = [some_key() for _ in range(6)]
    with watching(app) as watched, events_of(own_redis) as messages:
        # An observer of events that is not there yet hears nothing: the heartbeat tells that it is.
        eventually(lambda: watched.processed(site.name) == 1, "a heartbeat")
        site.hold()
        taken = {"gateway": site.name, "allowed_ips": ["10.8.0.77/32"]}
        wishes: list[tuple[Any, dict[str, Any]]] = [(create, {"gateway": site.name, "public_key": key}) for key in keys]
        wishes += [(create, {**taken, "public_key": some_key()}), (create, {**taken, "public_key": some_key()})]
        wishes += [(delete, {"gateway": site.name, "public_key": some_key()})]
        sent = [task.apply_async(kwargs=arguments, expires=PATIENCE) for task, arguments in wishes]
        cancelled = create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()}, expires=PATIENCE)
        lanes_of(app).cancel(str(cancelled.id))
        messages.clear()
        site.resume()
        answers = [each.get(timeout=PATIENCE, propagate=False) for each in sent]
        everyone = [str(each.id) for each in (*sent, cancelled)]
        eventually(
            lambda: all(getattr(watched.tasks().get(each), "ready", False) for each in everyone),
            "the end of every request",
        )
        tasks = watched.tasks()
        eventually(lambda: watched.processed(site.name) == 1 + len(everyone), "the heartbeat that counts all of them")
    assert [each["outcome"] for each in answers[:7]] == ["created"] * 7
    assert isinstance(answers[7], Conflict)
    for request, answer, (task, arguments) in zip(sent, answers, wishes, strict=True):
        shown = tasks[str(request.id)]
        assert shown.name == task.name
        assert shown.kwargs == repr({"public_key": arguments["public_key"]})
        assert shown.worker.hostname.startswith(f"{site.name}@")
        assert shown.received <= shown.started
        if isinstance(answer, Conflict):
            assert (shown.state, shown.exception) == ("FAILURE", repr(answer))
            assert shown.started <= shown.failed
        else:
            assert (shown.state, shown.started <= shown.succeeded) == ("SUCCESS", True)
            assert shown.result.strip("'").split()[:2] == [answer["outcome"], arguments["public_key"]]
            assert shown.runtime >= 0
    gone = tasks[str(cancelled.id)]
    assert (gone.state, gone.name) == ("FAILURE", names.CREATE_PEER)
    assert gone.exception.startswith(TimedOut.__name__)
    assert [kind for kind in messages if kind.startswith("task.")] == ["task.multi"]
    if form == "lean":
        assert not heard.exists()
        return
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for line in heard.read_text().splitlines():
        signal, _, identity = line.partition(" ")
        seen[identity].add(signal)
    for request, answer in zip(sent, answers, strict=True):
        end = "task_failure" if isinstance(answer, Conflict) else "task_success"
        assert seen[str(request.id)] == {"task_received", "task_prerun", end, "task_postrun"}
    close(app)


def test_the_events_of_many_turns_are_few_messages_and_a_stop_loses_none(
    gateway: MakeGateway, client: MakeClient, own_redis: RedisServer, settings: MakeSettings
) -> None:
    site, count = gateway(redis=own_redis), 20
    client(site).create_peer(some_key())
    app = PeerlaneApp(settings(redis_url=own_redis.url))
    create = task_of(app, names.CREATE_PEERS)
    with watching(app) as watched, events_of(own_redis) as messages:
        eventually(lambda: watched.processed(site.name) == 1, "a heartbeat")
        site.hold()
        wishes = [{"gateway": site.name, "wishes": [{"public_key": some_key()}]} for _ in range(count)]
        sent = [create.apply_async(kwargs=arguments, expires=PATIENCE) for arguments in wishes]
        messages.clear()
        site.resume()
        for each in sent:
            assert each.get(timeout=PATIENCE)["outcome"] == "listed"
        site.stop()
        eventually(
            lambda: all(getattr(watched.tasks().get(str(each.id)), "ready", False) for each in sent),
            "the end of every list",
        )
    assert 0 < messages.count("task.multi") < count
    close(app)


@contextmanager
def events_of(server: RedisServer) -> Generator[list[str]]:
    """The routing keys of the messages of events, as they come."""
    channels: list[str] = []
    prefix = "/0.celeryev/"

    def note(message: Any) -> None:
        channels.append(message["channel"].removeprefix(prefix))

    redis = Redis(unix_socket_path=str(server.socket), decode_responses=True)
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe(**{f"{prefix}*": note})
    thread = pubsub.run_in_thread(sleep_time=0.05)
    try:
        yield channels
    finally:
        thread.stop()
        thread.join(10)
        redis.close()


@contextmanager
def form_of(form: str) -> Generator[list[str]]:
    """This process' form; the requests that a listener heard of."""
    heard: list[str] = []

    def listen(task_id: str | None = None, **_: Any) -> None:
        heard.append(str(task_id))

    signal = cast("Any", signals.task_postrun)
    if form != "lean":
        signal.connect(listen, weak=False)
    try:
        yield heard
    finally:
        signal.disconnect(listen)


@pytest.mark.parametrize("form", FORMS)
class TestInBothForms:
    def test_what_was_carried_out_is_counted(self, lane: GroupedLane, form: str) -> None:
        before = Counter(worker_state.total_count), worker_state.all_total_count[0]
        sent = lane.send(*({"allowed_ips": ["10.8.0.9/32"]} for _ in range(2)), {}, {"delete": True})
        with form_of(form) as heard:
            lane.wake()
        assert lane.kinds(sent) == ["created", Conflict, "created", "absent"]
        assert Counter(worker_state.total_count) - before[0] == {names.CREATE_PEER: 3, names.DELETE_PEER: 1}
        assert worker_state.all_total_count[0] - before[1] == 4
        assert heard == ([] if form == "lean" else sent)
        assert not worker_state.requests
        lane.check()

    def test_one_message_ends_as_many_do(self, lane: GroupedLane, form: str) -> None:
        sent = lane.send({})
        with form_of(form) as heard:
            lane.wake()
        assert lane.kinds(sent) == ["created"]
        assert heard == ([] if form == "lean" else sent)
        assert not lane.redis.exists(names.unacked_key(lane.name))

    def test_a_replaced_writer_gives_all_back_in_their_order(
        self, lane: GroupedLane, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_state, "should_stop", None)
        sent = lane.send({}, {}, {})
        lane.before_commit = lambda: lane.redis.incr(names.epoch_key(lane.name))
        with form_of(form):
            lane.wake()
        assert worker_state.should_stop == 1
        assert not lane.redis.exists(names.unacked_key(lane.name), *map(names.result_key, sent))
        waiting = cast("list[bytes]", lane.redis.lrange(lane.queue, 0, -1))
        in_turn = [request for raw in reversed(waiting) for request in sent if request.encode() in raw]
        # Celery puts them back one by one, in the order in which its event loop comes to them: in none.
        assert in_turn == sent if form == "lean" else sorted(in_turn) == sorted(sent)


def test_a_line_of_the_log_tells_of_each_as_celery_does_and_knows_the_errors_code(
    lane: GroupedLane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "celery.app.trace")
    wish = {"allowed_ips": ["10.8.0.9/32"]}
    sent = lane.send(wish, wish)
    lane.wake()
    lines = [record for record in caplog.records if record.name == "celery.app.trace"]
    created, refused = (record.getMessage() for record in lines)
    assert created.startswith(f"Task {names.CREATE_PEER}[{sent[0]}] succeeded in 0.")
    assert refused.startswith(f"Task {names.CREATE_PEER}[{sent[1]}] raised expected: Conflict('")
    assert cast("Any", lines[1].args)["error"].code == "conflict"


def test_an_end_that_cannot_be_told_harms_neither_the_others_nor_the_worker(
    lane: GroupedLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_ids: list[str] = []

    def ended(_: object, request_id: str, *__: object) -> None:
        ended_ids.append(request_id)
        if len(ended_ids) == 2:
            raise ZeroDivisionError

    monkeypatch.setattr("peerlane.workers.lane.group.TaskEvents.ended", ended)
    sent = lane.send({}, {}, {})
    lane.wake()
    assert ended_ids == sent
    assert lane.kinds(sent) == ["created"] * 3
    assert not lane.redis.exists(names.unacked_key(lane.name))
    assert lane.channel.qos.can_consume()
