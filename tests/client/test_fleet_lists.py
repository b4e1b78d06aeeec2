"""Lists through a fleet: each wish goes where one create would, and is answered in its place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import prometheus_client
import pytest
from gateways import GatewayProcess, MakeGateway, new_name
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number, some_key

from peerlane import AsyncFleet, Fleet, Gateway, GatewayInfo, PeerAnswer, PeerlaneError, PeerResult
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.client.placement import Choice, ListAnswer, ListPlacement, ListRemoval, choose
from peerlane.tasks.errors import Conflict, PoolExhausted, TimedOut, Unavailable
from peerlane.tasks.lane.telemetry import REQUESTS

Ask = Callable[..., list[PeerAnswer]]


def by_threads(app: PeerlaneApp, wishes: Any, *, delete: bool = False, **more: Any) -> list[PeerAnswer]:
    fleet = Fleet(app, timeout=20)
    return (fleet.delete_peers if delete else fleet.create_peers)(wishes, **more)


def by_asyncio(app: PeerlaneApp, wishes: Any, *, delete: bool = False, **more: Any) -> list[PeerAnswer]:
    async def ask() -> list[PeerAnswer]:
        async with AsyncFleet(app, timeout=20) as fleet:
            return await (fleet.delete_peers if delete else fleet.create_peers)(wishes, **more)

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("ask", [pytest.param(ask, id=ask.__name__) for ask in (by_threads, by_asyncio)])


@pytest.fixture
def region() -> str:
    """A region that no other test's gateways are of."""
    return new_name()


@pytest.fixture
def two(gateway: MakeGateway, region: str) -> list[GatewayProcess]:
    """Two gateways of the region with room for 40 peers each."""
    return [gateway(region=region, max_peers=40, lane_cap=10_000) for _ in range(2)]


def some(count: int) -> list[dict[str, Any]]:
    return [{"public_key": some_key()} for _ in range(count)]


def kinds(answers: list[PeerAnswer]) -> list[str]:
    return [each.code if isinstance(each, PeerlaneError) else each.outcome for each in answers]


def keys_on(app: PeerlaneApp, site: GatewayProcess) -> set[str]:
    return {peer.public_key for peer in Gateway(site.name, app=app).peers()}


class TestALiveFleet:
    @BOTH
    def test_spreads_a_list_over_gateways_of_one_size_and_deletes_it_wherever_it_is(
        self, ask: Ask, two: list[GatewayProcess], app: PeerlaneApp, region: str
    ) -> None:
        wishes = some(70)
        answers = ask(app, wishes, region=region)
        assert kinds(answers) == ["created"] * 70
        assert [getattr(each, "public_key", "") for each in answers] == [wish["public_key"] for wish in wishes]
        by_gateway = Counter(each.gateway for each in answers if isinstance(each, PeerResult))
        assert set(by_gateway) == {site.name for site in two}
        assert max(by_gateway.values()) - min(by_gateway.values()) <= 1
        assert [keys_on(app, site) for site in two] == [
            {each.public_key for each in answers if isinstance(each, PeerResult) and each.gateway == site.name}
            for site in two
        ]
        assert kinds(ask(app, wishes, region=region)) == ["existing"] * 70, "each stays where it is"

        stranger = some_key()
        gone = ask(app, [stranger, *(wish["public_key"] for wish in wishes), "no key"], region=region, delete=True)
        assert kinds(gone) == ["absent"] + ["deleted"] * 70 + ["invalid"]
        assert keys_on(app, two[0]) | keys_on(app, two[1]) == set()

    @BOTH
    def test_answers_what_no_gateway_takes_and_what_is_malformed_in_its_place(
        self, ask: Ask, two: list[GatewayProcess], app: PeerlaneApp, region: str
    ) -> None:
        wishes: list[Any] = some(83)
        wishes[3] = {"public_key": "no key"}
        wishes[40] = "no wish"
        answers = ask(app, wishes, region=region)
        assert [number for number, kind in enumerate(kinds(answers)) if kind == "invalid"] == [3, 40]
        counted = Counter(kinds(answers))
        assert counted == {"created": 80, "invalid": 2, "unavailable": 1}
        (refused,) = [each for each in answers if isinstance(each, Unavailable)]
        assert all(site.name in refused.message for site in two)

    @BOTH
    def test_of_a_region_without_gateways_refuses_each(self, ask: Ask, app: PeerlaneApp, region: str) -> None:
        assert kinds(ask(app, some(3), region=region)) == ["unavailable"] * 3
        assert kinds(ask(app, [some_key()], region=region, delete=True)) == ["unavailable"]
        assert ask(app, [], region=region) == []

    def test_counts_a_list_as_one_call_of_each_gateway_that_it_goes_to(
        self, two: list[GatewayProcess], app: PeerlaneApp, region: str
    ) -> None:
        def counted(name: str) -> float:
            return prometheus_client.REGISTRY.get_sample_value(REQUESTS, {"gateway": name, "code": "ok"}) or 0.0

        Fleet(app, timeout=20).create_peers(some(10), region=region)
        assert [counted(site.name) for site in two] == [1, 1]
        Gateway(two[0].name, app=app).create_peers(some(2), timeout=20)
        assert counted(two[0].name) == 2


