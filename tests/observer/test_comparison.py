"""A reconciliation compares device and Redis: it finds what differs both times, and holds few bytes of each peer."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from device_views import EmptyDevice
from gateways import new_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keys import key_number, some_key
from redis import Redis
from servers import RedisServer
from writer_alone import POOLS, WriterAlone

from peerlane.config import names
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import AddRoute, Change, DevicePeer, RemovePeer, RemoveRoute, SetPeer
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.peers.drift import drifts
from peerlane.workers.peers.table import Policy
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep import comparison
from peerlane.workers.upkeep.comparison import BothSides, Comparison


class View(EmptyDevice):
    """A device in this process, seen as an observer sees the kernel's."""

    def __init__(self, plane: MemoryDataPlane, public_key: str) -> None:
        super().__init__(POOLS, public_key)
        self.plane = plane
        #: What each reading shows, where that is not everything; a reading that leaves peers out was interrupted.
        self.readings: list[Callable[[Sequence[DevicePeer]], Sequence[DevicePeer]]] = []
        self.complete = False
        #: How often the peers were read.
        self.read = 0

    def peers(self) -> Iterator[DevicePeer]:
        self.read += 1
        every = list(self.plane.peers().values())
        shown = self.readings.pop(0)(every) if self.readings else every
        yield from shown
        self.complete = len(shown) == len(every)

    def routes(self) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        return self.plane.routes(), frozenset(self.pools)


