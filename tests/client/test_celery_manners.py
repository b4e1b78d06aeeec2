"""What looks like Celery behaves like it, or is refused in a sentence; and tasks are registered once."""

from __future__ import annotations

import copy
import pickle
import threading
import uuid
import warnings
from typing import Any

import pytest
from celery import chain, chord, group
from gateways import GatewayProcess, MakeGateway, MakeSettings, close
from keys import some_key
from servers import RedisServer
from waiting import PATIENCE, Stopwatch

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.errors import Conflict, Invalid, OutcomeUnknown, TimedOut, Unavailable, WriterError
from peerlane.tasks.lane import result
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.lane.tasks import task_of


@pytest.fixture
def create(app: PeerlaneApp) -> Any:
    """The task, as a program without types sees it."""
    return task_of(app, names.CREATE_PEER)


@pytest.fixture
def site(gateway: MakeGateway) -> GatewayProcess:
    return gateway()


class TestAGroup:
    def test_is_one_request_each_with_an_id_of_its_gateway(self, site: GatewayProcess, create: Any) -> None:
        keys = [some_key() for _ in range(5)]
        sent: Any = group(create.s(gateway=site.name, public_key=key) for key in keys).apply_async()
        assert all(names.is_request_id(site.name, result.id) for result in sent.results)
        assert [done["public_key"] for done in sent.get(timeout=PATIENCE)] == keys

    def test_tells_each_refusal_where_it_belongs(self, site: GatewayProcess, create: Any) -> None:
        taken, free = some_key(), some_key()
        create.apply_async(kwargs={"gateway": site.name, "public_key": taken}).get(timeout=PATIENCE)
        wishes = [
            {"gateway": site.name, "public_key": taken, "keepalive": 25},
            {"gateway": "nowhere", "public_key": some_key()},
            {"gateway": site.name, "public_key": free},
        ]
        sent: Any = group(create.s(**wish) for wish in wishes).apply_async()
        conflict, unavailable, made = sent.get(timeout=PATIENCE, propagate=False)
        assert (type(conflict), type(unavailable)) == (Conflict, Unavailable)
        assert (made["outcome"], made["public_key"]) == ("created", free)
        with pytest.raises(Conflict):
            sent.get(timeout=PATIENCE)

    def test_leaves_nothing_behind_that_may_take_effect(self, site: GatewayProcess, create: Any) -> None:
        site.hold()
        sent: Any = group(create.s(gateway=site.name, public_key=some_key()) for _ in range(3)).apply_async()
        outcomes = sent.get(timeout=0.5, propagate=False)
        site.resume()
        assert [type(each) for each in outcomes] == [TimedOut] * 3

    @pytest.mark.parametrize("wait", ["join", "join_native"])
    def test_is_cancelled_by_whichever_of_its_waits_ends(self, site: GatewayProcess, create: Any, wait: str) -> None:
        site.hold()
        sent: Any = group(create.s(gateway=site.name, public_key=some_key()) for _ in range(3)).apply_async()
        outcomes = getattr(sent, wait)(timeout=0.5, propagate=False)
        site.resume()
        assert [type(each) for each in outcomes] == [TimedOut] * 3

    def test_does_not_look_for_each_of_its_outcomes_where_redis_is_away(
        self, own_redis: RedisServer, gateway: MakeGateway, settings: MakeSettings, request: pytest.FixtureRequest
    ) -> None:
        site, app = gateway(redis=own_redis), PeerlaneApp(settings(redis_url=own_redis.url))
        request.addfinalizer(lambda: close(app))
        site.hold()
        create: Any = task_of(app, names.CREATE_PEER)
        sent: Any = group(create.s(gateway=site.name, public_key=some_key()) for _ in range(40)).apply_async()
        own_redis.pause()
        watch = Stopwatch()
        outcomes = sent.get(timeout=0.5, propagate=False)
        taken = watch.seconds
        own_redis.resume()
        site.resume()
        assert {type(each) for each in outcomes} == {OutcomeUnknown}
        assert [each.request_id for each in outcomes] == [each.id for each in sent.results]
        assert taken < 20, "one after the other they would take forty seconds"

    def test_is_revoked_as_a_whole(self, site: GatewayProcess, create: Any) -> None:
        site.hold()
        wishes = [{"gateway": site.name, "public_key": some_key()} for _ in range(2)]
        sent: Any = group(create.s(**wish) for wish in [*wishes, {**wishes[0], "gateway": "nowhere"}]).apply_async()
        sent.revoke()
        site.resume()
        outcomes = sent.get(timeout=PATIENCE, propagate=False)
        assert [type(each) for each in outcomes] == [TimedOut, TimedOut, Unavailable]

    def test_calls_back_with_each_outcome(self, site: GatewayProcess, create: Any) -> None:
        keys, values = [some_key() for _ in range(3)], dict[str, Any]()
        sent: Any = group(create.s(gateway=site.name, public_key=key) for key in keys).apply_async()
        assert sent.get(timeout=PATIENCE, callback=values.__setitem__) == []
        assert [values[result.id]["public_key"] for result in sent.results] == keys