def info(name: str, room: int) -> GatewayInfo:
    state = LaneState(name, {"max_peers": str(room)}, 0, 0, 0)
    return replace(GatewayInfo.from_state(state), state="active")


def created(gateway: str, number: int) -> PeerResult:
    return PeerResult(outcome="created", gateway=gateway, public_key=key_number(number))


class TestThePlacementOfAList:
    @given(
        rooms=st.lists(st.integers(0, 6), min_size=0, max_size=4),
        count=st.integers(0, 30),
        bound=st.dictionaries(st.integers(0, 29), st.integers(0, 3), max_size=5),
    )
    def test_gives_each_wish_one_answer_and_asks_nobody_twice(
        self, rooms: list[int], count: int, bound: dict[int, int]
    ) -> None:
        """Against gateways that are as full as they say: what is refused is refused by all."""
        fleet = [info(f"g{number}", room) for number, room in enumerate(rooms)]
        there = {place: f"g{number}" for place, number in bound.items() if place < count and number < len(rooms)}
        placement = ListPlacement(count, choose(fleet), "", there)
        left = {info.name: info.room for info in fleet}
        asked: Counter[tuple[str, int]] = Counter()
        while places_of := placement.next_round():
            for gateway, places in places_of.items():
                answers: list[PeerAnswer] = []
                for place in places:
                    asked[gateway, place] += 1
                    left[gateway] -= 1
                    answers.append(created(gateway, place) if left[gateway] >= 0 else PoolExhausted("full"))
                placement.heard(gateway, places, answers)
        assert len(placement.answers) == count
        assert set(asked.values()) <= {1}
        assert all(gateway == there[place] for gateway, place in asked if place in there)
        taken = sum(isinstance(answer, PeerResult) for answer in placement.answers)
        free = [place for place in range(count) if place not in there]
        if not there:
            assert taken == min(len(free), sum(rooms))

    def test_sends_on_what_is_refused_for_now_and_nothing_else(self) -> None:
        placement = ListPlacement(3, choose([info("full", 9), info("next", 1)]), "", {})
        assert placement.next_round() == {"full": [0, 1, 2]}
        placement.heard("full", [0, 1, 2], [Unavailable("it is down"), Conflict("another wish"), created("full", 2)])
        assert placement.next_round() == {"next": [0]}
        placement.heard("next", [0], [created("next", 0)])
        assert placement.next_round() == {}
        assert kinds(placement.answers) == ["created", "conflict", "created"]

    def test_of_a_delete_on_several_gateways_tells_what_says_most(self) -> None:
        removal = ListRemoval(["a", "b"], {0: ["iad", "fra"]}, "iad")
        assert removal.round == {"iad": [0, 1], "fra": [0]}
        gone = PeerResult(outcome="deleted", gateway="fra", public_key=key_number(1))
        absent = replace_outcome(gone)
        no_gateway = Unavailable("no gateway")
        assert removal.heard("iad", [0, 1], [absent, absent]) == [ListAnswer(1, absent, "iad")]
        assert removal.heard("fra", [0], [gone]) == [ListAnswer(0, gone, "fra")]
        assert removal.unheard(no_gateway) == []
        assert removal.answers(no_gateway) == [gone, absent]
        unasked = ListRemoval(["a"], {}, None)
        assert unasked.answers(no_gateway) == [each.answer for each in unasked.unheard(no_gateway)] == [no_gateway]

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["deleted-first", "error-first"])
    def test_of_a_delete_that_one_gateway_did_not_carry_out_tells_that(self, order: tuple[int, int]) -> None:
        gone = PeerResult(outcome="deleted", gateway="iad", public_key=key_number(1))
        late, sites = TimedOut("no outcome within 5 s"), ["iad", "fra"]
        removal, final = ListRemoval(["a"], {0: [sites[number] for number in order]}, "iad"), list[ListAnswer]()
        for number in order:
            final = removal.heard(sites[number], [0], [[gone, late][number]])
        assert final == [ListAnswer(0, late, "fra")]
        assert removal.answers(Unavailable("no gateway")) == [late]

    def test_of_no_gateways_at_all_says_so(self) -> None:
        placement = ListPlacement(1, Choice((), {}, {}), "", {})
        assert placement.next_round() == {}
        assert "no gateway is registered" in str(placement.answers[0])


def replace_outcome(result: PeerResult) -> PeerResult:
    return result.model_copy(update={"outcome": "absent"})
