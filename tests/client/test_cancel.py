"""Cancelling is the same for every kind of caller: a result's get, the asyncio client, a pipeline, the command line."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gateways import MakeSettings, close
from keys import some_key
from servers import RedisServer
from waiting import PATIENCE

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.cli.output import Output
from peerlane.tasks.cli.peer.request import Interrupted, ask
from peerlane.tasks.cli.session import Session
from peerlane.tasks.client.aio_cancel import Canceller
from peerlane.tasks.client.aio_subscription import ResultListener
from peerlane.tasks.errors import Conflict, OutcomeUnknown, PeerlaneError, TimedOut
from peerlane.tasks.lane.pipeline import send_pipelined
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.cancel import Cancel, result_of, timed_out
from peerlane.tasks.wire.model import PeerResult

TTL = 600

#: Gives up a request that was sent by an app under an id; the result, or raises the error.
Way = Callable[[PeerlaneApp, str], PeerResult]


def a_results_get(app: PeerlaneApp, request_id: str) -> PeerResult:
    return PeerResult.model_validate(LaneResult(request_id, app=app, backend=app.backend).get(timeout=0.01))


def a_pipeline(app: PeerlaneApp, request_id: str) -> PeerResult:
    def send(wish: str) -> LaneResult:
        return LaneResult(wish, app=app, backend=app.backend)

    (answer,) = send_pipelined(send, [request_id], timeout=1e-9)
    if isinstance(answer.outcome, PeerlaneError):
        raise answer.outcome
    return answer.outcome


def an_asyncio_client(app: PeerlaneApp, request_id: str) -> PeerResult:
    async def settle() -> str:
        listener = ResultListener(app.settings, "iad")
        canceller = Canceller(listener.redis)
        try:
            cancel = Cancel.of(request_id, result_ttl=TTL, seconds_left=1)
            return await canceller.settle(cancel, asyncio.get_running_loop().time())
        finally:
            await canceller.close()
            await listener.close()

    return PeerResult.model_validate(result_of(asyncio.run(settle()), timed_out(1)))


def the_command_line(app: PeerlaneApp, request_id: str) -> PeerResult:
    def interrupted() -> PeerResult:
        raise KeyboardInterrupt

    session = Session(Output(json=True))
    session.overrides["redis_url"] = app.settings.redis_url.get_secret_value()
    try:
        return ask(session, request_id, interrupted)
    finally:
        session.close()


@pytest.fixture(params=[a_results_get, a_pipeline, an_asyncio_client, the_command_line], ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


@pytest.fixture
def app(own_redis: RedisServer, settings: MakeSettings) -> Iterator[PeerlaneApp]:
    made = PeerlaneApp(settings(redis_url=own_redis.url, result_ttl=TTL))
    yield made
    close(made)


@pytest.fixture
def request_id() -> str:
    return names.request_id("iad", str(uuid.uuid4()))


def store(server: RedisServer, request_id: str, result: dict[str, Any] | PeerlaneError) -> str:
    record = commit_record.encode(request_id, result)
    server.redis.set(names.result_key(request_id), record)
    return record


def created() -> dict[str, Any]:
    return {"outcome": "created", "gateway": "iad", "public_key": some_key()}


def test_what_had_committed_is_the_answer(way: Way, app: PeerlaneApp, own_redis: RedisServer, request_id: str) -> None:
    stored = store(own_redis, request_id, result := created())
    assert way(app, request_id).public_key == result["public_key"]
    assert own_redis.redis.get(names.result_key(request_id)) == stored


def test_a_refusal_is_the_answer(way: Way, app: PeerlaneApp, own_redis: RedisServer, request_id: str) -> None:
    store(own_redis, request_id, Conflict("taken"))
    with pytest.raises(Conflict, match="taken"):
        way(app, request_id)


def test_what_had_no_outcome_never_has_one(way: Way, app: PeerlaneApp, own_redis: RedisServer, request_id: str) -> None:
    with own_redis.redis.pubsub() as others:
        pubsub: Any = others
        others.subscribe(names.result_key(request_id))
        assert others.get_message(timeout=PATIENCE) is not None
        with pytest.raises((TimedOut, Interrupted), match="was cancelled and will never take effect"):
            way(app, request_id)
        heard: Any = pubsub.get_message(timeout=PATIENCE)
        assert heard is not None, "whoever else waits learns it"
    key = names.result_key(request_id)
    assert own_redis.redis.get(key) == heard["data"]
    assert own_redis.redis.ttl(key) > TTL - 60
    with pytest.raises(TimedOut):
        commit_record.decode(heard["data"])


def test_what_had_committed_is_the_answer_of_a_redis_that_takes_no_writes_too(
    way: Way, app: PeerlaneApp, own_redis: RedisServer, request_id: str
) -> None:
    store(own_redis, request_id, result := created())
    own_redis.redis.config_set("maxmemory", "1")
    assert way(app, request_id).public_key == result["public_key"]


def test_a_redis_that_takes_no_writes_and_knows_nothing_leaves_it_open(
    way: Way, app: PeerlaneApp, own_redis: RedisServer, request_id: str
) -> None:
    own_redis.redis.config_set("maxmemory", "1")
    with pytest.raises(OutcomeUnknown, match="OOM: its memory is full") as caught:
        way(app, request_id)
    assert caught.value.request_id == request_id
    assert caught.value.message.endswith("whether the request took effect is unknown; ask again with the same id")


def test_a_redis_that_cannot_be_reached_leaves_it_open(
    way: Way, app: PeerlaneApp, own_redis: RedisServer, request_id: str
) -> None:
    own_redis.stop()
    with pytest.raises(OutcomeUnknown, match=r"^Redis could not be reached") as caught:
        way(app, request_id)
    assert caught.value.request_id == request_id


@pytest.mark.parametrize(
    ("seconds_left", "life"),
    [(None, 86_460), (3_600, 3_660), (0.5, TTL), (-5, TTL)],
    ids=["unknown", "long", "short", "past"],
)
def test_a_tombstone_outlives_its_request(seconds_left: float | None, life: int) -> None:
    assert Cancel.of("iad.1", result_ttl=TTL, seconds_left=seconds_left).life == life


def test_ctrl_c_pressed_twice_is_pressed_once(
    app: PeerlaneApp, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one must not hide what became of the request, nor a private key."""
    cancel = Lanes.cancel

    def pressed_again(lanes: Lanes, request: str, *, deadline: int = 0) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return cancel(lanes, request, deadline=deadline)

    monkeypatch.setattr(Lanes, "cancel", pressed_again)
    with pytest.raises(Interrupted, match="was cancelled and will never take effect"):
        the_command_line(app, request_id)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
