"""A request id belongs to one wish: for another it is a Conflict, and nothing is done, whoever asks and how."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeClient
from keys import key_number, some_key
from waiting import PATIENCE, eventually

from peerlane import AsyncGateway, Conflict, Gateway, Invalid, OutcomeUnknown, PeerResult, TimedOut, WriterError
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.commit_record import sound_digest, wish_digest
from peerlane.tasks.wire.model import CreatePeer, DeletePeer, parse

OTHER = "used for another request"

#: Asks for a peer, or with ``delete`` that it be gone, under a request id.
Ask = Callable[[PeerlaneApp, str, str, dict[str, Any]], PeerResult]


def as_gateway(app: PeerlaneApp, name: str, request: str, wish: dict[str, Any]) -> PeerResult:
    iad, rest = Gateway(name, app=app), dict(wish)
    if rest.pop("delete", False):
        return iad.delete_peer(rest["public_key"], request_id=request, timeout=PATIENCE)
    return iad.create_peer(**rest, request_id=request, timeout=PATIENCE)


def as_asyncio(app: PeerlaneApp, name: str, request: str, wish: dict[str, Any]) -> PeerResult:
    async def ask() -> PeerResult:
        rest = dict(wish)
        async with AsyncGateway(name, app=app) as iad:
            if rest.pop("delete", False):
                return await iad.delete_peer(rest["public_key"], request_id=request, timeout=PATIENCE)
            return await iad.create_peer(**rest, request_id=request, timeout=PATIENCE)

    return asyncio.run(ask())


def as_celery(app: PeerlaneApp, name: str, request: str, wish: dict[str, Any]) -> PeerResult:
    rest = dict(wish)
    task = task_of(app, names.DELETE_PEER if rest.pop("delete", False) else names.CREATE_PEER)
    sent = task.apply_async(kwargs={"gateway": name, **rest}, task_id=request, expires=PATIENCE)
    return PeerResult.model_validate(sent.get(timeout=PATIENCE))


WAYS = [pytest.param(way, id=way.__name__) for way in (as_gateway, as_asyncio, as_celery)]


def new_request(gateway: GatewayProcess) -> str:
    return names.request_id(gateway.name, str(uuid.uuid4()))


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({}, {"other key": True}, id="another key"),
        pytest.param({}, {"keepalive": 25}, id="another keepalive"),
        pytest.param({}, {"preshared_key": key_number(7)}, id="a preshared key"),
        pytest.param({"preshared_key": key_number(8)}, {"preshared_key": key_number(7)}, id="another preshared key"),
        pytest.param({"ttl": 60}, {"ttl": 61}, id="another time to live"),
        pytest.param({}, {"delete": True}, id="a delete"),
        pytest.param({"delete": True}, {}, id="a create"),
    ],
)
def test_an_id_used_again_for_another_wish_is_a_conflict_and_changes_nothing(
    ask: Ask, first: dict[str, Any], second: dict[str, Any], shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    name, request, key = shared_gateway.name, new_request(shared_gateway), some_key()
    said = dict(second)
    other_key = some_key() if said.pop("other key", False) else key
    answered = ask(app, name, request, {"public_key": key, **first})
    before = list(Gateway(name, app=app).peers())
    with pytest.raises(Conflict, match=OTHER):
        ask(app, name, request, {"public_key": other_key, **said})
    assert list(Gateway(name, app=app).peers()) == before
    assert ask(app, name, request, {"public_key": key, **first}) == answered, "the first wish is answered as ever"


@pytest.mark.parametrize("ask", WAYS)
def test_the_same_wish_in_other_words_is_answered_as_before(
    ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    request, key = new_request(shared_gateway), some_key()
    wish = {"public_key": key, "allowed_ips": ["10.8.0.77", "fd00:8::77"], "labels": {"b": "2", "a": "1"}}
    same = {
        "public_key": key,
        "allowed_ips": ("fd00:8::77/128", "10.8.0.77/32"),
        "labels": {"a": "1", "b": "2"},
        "keepalive": 0,
        "pinned": False,
    }
    answered = ask(app, shared_gateway.name, request, wish)
    for way in (as_gateway, as_asyncio, as_celery):
        assert way(app, shared_gateway.name, request, same) == answered


def test_of_two_wishes_that_wait_under_one_id_one_is_done_and_the_other_told(
    shared_gateway: GatewayProcess, app: PeerlaneApp, client: MakeClient
) -> None:
    iad, request, keys = shared_gateway, new_request(shared_gateway), [some_key(), some_key()]
    create = task_of(app, names.CREATE_PEER)
    iad.hold()
    sent = [
        create.apply_async(kwargs={"gateway": iad.name, "public_key": key}, task_id=request, expires=PATIENCE)
        for key in keys
    ]
    iad.resume()
    assert sent[0].get(timeout=PATIENCE)["public_key"] == keys[0]
    with pytest.raises(Conflict, match=OTHER):
        sent[1].get(timeout=PATIENCE)
    assert [peer.public_key for peer in client(iad).peers()] == [keys[0]]


def test_a_refusal_belongs_to_its_wish_too(shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    iad, request = Gateway(shared_gateway.name, app=app), new_request(shared_gateway)
    key = some_key()
    with pytest.raises(Exception, match="outside what the gateway"):
        iad.create_peer(key, allowed_ips=["192.0.2.1/32"], request_id=request)
    with pytest.raises(Conflict, match=OTHER):
        iad.create_peer(key, request_id=request)
    with pytest.raises(Exception, match="outside what the gateway"):
        iad.create_peer(key, allowed_ips=["192.0.2.1/32"], request_id=request)


@pytest.mark.parametrize("ask", WAYS)
def test_a_record_of_an_earlier_version_is_read_as_ever(
    ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    request, key = new_request(shared_gateway), some_key()
    answered = ask(app, shared_gateway.name, request, {"public_key": key})
    redis, stored = lanes_of(app).redis, names.result_key(request)
    record = json.loads(cast("bytes", redis.get(stored)))
    assert sound_digest(record.pop("wish"))
    redis.set(stored, json.dumps(record), keepttl=True)
    assert ask(app, shared_gateway.name, request, {"public_key": key}) == answered


@pytest.mark.parametrize("ask", WAYS[:2])
def test_a_record_that_is_no_result_is_a_writers_fault(
    ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    request = names.request_id(shared_gateway.name, str(uuid.uuid4()))
    record = json.dumps({"status": "SUCCESS", "result": {"outcome": "swept"}, "task_id": request})
    lanes_of(app).redis.set(names.result_key(request), record, ex=60)
    with pytest.raises(WriterError, match="no result of a create or delete"):
        ask(app, shared_gateway.name, request, {"public_key": some_key()})


@pytest.mark.parametrize("ask", WAYS)
def test_an_empty_id_is_none(ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    with pytest.raises(Invalid, match="a request id is"):
        ask(app, shared_gateway.name, "", {"public_key": some_key()})
    with pytest.raises(Invalid, match="a list's request id is"):
        Gateway(shared_gateway.name, app=app).create_peers([], request_id="")


class TestTwoThreadsThatWaitForOneRequest:
    """As two attempts of a web request may: the one that gives up first takes nothing from the other."""

    def two_callers(self, iad: GatewayProcess, app: PeerlaneApp, within: float) -> tuple[str, Future[PeerResult]]:
        """One that waits so long, and another that has given up; the key."""
        request, key = new_request(iad), some_key()
        iad.hold()
        lane = names.lane_queue(iad.name)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(Gateway(iad.name, app=app).create_peer, key, request_id=request, timeout=within)
            eventually(lambda: lanes_of(app).redis.llen(lane), "the first one's message")
            with pytest.raises(OutcomeUnknown, match="another call in this program"):
                Gateway(iad.name, app=app).create_peer(key, request_id=request, timeout=0.3)
            if within > 5:
                iad.resume()
        return key, waiting

    def test_the_patient_one_gets_its_answer(self, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
        _, waiting = self.two_callers(shared_gateway, app, 30)
        assert waiting.result(30).outcome == "created"

    def test_the_last_to_give_up_cancels_it(self, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
        key, waiting = self.two_callers(shared_gateway, app, 3)
        with pytest.raises(TimedOut):
            waiting.result(30)
        shared_gateway.resume()
        iad = Gateway(shared_gateway.name, app=app)
        iad.create_peer(some_key(), timeout=20)
        assert iad.peer(key) is None

    def test_plain_celery_counts_too(self, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
        name, request, key = shared_gateway.name, new_request(shared_gateway), some_key()
        shared_gateway.hold()
        sent = task_of(app, names.CREATE_PEER).apply_async(
            kwargs={"gateway": name, "public_key": key}, task_id=request, expires=30
        )
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(sent.get, timeout=30)
            eventually(lambda: lanes_of(app).waits.is_awaited(request), "somebody waiting for it")
            with pytest.raises(OutcomeUnknown, match="another call in this program"):
                app.AsyncResult(request).get(timeout=0.3)
            shared_gateway.resume()
            assert waiting.result()["outcome"] == "created"


class TestADigest:
    KEY = key_number(1)

    def test_is_that_of_all_that_is_wished_for(self) -> None:
        fields: dict[str, Any] = {"gateway": "iad", "public_key": self.KEY}
        more: list[dict[str, Any]] = [
            *({}, {"gateway": "fra"}, {"public_key": key_number(2)}, {"keepalive": 1}, {"ttl": 60}, {"pinned": True}),
            *({"allowed_ips": ["10.8.0.1"]}, {"allowed_ips": ["10.8.0.0/31"]}, {"preshared_key": key_number(3)}),
            *({"labels": {"a": "1"}}, {"labels": {"a": "2"}}),
        ]
        digests = [wish_digest(names.CREATE_PEER, parse(CreatePeer, fields | each)) for each in more]
        digests.append(wish_digest(names.DELETE_PEER, parse(DeletePeer, fields)))
        assert len(set(digests)) == len(digests)
        assert all(sound_digest(digest) for digest in digests)

    def test_is_the_same_in_every_version(self) -> None:
        fields = {"gateway": "iad", "public_key": self.KEY, "labels": {"who": "Zoë", "a": "1"}, "keepalive": 25}
        assert wish_digest(names.CREATE_PEER, parse(CreatePeer, fields)) == "cc9b58f6432df52f43effcd75bf1abba"

    def test_is_another_thing_than_the_deadline(self) -> None:
        fields: dict[str, Any] = {"gateway": "iad", "public_key": self.KEY}
        first, second = (parse(CreatePeer, fields | {"deadline": at}) for at in (1, 2))
        assert wish_digest(names.CREATE_PEER, first) == wish_digest(names.CREATE_PEER, second)

    @pytest.mark.parametrize("header", [None, 7, "", "x" * 32, "0" * 31, "0" * 33, ["0" * 32], '"' * 32])
    def test_that_is_none_is_left_out(self, header: object) -> None:
        assert sound_digest(header) == ""
