"""A fleet: gateways that are emptied and filled again, and peers for callers that name no gateway."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import asked
from gateways import MakeClient, MakeGateway, MakeSettings, close, new_name
from hypothesis import given
from hypothesis import strategies as st
from keys import some_key
from loops import run_and_leave_nothing
from servers import RedisServer
from waiting import eventually

from peerlane import AsyncFleet, Fleet, Gateway, GatewayInfo
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.client.placement import Choice, Placement, choose
from peerlane.tasks.errors import Conflict, Draining, Invalid, PoolExhausted, TimedOut, Unavailable


@pytest.fixture
def region() -> str:
    """A region that no other test's gateways are of."""
    return new_name()


@pytest.fixture
def fleet(settings: MakeSettings) -> Any:
    app = PeerlaneApp(settings())
    yield Fleet(app)
    close(app)


# Drain and resume


def test_a_drained_gateway_refuses_creates_and_still_deletes(gateway: MakeGateway, client: MakeClient) -> None:
    iad = client(gateway())
    key = some_key()
    iad.create_peer(key)
    done = iad.drain()
    assert (done.before, done.after) == ("active", "draining")
    assert iad.info().state == "draining"
    with pytest.raises(Draining, match="use another gateway"):
        iad.create_peer(some_key())
    assert iad.delete_peer(key).outcome == "deleted"


def test_draining_twice_says_that_nothing_changed(gateway: MakeGateway, client: MakeClient) -> None:
    iad = client(gateway())
    iad.drain()
    assert (iad.drain().before, iad.resume().before, iad.resume().before) == ("draining", "draining", "active")


def test_a_resumed_gateway_takes_peers_at_once(gateway: MakeGateway, client: MakeClient) -> None:
    process = gateway()
    iad = client(process)
    iad.drain()
    # A sender that knew nothing of it: the writer itself has heard that it is drained.
    eventually(lambda: process.look().state == "draining", "the lane being drained")
    iad.resume()
    assert iad.create_peer(some_key()).outcome == "created"


def test_a_drained_gateway_stays_drained_through_a_restart(gateway: MakeGateway, client: MakeClient) -> None:
    process = gateway()
    iad = client(process)
    iad.drain()
    process.stop()
    process.start(wait=False)
    eventually(lambda: process.look().state == "draining", "the lane being back, still drained")
    with pytest.raises(Draining):
        iad.create_peer(some_key())


def test_a_gateway_that_is_down_can_be_drained(gateway: MakeGateway, client: MakeClient) -> None:
    process = gateway()
    process.stop()
    assert client(process).drain().after == "draining"


def test_an_unknown_gateway_is_not_drained_into_being(client: MakeClient, redis_server: RedisServer) -> None:
    name = new_name()
    with pytest.raises(Unavailable, match="no gateway"):
        client(name).drain()
    assert not redis_server.redis.exists(names.gateway_key(name))


# Capacity


def test_a_gateway_says_how_much_room_it_has_and_refuses_beyond_it(gateway: MakeGateway, client: MakeClient) -> None:
    iad = client(gateway(max_peers=2))
    assert iad.info().room == 2
    first = some_key()
    for key in (first, some_key()):
        iad.create_peer(key)
    eventually(lambda: iad.info().room == 0, "the gateway saying that it is full")
    with pytest.raises(PoolExhausted, match="full"):
        iad.create_peer(some_key())
    assert iad.create_peer(first).outcome == "existing"
    iad.delete_peer(first)
    assert iad.create_peer(some_key()).outcome == "created"


# Placement, decided purely


def info(name: str = "iad", **facts: Any) -> GatewayInfo:
    plain = GatewayInfo.from_state(LaneState(name, {"max_peers": "100"}, 0, 0, 0))
    return replace(plain, **facts)


_FLEETS = st.lists(
    st.builds(
        info,
        st.sampled_from(["ams", "fra", "iad", "sin", "syd"]),
        state=st.sampled_from(["active", "active", "draining", "recovering", "down"]),
        room=st.integers(0, 3),
        waiting=st.integers(0, 2),
        region=st.sampled_from([None, "eu", "us"]),
        labels=st.dictionaries(st.sampled_from(["tier", "owner"]), st.sampled_from(["a", "b"])),
    ),
    unique_by=lambda info: info.name,
)
_WHERE = st.dictionaries(st.sampled_from(["tier", "owner"]), st.sampled_from(["a", "b"]), max_size=2)


