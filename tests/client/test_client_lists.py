"""Lists of any length: an answer for each wish, in order, whoever asks; all of a slice or nothing of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeGateway
from keys import key_number, some_key
from waiting import PATIENCE, eventually

from peerlane import (
    AsyncGateway,
    Conflict,
    Gateway,
    Invalid,
    OutcomeUnknown,
    PeerAnswer,
    PeerlaneError,
    PeerResult,
    Unavailable,
)
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.lane.slices import ask_list, cut, new_list_id
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.lists import SLICE_BYTES

#: Asks for a list; with ``delete`` of keys.
Ask = Callable[..., list[PeerAnswer]]


def as_gateway(app: PeerlaneApp, name: str, wishes: Any, *, delete: bool = False, **more: Any) -> list[PeerAnswer]:
    iad = Gateway(name, app=app)
    return (iad.delete_peers if delete else iad.create_peers)(wishes, **more)


def as_asyncio(app: PeerlaneApp, name: str, wishes: Any, *, delete: bool = False, **more: Any) -> list[PeerAnswer]:
    async def ask() -> list[PeerAnswer]:
        async with AsyncGateway(name, app=app) as iad:
            return await (iad.delete_peers if delete else iad.create_peers)(wishes, **more)

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("ask", [pytest.param(ask, id=ask.__name__) for ask in (as_gateway, as_asyncio)])


def some(count: int) -> list[dict[str, Any]]:
    return [{"public_key": some_key()} for _ in range(count)]


def keys_of(answers: Sequence[PeerAnswer]) -> list[str]:
    return [each.public_key for each in answers if isinstance(each, PeerResult)]


def kinds(answers: Sequence[PeerAnswer]) -> list[str]:
    return [each.code if isinstance(each, PeerlaneError) else each.outcome for each in answers]


@BOTH
class TestAList:
    def test_takes_prefixes_from_anything_that_has_them(
        self, ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        wish = {"public_key": some_key(), "allowed_ips": (text for text in ["10.8.77.1/32", "10.8.77.2/32"])}
        (answer,) = ask(app, shared_gateway.name, [wish])
        assert isinstance(answer, PeerResult)
        assert answer.allowed_ips == ("10.8.77.1/32", "10.8.77.2/32")

    def test_of_any_length_is_answered_in_order(
        self, ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        wishes, name = some(150), shared_gateway.name
        answers = ask(app, name, wishes, timeout=PATIENCE)
        assert keys_of(answers) == [wish["public_key"] for wish in wishes]
        assert kinds(answers) == ["created"] * 150
        assert {peer.public_key for peer in Gateway(name, app=app).peers()} == set(keys_of(answers))
        gone = ask(app, name, [*keys_of(answers), some_key()], delete=True, timeout=PATIENCE)
        assert kinds(gone) == ["deleted"] * 150 + ["absent"]
        assert keys_of(gone)[:150] == keys_of(answers)
        assert list(Gateway(name, app=app).peers()) == []

    def test_of_nothing_is_no_request(self, ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
        assert ask(app, shared_gateway.name, []) == []

    def test_with_bad_wishes_is_told_which_and_does_the_rest(
        self, ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        good = some(3)
        bad: list[Any] = [{"public_key": "short"}, "a key", {"public_key": some_key(), "colour": 1}, {}, None]
        answers = ask(app, shared_gateway.name, [good[0], *bad, good[1], good[2]], timeout=PATIENCE)
        assert kinds(answers) == ["created", *["invalid"] * 5, "created", "created"]
        assert kinds(ask(app, shared_gateway.name, bad)) == ["invalid"] * 5
        assert kinds(ask(app, shared_gateway.name, ["short", None, some_key()], delete=True)) == [
            *["invalid"] * 2,
            "absent",
        ]

    def test_takes_what_a_single_create_takes(self, ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
        wish = {
            "public_key": some_key(),
            "allowed_ips": ("10.8.0.50", "fd00:8::50/128"),
            "preshared_key": some_key(),
            "keepalive": 25,
            "ttl": timedelta(hours=1),
            "labels": {"a": "1"},
        }
        (answer,) = ask(app, shared_gateway.name, [wish, wish])[:1]
        assert isinstance(answer, PeerResult)
        stored = Gateway(shared_gateway.name, app=app).peer(cast("str", wish["public_key"]))
        assert stored is not None
        assert stored.preshared_key == wish["preshared_key"]
        assert answer.model_dump(exclude={"outcome", "gateway", "gateway_public_key", "endpoint"}) == {
            **stored.public(),
            "allowed_ips": tuple(stored.public()["allowed_ips"]),
        }
        assert answer.gateway_public_key
        alone = Gateway(shared_gateway.name, app=app).create_peer(**cast("Any", wish))
        assert alone.model_dump(exclude={"outcome"}) == answer.model_dump(exclude={"outcome"})

    def test_asked_again_under_its_id_is_answered_as_before(
        self, ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        name, wishes = shared_gateway.name, some(70)
        request = names.request_id(name, some_key()[:12].encode().hex())
        first = ask(app, name, [*wishes, {"public_key": "short"}], timeout=PATIENCE, request_id=request)
        Gateway(name, app=app).delete_peer(wishes[0]["public_key"])
        again = ask(app, name, [*wishes, {"public_key": "short"}], timeout=PATIENCE, request_id=request)
        assert kinds(again) == kinds(first) == ["created"] * 70 + ["invalid"]
        assert again[:70] == first[:70]
        assert len(list(Gateway(name, app=app).peers())) == 69, "and nothing was done again"
        others = [*wishes[:64], *some(6)]
        assert (
            kinds(ask(app, name, others, timeout=PATIENCE, request_id=request)) == ["created"] * 64 + ["conflict"] * 6
        )

    @pytest.mark.parametrize("request_id", ["x", "other.x", "{name}.", "{name}." + "x" * 57, "{name}.a b"])
    def test_under_a_malformed_id_is_refused_and_nothing_sent(
        self, ask: Ask, request_id: str, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        with pytest.raises(Invalid, match="a list's request id"):
            ask(app, shared_gateway.name, some(1), request_id=request_id.format(name=shared_gateway.name))
        assert list(Gateway(shared_gateway.name, app=app).peers()) == []

    def test_whose_time_is_up_is_not_done_and_never_will_be(
        self, ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        shared_gateway.hold()
        answers = ask(app, shared_gateway.name, some(130), timeout=1)
        assert kinds(answers) == ["timed_out"] * 130
        shared_gateway.resume()
        assert Gateway(shared_gateway.name, app=app).create_peer(some_key(), timeout=PATIENCE).outcome == "created"
        assert len(list(Gateway(shared_gateway.name, app=app).peers())) == 1

    def test_for_a_gateway_that_nobody_knows_is_refused_at_once(self, ask: Ask, app: PeerlaneApp) -> None:
        answers = ask(app, "nowhere", some(2), timeout=PATIENCE)
        assert [type(answer) for answer in answers] == [Unavailable, Unavailable]


class TestWhoStopsEarly:
    def test_leaves_nothing_behind_but_what_was_answered(
        self, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        iad, wishes = Gateway(shared_gateway.name, app=app), some(64 * 8)
        answers = ask_list(app, names.CREATE_PEERS, iad.name, wishes, timeout=PATIENCE)
        taken = [next(answers) for _ in range(64)]
        shared_gateway.hold()
        answers.close()
        shared_gateway.resume()
        eventually(lambda: shared_gateway.look().waiting_bulk == 0, "the lane being empty")
        iad.create_peer(some_key(), timeout=PATIENCE)
        there = {peer.public_key for peer in iad.peers()}
        assert set(keys_of(taken)) <= there
        assert len(there) % 64 == 1, "slices are done whole or not at all"
        assert len(there) <= 64 * 5 + 1

    def test_in_an_asyncio_program_cancels_what_is_on_its_way(
        self, shared_gateway: GatewayProcess, app: PeerlaneApp
    ) -> None:
        async def give_up() -> None:
            async with AsyncGateway(shared_gateway.name, app=app) as iad:
                asking = asyncio.create_task(iad.create_peers(some(200), timeout=PATIENCE))
                await asyncio.to_thread(
                    eventually, lambda: shared_gateway.look().waiting_bulk >= 4, "four slices waiting"
                )
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking

        shared_gateway.hold()
        asyncio.run(give_up())
        assert shared_gateway.look().waiting_bulk == 4, "no more than four slices were on their way"
        shared_gateway.resume()


class TestASlice:
    def test_holds_64_wishes_or_what_fits_into_a_message(self) -> None:
        small = [{"public_key": key_number(number)} for number in range(1, 151)]
        assert [len(part.parts) for part in cut(names.CREATE_PEERS, "iad", small, "iad.a")] == [64, 64, 22]
        large = [{**wish, "labels": {f"l{n}": "x" * 256 for n in range(30)}} for wish in small[:10]]
        slices = list(cut(names.CREATE_PEERS, "iad", large, "iad.a"))
        assert [len(part.parts) for part in slices] == [4, 4, 2]
        assert all(len(json.dumps(part.arguments)) < SLICE_BYTES + 1_000 for part in slices)
        huge = [{**wish, "allowed_ips": [f"192.168.{n}.0/28" for n in range(256)]} for wish in small[:3]]
        assert sum(len(part.parts) for part in cut(names.CREATE_PEERS, "iad", huge * 20, "iad.a")) == 60

    def test_is_the_same_whenever_the_list_is_cut(self) -> None:
        wishes: list[Any] = [{"public_key": key_number(number)} for number in range(1, 151)]
        wishes[3] = None
        first, again = (list(cut(names.CREATE_PEERS, "iad", wishes, "iad.a", size=50)) for _ in range(2))
        assert [part.request_id for part in first] == ["iad.a-0", "iad.a-1", "iad.a-2"]
        assert [part.arguments for part in first] == [part.arguments for part in again]

    def test_whose_outcome_is_unknown_is_settled_by_the_list_asked_again(self) -> None:
        list_id = new_list_id("iad")
        (part,) = cut(names.DELETE_PEERS, "iad", [key_number(1), "short"], list_id)
        unknown, bad = part.answers(OutcomeUnknown("away", part.request_id))
        assert isinstance(unknown, OutcomeUnknown)
        assert unknown.request_id == list_id
        assert isinstance(bad, Invalid)


class TestPlainCelery:
    def test_sends_a_list_as_any_other_task(self, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
        wishes = [{"public_key": some_key(), "preshared_key": some_key()}, {"public_key": some_key()}]
        create = task_of(app, names.CREATE_PEERS)
        sent = create.apply_async(kwargs={"gateway": shared_gateway.name, "wishes": wishes}, expires=PATIENCE)
        result = sent.get(timeout=PATIENCE)
        assert [each["outcome"] for each in result["answers"]] == ["created", "created"]
        with pytest.raises(Conflict, match="used for another request"):
            create.apply_async(
                kwargs={"gateway": shared_gateway.name, "wishes": wishes[:1]}, task_id=str(sent.id), expires=PATIENCE
            ).get(timeout=PATIENCE)

    @pytest.mark.parametrize("wishes", [[{"public_key": key_number(1)}, {"public_key": "short"}]])
    def test_is_told_of_a_bad_wish_before_anything_is_sent(self, wishes: Any, app: PeerlaneApp) -> None:
        with pytest.raises(Invalid, match="wish 1 of the list: public_key"):
            task_of(app, names.CREATE_PEERS).apply_async(kwargs={"gateway": "iad", "wishes": wishes})


def test_what_is_shown_of_a_list_holds_no_preshared_key(shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    secret, name = some_key(), shared_gateway.name
    shared_gateway.hold()
    create = task_of(app, names.CREATE_PEERS)
    wish = {"public_key": some_key(), "preshared_key": secret}
    sent = create.apply_async(kwargs={"gateway": name, "wishes": [wish]}, expires=PATIENCE)
    waiting = cast("list[bytes]", lanes_of(app).redis.lrange(names.bulk_queue(name), 0, -1))
    (headers,) = [of for of in (json.loads(message)["headers"] for message in waiting) if of["id"] == sent.id]
    shared_gateway.resume()
    assert secret not in json.dumps(headers)
    assert len(headers["wish"]) == 32
    assert secret not in json.dumps(sent.get(timeout=PATIENCE))


def test_a_tenants_list_counts_wish_by_wish(gateway: MakeGateway, app: PeerlaneApp) -> None:
    site = gateway(lane_cap=200, fair_label="tenant", fair_share=0.5)

    def wishes(tenant: str, count: int) -> list[dict[str, Any]]:
        return [{**wish, "labels": {"tenant": tenant}} for wish in some(count)]

    site.hold()
    answers = Gateway(site.name, app=app).create_peers(wishes("a", 64 * 3), timeout=1)
    # 64 and not 128: the second slice would be beyond the share of 100.
    assert kinds(answers) == ["timed_out"] * 64 + ["unavailable"] * 128
    assert "tenant=a" in str(answers[-1])
    sent = task_of(app, names.CREATE_PEERS).apply_async(
        kwargs={"gateway": site.name, "wishes": wishes("b", 64)}, expires=PATIENCE
    )
    site.resume()
    assert len(sent.get(timeout=PATIENCE)["answers"]) == 64
    redis = lanes_of(app).redis
    shares = list(cast("Any", redis.scan_iter(match=names.share_key(site.name, "*"))))
    eventually(lambda: not any(cast("Any", redis.zcard(key)) for key in shares), "both shares being empty")
    eventually(
        lambda: kinds(Gateway(site.name, app=app).create_peers(wishes("b", 64), timeout=PATIENCE)) == ["created"] * 64,
        "the share of b being free again",
    )