class Gateway(WriterAlone):
    """A writer, its device, and the two sides as its observer compares them."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        super().__init__(server, directory)
        self.view = View(self.plane, self.public_key)
        redis = Redis.from_url(server.url)
        self._clients.append(redis)
        self.sides = BothSides(
            Store(redis, self.name, result_ttl=600), self.policy, self.view, lambda _: True, mtu=None
        )

    def compared(self, between: Callable[[], object] = lambda: None) -> Comparison:
        """Both steps, and what happens in between."""
        suspects = self.sides.suspects()
        between()
        return self.sides.in_full(suspects)

    def differences(self, between: Callable[[], object] = lambda: None) -> set[tuple[str, str]]:
        return {(kind, subject) for kind, subject in self.compared(between).differences}


@pytest.fixture
def gateway(redis_server: RedisServer, tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(redis_server, tmp_path)
    yield made
    made.close()


ROUTED = "192.168.7.0/24"


class TestADifference:
    def test_of_each_kind_is_found_and_nothing_else(self, gateway: Gateway) -> None:
        right, gone, widened, rekeyed, keeping, routed = keys = [some_key() for _ in range(6)]
        for key in keys[:-1]:
            gateway.create(key, keepalive=25, preshared_key=some_key())
        gateway.create(routed, allowed_ips=[ROUTED])
        assert not gateway.sides.suspects()
        there = gateway.plane.peers()

        def as_is(key: str, **other: Any) -> SetPeer:
            peer = there[key]
            fields: dict[str, Any] = {
                "allowed_ips": peer.allowed_ips,
                "preshared_key": peer.preshared_key,
                "keepalive": peer.keepalive,
            }
            return SetPeer(key, **fields | other)

        stranger = some_key()
        gateway.plane.apply(
            [
                RemovePeer(gone),
                SetPeer(stranger, frozenset()),
                as_is(widened, allowed_ips=there[widened].allowed_ips | {Prefix.parse("10.8.0.200")}),
                as_is(rekeyed, preshared_key=None),
                as_is(keeping, keepalive=0),
                RemoveRoute(Prefix.parse(ROUTED)),
                AddRoute(Prefix.parse("192.168.9.0/24")),
            ]
        )
        assert gateway.differences() == {
            ("missing", gone),
            ("unknown", stranger),
            ("allowed_ips", widened),
            ("preshared_key", rekeyed),
            ("keepalive", keeping),
            ("missing_route", ROUTED),
            ("unknown_route", "192.168.9.0/24"),
        }
        compared = gateway.compared()
        assert [difference.kind for difference in compared.differences[:2]] == ["unknown", "allowed_ips"], (
            "those who took come first"
        )
        assert compared.peers == 6
        assert right not in {difference.subject for difference in compared.differences}

    def test_that_was_only_a_request_in_flight_is_none(self, gateway: Gateway) -> None:
        created, deleted, routed = (some_key() for _ in range(3))
        gateway.create(deleted)
        gateway.create(routed, allowed_ips=[ROUTED])
        peer = gateway.plane.peers()[deleted]
        records = gateway.records
        # As between the device's change and the commit: one that is created, one that is deleted, one with a route.
        gateway.plane.apply([SetPeer(created, frozenset({Prefix.parse("10.8.0.99")})), RemovePeer(deleted)])
        gateway.plane.apply([RemovePeer(routed), RemoveRoute(Prefix.parse(ROUTED))])

        def commits() -> None:
            gateway.plane.apply([RemovePeer(created)])
            gateway.create(created)
            gateway.plane.apply([SetPeer(deleted, peer.allowed_ips)])
            gateway.delete(deleted)
            gateway.plane.apply([SetPeer(routed, frozenset({Prefix.parse(ROUTED)}))])
            gateway.delete(routed)

        assert gateway.differences(commits) == set()
        assert gateway.records.keys() == (records.keys() | {created}) - {deleted, routed}

    def test_that_comes_later_is_left_to_the_next_time(self, gateway: Gateway) -> None:
        gateway.create(first := some_key())
        gateway.create(second := some_key())
        gateway.plane.apply([RemovePeer(first)])
        assert gateway.differences(lambda: gateway.plane.apply([RemovePeer(second)])) == {("missing", first)}

    def test_is_none_where_the_writer_still_adds_peers(self, gateway: Gateway) -> None:
        gateway.create(cold := some_key())
        gateway.create(changed := some_key())
        there = gateway.plane.peers()[changed].allowed_ips
        gateway.plane.apply([RemovePeer(cold), SetPeer(changed, there, keepalive=9)])
        gateway.raw.hset(names.gateway_key(gateway.name), "recovering", "1")
        assert cold not in {difference.subject for difference in gateway.compared().differences}
        assert gateway.differences() == {("keepalive", changed)}
        assert gateway.compared().coming == 1
        gateway.raw.hset(names.gateway_key(gateway.name), "recovering", "0")
        assert gateway.differences() == {("keepalive", changed), ("missing", cold)}


class TestAReadingThatAChangeInterrupts:
    def test_does_not_make_peers_missing_that_a_later_one_shows(self, gateway: Gateway) -> None:
        keys = [gateway.create()["public_key"] for _ in range(6)]
        gone = keys.pop()
        gateway.plane.apply([RemovePeer(gone)])
        gateway.view.readings = [lambda every: every[:2], lambda every: every[:3], lambda every: every[1:]]
        assert gateway.differences() == {("missing", gone)}
        assert gateway.view.read == 1 + comparison.TRIES

    def test_is_enough_where_it_shows_all_that_was_in_doubt(self, gateway: Gateway) -> None:
        keys = [gateway.create()["public_key"] for _ in range(6)]
        stranger = some_key()
        gateway.plane.apply([SetPeer(stranger, frozenset())])
        gateway.view.readings = [lambda every: every[1:], lambda every: [*every, every[-1]]]
        assert gateway.differences() == {("unknown", stranger)}
        assert gateway.view.read == 2, keys


class TestRecordsThatCannotBeUsed:
    def test_leave_their_peers_and_routes_alone(self, gateway: Gateway) -> None:
        broken, lacking = some_key(), some_key()
        gateway.create(broken, allowed_ips=[ROUTED])
        gateway.create(lacking)
        for key in (broken, lacking):
            gateway.raw.hset(gateway.peers_key, key, '{"v":99}')
        gateway.plane.apply([SetPeer(broken, frozenset(), keepalive=7), RemovePeer(lacking)])
        assert gateway.differences() == set()

    def test_because_two_overlap_leave_the_younger_alone(self, gateway: Gateway) -> None:
        older, younger = some_key(), some_key()
        gateway.create(older, allowed_ips=["192.168.7.0/25"])
        gateway.raw.hset(gateway.peers_key, younger, '{"v":1,"allowed_ips":["192.168.7.9/32"],"created_at":4000000000}')
        assert gateway.differences() == set(), "the device lacks the younger one, and is right"
        gateway.plane.apply([RemovePeer(older)])
        assert gateway.differences() == {("missing", older)}


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """What somebody does to the device."""
    number, route = draw(st.integers(1, 6)), draw(st.booleans())
    prefix = Prefix.parse(f"192.168.{number}.0/24")
    if draw(st.booleans()):
        return RemoveRoute(prefix) if route else RemovePeer(key_number(number))
    hosts = frozenset(Prefix.parse(f"10.8.0.{host}") for host in draw(st.sets(st.integers(2, 9), max_size=3)))
    preshared_key, keepalive = draw(st.none() | st.just(key_number(50))), draw(st.sampled_from([0, 25]))
    return AddRoute(prefix) if route else SetPeer(key_number(number), hosts, preshared_key, keepalive)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(changes(), max_size=8))
def test_finds_what_a_comparison_of_all_in_full_does(
    redis_server: RedisServer, tmp_path: Path, history: list[Change]
) -> None:
    gateway = Gateway(redis_server, tmp_path)
    try:
        for number in range(1, 5):
            outside: dict[str, Any] = {"allowed_ips": [f"192.168.{number}.0/24"]} if number % 2 else {}
            gateway.create(key_number(number), **outside)
        gateway.plane.apply(history)
        full = drifts(gateway.writer.table, gateway.plane.peers().values(), gateway.plane.routes())
        assert gateway.differences() == {(drift.kind, drift.subject) for drift in full}
    finally:
        gateway.close()


#: Bytes of a peer, of both sides together: 1,500 where they are held in full.
AT_MOST = 200
MANY = 60_000
WIDE_POOLS = Prefix.parse("10.0.0.0/8"), Prefix.parse("fd00:8::/64")


class Stream(View):
    """A device with as many peers as Redis has records; each is made as it is read, as from a dump."""

    def peers(self) -> Iterator[DevicePeer]:
        for number in range(1, MANY + 1):
            yield DevicePeer(key_number(number), None, 0, frozenset(map(Prefix.parse, _addresses(number))))
        self.complete = True

    def routes(self) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        return frozenset(), frozenset(WIDE_POOLS)


def _addresses(number: int) -> list[str]:
    return [f"10.{8 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32", f"fd00:8::{number:x}/128"]


def test_many_peers_are_compared_in_few_bytes_each(redis_server: RedisServer) -> None:
    name, redis = new_name(), Redis.from_url(redis_server.url)
    for start in range(1, MANY, 5_000):
        records: dict[Any, Any] = {
            key_number(n): '{{"v":1,"allowed_ips":["{}","{}"],"created_at":1}}'.format(*_addresses(n))
            for n in range(start, start + 5_000)
        }
        redis.hset(names.peers_key(name), mapping=records)
    policy = Policy(name, key_number(2**200), WIDE_POOLS)
    store = Store(redis, name, result_ttl=600)
    sides = BothSides(store, policy, Stream(MemoryDataPlane(), policy.public_key), lambda _: True, mtu=None)
    tracemalloc.start()
    try:
        suspects = sides.suspects()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        redis.close()
    assert (suspects.keys, suspects.routes) == (set(), set())
    assert suspects.comparison.peers == MANY
    assert most / MANY < AT_MOST
