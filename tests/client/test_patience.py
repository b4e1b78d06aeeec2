"""Timeouts and prefixes as callers write them: taken, or refused by name before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from gateways import GatewayProcess
from keys import some_key
from waiting import PATIENCE

from peerlane import AsyncFleet, AsyncGateway, Fleet, Gateway, Invalid, PeerResult, Unavailable
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin import maintenance
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.lane.request import seconds_of

#: Creates a peer with these arguments.
Ask = Callable[[PeerlaneApp, str, dict[str, Any]], object]


def as_gateway(app: PeerlaneApp, name: str, arguments: dict[str, Any]) -> object:
    return Gateway(name, app=app).create_peer(some_key(), **arguments)


def as_fleet(app: PeerlaneApp, name: str, arguments: dict[str, Any]) -> object:
    del name
    return Fleet(app).create_peer(some_key(), **arguments)


def as_list(app: PeerlaneApp, name: str, arguments: dict[str, Any]) -> object:
    timeout = arguments.get("timeout", PATIENCE)
    wish = {name: value for name, value in arguments.items() if name != "timeout"}
    (answer,) = Gateway(name, app=app).create_peers([{"public_key": some_key(), **wish}], timeout=timeout)
    if isinstance(answer, Exception):
        raise answer
    return answer


def as_asyncio(app: PeerlaneApp, name: str, arguments: dict[str, Any]) -> object:
    async def ask() -> PeerResult:
        async with AsyncGateway(name, app=app) as iad:
            return await iad.create_peer(some_key(), **arguments)

    return asyncio.run(ask())


def as_asyncio_fleet(app: PeerlaneApp, name: str, arguments: dict[str, Any]) -> object:
    del name

    async def ask() -> PeerResult:
        async with AsyncFleet(app) as fleet:
            return await fleet.create_peer(some_key(), **arguments)

    return asyncio.run(ask())


def as_sweep(app: PeerlaneApp, name: str, arguments: dict[str, Any]) -> object:
    return maintenance.sweep(app, name, **arguments)


def as_reconcile(app: PeerlaneApp, name: str, arguments: dict[str, Any]) -> object:
    return maintenance.reconcile(app, name, **arguments)


ASKS = (as_gateway, as_list, as_asyncio)
EVERYONE = (*ASKS, as_fleet, as_asyncio_fleet, as_sweep, as_reconcile)


@pytest.mark.parametrize("ask", [pytest.param(ask, id=ask.__name__) for ask in EVERYONE])
@pytest.mark.parametrize(
    "timeout",
    [0, 0.0, -1, timedelta(0), float("nan"), float("inf"), 86_401, 10**400, "5", True],
    ids=lambda value: repr(value)[:20],
)
def test_no_time_at_all_is_refused_and_nothing_sent(
    ask: Ask, timeout: Any, shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    with pytest.raises(Invalid, match="timeout: a number of seconds above 0"):
        ask(app, shared_gateway.name, {"timeout": timeout})
    assert list(Gateway(shared_gateway.name, app=app).peers()) == []


@pytest.mark.parametrize("ask", [pytest.param(ask, id=ask.__name__) for ask in (as_gateway, as_sweep, as_reconcile)])
@pytest.mark.parametrize("name", ["", "no name", "x" * 100, "iad\n"])
def test_a_name_that_no_gateway_has_is_refused_and_nothing_sent(ask: Ask, name: str, app: PeerlaneApp) -> None:
    with pytest.raises(Invalid, match="gateway"):
        ask(app, name, {"timeout": PATIENCE})


@pytest.mark.parametrize("ask", [pytest.param(ask, id=ask.__name__) for ask in ASKS])
def test_a_timedelta_is_a_timeout(ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    answer = ask(app, shared_gateway.name, {"timeout": timedelta(seconds=PATIENCE)})
    assert isinstance(answer, PeerResult)
    assert answer.outcome == "created"


def test_of_several_timeouts_the_first_that_is_given_counts() -> None:
    assert seconds_of(None, timedelta(minutes=1), 5.0) == 60.0
    assert seconds_of(None, None, 5) == 5.0


@pytest.mark.parametrize("ask", [pytest.param(ask, id=ask.__name__) for ask in ASKS])
def test_one_text_is_no_list_of_prefixes(ask: Ask, shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    with pytest.raises(Invalid, match=r"allowed_ips: this is a list of prefixes, such as \["):
        ask(app, shared_gateway.name, {"allowed_ips": "10.8.3.3/32", "timeout": PATIENCE})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("allowed_ips", 5, "this is a list of prefixes"),
        ("allowed_ips", {"10.8.0.7/32": 1}, "this is a list of prefixes"),
        ("labels", [("a", "b")], "Input should be a valid dictionary"),
        ("labels", "a=b", "Input should be a valid dictionary"),
    ],
    ids=["number", "mapping", "pairs", "text"],
)
@pytest.mark.parametrize("ask", [pytest.param(ask, id=ask.__name__) for ask in ASKS])
def test_what_is_no_list_or_mapping_is_refused_by_name(
    ask: Ask, name: str, value: Any, sentence: str, shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    with pytest.raises(Invalid, match=f"{name}: {sentence}"):
        ask(app, shared_gateway.name, {name: value, "timeout": PATIENCE})


def test_names_that_no_gateway_has_are_not_kept(app: PeerlaneApp, shared_gateway: GatewayProcess) -> None:
    """A caller may hand on names that its own callers choose: there is no end of them."""
    lanes = lanes_of(app)
    for name in (f"{shared_gateway.name}-{number}" for number in range(3)):
        with pytest.raises(Unavailable, match="is registered"):
            Gateway(name, app=app).create_peer(some_key())
    Gateway(shared_gateway.name, app=app).delete_peer(some_key())
    assert lanes.may_pass(shared_gateway.name, bulk=False) >= 1
    assert list(vars(lanes)["_believed"]) == [shared_gateway.name]