@given(_FLEETS, st.sampled_from([None, "eu", "us"]), _WHERE)
def test_every_gateway_is_a_candidate_or_passed_over_with_a_reason(
    fleet: list[GatewayInfo], region: str | None, where: dict[str, str]
) -> None:
    choice = choose(fleet, region, where)
    assert sorted([*(info.name for info in choice.candidates), *choice.passed, *choice.elsewhere]) == sorted(
        info.name for info in fleet
    )
    for candidate in choice.candidates:
        assert candidate.state == "active"
        assert region in (None, candidate.region)
        assert where.items() <= dict(candidate.labels).items()
    assert all({**choice.passed, **choice.elsewhere}.values())


@given(_FLEETS, st.randoms(use_true_random=False))
def test_the_one_with_most_room_is_first_whatever_the_order(fleet: list[GatewayInfo], chance: Any) -> None:
    choice = choose(fleet)
    if choice.candidates:
        assert choice.candidates[0].room == max(info.room for info in fleet if info.state == "active")
    shuffled = list(fleet)
    chance.shuffle(shuffled)
    assert choose(shuffled) == choice


def test_equal_room_goes_to_the_shorter_lane_then_by_name() -> None:
    fleet = [info("c", waiting=1), info("b"), info("a"), info("d", room=0)]
    assert [info.name for info in choose(fleet).candidates] == ["a", "b", "c", "d"]


def test_no_more_is_asked_once_the_time_is_up() -> None:
    turns = Placement(choose([info()]), within=-1)
    with pytest.raises(TimedOut):
        next(iter(turns))


def test_nobody_taking_a_peer_is_told_with_every_reason() -> None:
    turns = Placement(
        choose([info("a", state="down"), info("b", region="us"), info("c", region="eu")], "eu"), 5, " here"
    )
    turns.refused("c", PoolExhausted("c is full"))
    message = str(turns.no_gateway())
    assert message == "no gateway here takes the peer: c: c is full; a: it has no region; b: its region is us"


def test_in_a_large_fleet_a_near_miss_is_told_before_gateways_of_other_regions() -> None:
    others = [info(f"a{number}", region="us") for number in range(200)]
    turns = Placement(choose([*others, info("z", region="eu", labels={"tier": "b"})], "eu", {"tier": "a"}), 5)
    message = str(turns.no_gateway())
    assert "takes the peer: z: its label tier is b; a0: its region is us" in message
    assert message.endswith("; and 151 more")


def test_a_peer_that_is_somewhere_already_is_asked_for_nowhere_else() -> None:
    turns = Placement(Choice((info(),), {}, {}, bound=True), 5)
    with pytest.raises(Unavailable, match="down"):
        turns.refused("iad", Unavailable("down"))


# Placement, on real gateways


def test_a_peer_goes_to_the_gateway_of_its_region_with_most_room(
    gateway: MakeGateway, fleet: Fleet, region: str
) -> None:
    small, big = gateway(region=region, max_peers=2), gateway(region=region, max_peers=5)
    gateway(region=f"{region}-other", max_peers=1000)
    assert fleet.create_peer(some_key(), region=region).gateway == big.name
    assert {info.name for info in fleet.gateways() if info.region == region} == {small.name, big.name}


def test_a_peer_goes_where_the_labels_are(gateway: MakeGateway, fleet: Fleet, region: str) -> None:
    gateway(region=region, labels=("tier=b", "owner=ci"))
    wanted = gateway(region=region, labels=("tier=a", "owner=ci"), max_peers=10)
    assert fleet.create_peer(some_key(), where={"tier": "a"}, region=region).gateway == wanted.name
    with pytest.raises(Unavailable, match="its label tier is"):
        fleet.create_peer(some_key(), where={"tier": "z"}, region=region)


def test_a_full_a_drained_and_a_dead_gateway_are_passed_over(
    gateway: MakeGateway, client: MakeClient, fleet: Fleet, region: str
) -> None:
    full, drained, dead, last = (gateway(region=region, max_peers=limit, redis=None) for limit in (1, 1000, 2000, 10))
    client(full).create_peer(some_key())
    client(drained).drain()
    dead.stop()
    assert fleet.create_peer(some_key(), region=region).gateway == last.name
    client(last).drain()
    with pytest.raises(Unavailable) as caught:
        fleet.create_peer(some_key(), region=region)
    for name, reason in ((full.name, "full"), (drained.name, "draining"), (dead.name, "down"), (last.name, "draining")):
        assert f"{name}: " in str(caught.value)
        assert reason in str(caught.value)


def test_the_same_key_stays_on_its_gateway(gateway: MakeGateway, client: MakeClient, fleet: Fleet, region: str) -> None:
    home, roomy = gateway(region=region, max_peers=3), gateway(region=region, max_peers=1000)
    key = some_key()
    client(home).create_peer(key)
    again = fleet.create_peer(key, region=region)
    assert (again.gateway, again.outcome) == (home.name, "existing")
    with pytest.raises(Conflict):
        fleet.create_peer(key, region=region, keepalive=25)
    home.stop()
    with pytest.raises(Unavailable, match=home.name):
        fleet.create_peer(key, region=region)
    assert client(roomy).peer(key) is None