class TestWhatALaneCannotDo:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("queue", "gateway.other"),
            ("priority", 9),
            ("time_limit", 5),
            ("soft_time_limit", 5),
            ("headers", {"a": 1}),
            ("countdown", 5),
            ("routing_key", "elsewhere"),
        ],
    )
    def test_is_refused_by_its_name(self, create: Any, option: str, value: object) -> None:
        with pytest.raises(Invalid, match=rf"a gateway's lane takes no {option}: "):
            create.apply_async(kwargs={"gateway": "nowhere", "public_key": some_key()}, **{option: value})

    def test_callbacks_are_refused(self, create: Any) -> None:
        first, second = (create.si(gateway="nowhere", public_key=some_key()) for _ in range(2))
        for option in ("link", "link_error"):
            with pytest.raises(Invalid, match=rf"takes no {option}: a gateway runs no callbacks"):
                create.apply_async(kwargs=first.kwargs, **{option: [second]})
        with pytest.raises(Invalid, match="takes no chain: a gateway runs no callbacks"):
            chain(first, second).apply_async()
        with pytest.raises(Invalid, match="takes no chord: a gateway runs no callbacks"):
            chord([create.si(**first.kwargs), create.si(**second.kwargs)], second).apply_async()

    def test_is_not_sent_where_no_gateway_takes_it(self, create: Any) -> None:
        wish = {"gateway": "nowhere", "public_key": some_key()}
        for name, more in (("map", ()), ("starmap", ()), ("chunks", (2,))):
            with pytest.raises(Invalid, match="takes no map, starmap or chunks"):
                getattr(create, name)([wish], *more)
        with pytest.raises(WriterError, match="send it by apply_async"):
            create(**wish)
        assert "send it by apply_async" in str(create.apply(kwargs=wish).result)

    def test_nobody_is_called_back(self, app: PeerlaneApp) -> None:
        with pytest.raises(Invalid, match="calls nobody back"):
            app.AsyncResult("iad.1").then(some_key)


class TestAResult:
    @pytest.mark.parametrize("name", ["cancel", "revoke"])
    def test_is_cancelled_for_good(self, site: GatewayProcess, create: Any, name: str) -> None:
        site.hold()
        sent = create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()})
        getattr(sent, name)()
        site.resume()
        with pytest.raises(TimedOut):
            sent.get(timeout=PATIENCE)

    def test_that_had_taken_effect_says_so(self, site: GatewayProcess, create: Any) -> None:
        sent = create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()})
        assert sent.get(timeout=PATIENCE)["outcome"] == "created"
        assert sent.cancel() is False

    def test_has_celerys_other_name_for_get(self, site: GatewayProcess, create: Any) -> None:
        site.hold()
        sent, values = create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()}), dict[str, Any]()
        with pytest.raises(TimedOut, match="will never take effect"):
            sent.wait(timeout=0.5)
        site.resume()
        done = create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()})
        done.get(timeout=PATIENCE, callback=values.__setitem__)
        assert list(values) == [done.id]

    def test_of_an_id_is_a_lanes(self, app: PeerlaneApp, site: GatewayProcess) -> None:
        result = app.AsyncResult(names.request_id(site.name, uuid.uuid4().hex))
        assert isinstance(result, LaneResult)
        with pytest.raises(TimedOut, match="cancelled and will never take effect"):
            result.get(timeout=0.1)


class TestSendTask:
    def test_goes_the_lanes_own_way(self, app: PeerlaneApp, site: GatewayProcess) -> None:
        key = some_key()
        sent = app.send_task(names.CREATE_PEER, kwargs={"gateway": site.name, "public_key": key})
        assert names.is_request_id(site.name, sent.id)
        assert sent.get(timeout=PATIENCE)["public_key"] == key
        with pytest.raises(Unavailable, match="no gateway nowhere"):
            app.send_task(names.DELETE_PEER, kwargs={"gateway": "nowhere", "public_key": key})


def test_tasks_are_registered_once_whoever_asks_at_once(settings: MakeSettings) -> None:
    for _ in range(5):
        app = PeerlaneApp(settings())
        app.finalize()
        start, tasks = threading.Barrier(8), list[Any]()

        def ask(app: PeerlaneApp = app, start: threading.Barrier = start, tasks: list[Any] = tasks) -> None:
            start.wait()
            tasks.append(task_of(app, names.CREATE_PEER))

        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [str(each.message) for each in warned] == []
        assert len({id(task) for task in tasks}) == 1
        close(app)


class TestAPickledResult:
    def test_is_its_request_and_holds_no_password(
        self, site: GatewayProcess, monkeypatch: pytest.MonkeyPatch, create: Any
    ) -> None:
        sent = create.apply_async(kwargs={"gateway": site.name, "public_key": some_key()})
        monkeypatch.setattr(result, "default_app", create.app)  # else it is made from the environment
        pickled = pickle.dumps(sent)
        assert str(site.settings["redis_url"]).encode() not in pickled
        restored = pickle.loads(pickled)  # noqa: S301 - its own
        for again in (restored, copy.copy(sent), copy.deepcopy(sent)):
            assert (again.deadline, again.wish) == (sent.deadline, sent.wish)
            assert again.get(timeout=PATIENCE)["outcome"] == "created"

    def test_is_none_where_its_app_has_settings_of_its_own(self, settings: MakeSettings) -> None:
        app = PeerlaneApp(settings(redis_url="redis://user:secret@127.0.0.1:1/0"))
        try:
            with pytest.raises(TypeError, match="keep its id"):
                pickle.dumps(task_of(app, names.CREATE_PEER).AsyncResult("iad.abc"))
        finally:
            close(app)