def test_a_peer_whose_time_is_up_binds_its_key_no_longer(
    gateway: MakeGateway, client: MakeClient, fleet: Fleet, region: str, redis_server: RedisServer
) -> None:
    home, roomy = gateway(region=region, max_peers=3), gateway(region=region, max_peers=1000)
    key = some_key()
    client(home).create_peer(key, ttl=3600)
    home.stop()
    with pytest.raises(Unavailable, match=home.name):
        fleet.create_peer(key, region=region)
    peers = names.peers_key(home.name)
    record = json.loads(str(redis_server.redis.hget(peers, key)))
    # As an hour later: it is over, and no sweep has come by.
    redis_server.redis.hset(peers, key, json.dumps(record | {"expires_at": record["expires_at"] - 3601}))
    made = fleet.create_peer(key, region=region)
    assert (made.gateway, made.outcome) == (roomy.name, "created")


def test_a_record_that_nobody_can_read_binds_its_key(
    gateway: MakeGateway, fleet: Fleet, region: str, redis_server: RedisServer
) -> None:
    home, roomy = gateway(region=region, max_peers=3), gateway(region=region, max_peers=1000)
    key = some_key()
    redis_server.redis.hset(names.peers_key(home.name), key, '{"v":99}')
    home.stop()
    with pytest.raises(Unavailable, match=home.name):
        fleet.create_peer(key, region=region)
    assert not redis_server.redis.hexists(names.peers_key(roomy.name), key)


def test_a_request_that_timed_out_is_not_tried_elsewhere(
    gateway: MakeGateway, client: MakeClient, fleet: Fleet, region: str
) -> None:
    first, second = gateway(region=region, max_peers=1000), gateway(region=region, max_peers=10)
    first.pause(alive=True)
    key = some_key()
    with pytest.raises(TimedOut):
        fleet.create_peer(key, region=region, timeout=1)
    first.resume()
    assert client(first).delete_peer(key).outcome == "absent"
    assert client(second).peer(key) is None


def test_a_malformed_wish_is_refused_without_asking_around(gateway: MakeGateway, fleet: Fleet, region: str) -> None:
    gateway(region=region)
    with pytest.raises(Invalid):
        fleet.create_peer("no key", region=region)
    with pytest.raises(Invalid):
        fleet.create_peer(some_key(), region=region, allowed_ips=["203.0.113.0/24"])


def test_no_gateway_of_a_region_is_told(fleet: Fleet, region: str) -> None:
    with pytest.raises(Unavailable, match="no gateway"):
        fleet.create_peer(some_key(), region=region)


def test_the_command_line_chooses_by_region_and_labels(
    gateway: MakeGateway, redis_server: RedisServer, region: str, tmp_path: Path
) -> None:
    wanted = gateway(region=region, labels=("tier=a",), endpoint="vpn.example.com:51820")
    gateway(region=region, labels=("tier=b",), max_peers=1_000_000)
    conf = tmp_path / "client.conf"
    url = redis_server.url
    answer = asked("peer", "create", "--region", region, "--where", "tier=a", "--conf", str(conf), redis_url=url)
    assert (answer["gateway"], answer["outcome"]) == (wanted.name, "created")
    assert "Endpoint = vpn.example.com:51820" in conf.read_text()
    key = answer["public_key"]
    again = asked("peer", "create", "--region", region, "--public-key", key, redis_url=url)
    assert (again["gateway"], again["outcome"]) == (wanted.name, "existing")
    answer = asked("peer", "create", "--region", region, "--where", "tier=c", redis_url=url, expect=3)["error"]
    assert (answer["code"], "its label tier is" in answer["message"]) == ("unavailable", True)
    for arguments in ((), (wanted.name, "--region", region), ("--region", region, "--request-id", "x")):
        assert asked("peer", "create", *arguments, redis_url=url, expect=2)["error"]["code"] == "usage"


def test_the_asyncio_fleet_places_many_at_once(gateway: MakeGateway, settings: MakeSettings, region: str) -> None:
    site, other = gateway(region=region), gateway(region=region, max_peers=1)
    app = PeerlaneApp(settings())

    async def place() -> set[str]:
        async with AsyncFleet(app) as fleet:
            results = await asyncio.gather(*(fleet.create_peer(some_key(), region=region) for _ in range(50)))
            return {result.gateway for result in results}

    try:
        assert run_and_leave_nothing(place) == {site.name}
        assert not list(Gateway(other.name, app=app).peers())
    finally:
        close(app)
