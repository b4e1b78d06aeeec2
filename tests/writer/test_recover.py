"""A writer's start: what Redis holds comes onto the device, the rest goes, and nothing of somebody else's is wiped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from keys import key_number

from peerlane.tasks.errors import KernelError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import CreatePeer
from peerlane.tasks.wire.stored_peer import StoredPeer, text_key
from peerlane.workers.dataplane import AddRoute, Change, DeviceSpec, SetPeer
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.peers.drift import MANY_UNKNOWN, Unknown
from peerlane.workers.peers.plan import plan_create
from peerlane.workers.peers.table import Loaded, Policy
from peerlane.workers.start.recovery import recover
from peerlane.workers.upkeep.lean_mappings import Lifetime
from peerlane.workers.upkeep.sweep_policy import Limits, Sight, decide

POOL = Prefix.parse("10.8.0.0/16")


class Recording(MemoryDataPlane):
    """A device that remembers what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Change] = []

    def apply(self, changes: Sequence[Change]) -> None:
        self.made += changes
        super().apply(changes)


@pytest.fixture
def plane(tmp_path: Path) -> Recording:
    made = Recording()
    made.open(DeviceSpec("wg0", tmp_path / "key", 51820, routes=(POOL,)))
    return made


def peer(number: int) -> StoredPeer:
    return StoredPeer(
        public_key=key_number(number), allowed_ips=(Prefix.host(4, POOL.network + 10 + number),), created_at=1
    )


def loaded(*peers: StoredPeer) -> Loaded:
    made = Loaded()
    for stored in peers:
        made.take(stored)
    return made


def policy() -> Policy:
    return Policy("iad", key_number(10**9), (POOL,))


def on_device(plane: Recording, *peers: StoredPeer) -> None:
    plane.apply([SetPeer(stored.public_key, frozenset(stored.allowed_ips)) for stored in peers])
    plane.made.clear()


class TestWhatRedisHolds:
    def test_comes_onto_the_device_and_what_is_right_there_is_left_alone(self, plane: Recording) -> None:
        on_device(plane, peer(1))
        done = recover(policy(), loaded(peer(1), peer(2)), plane)
        assert set(plane.peers()) == {key_number(1), key_number(2)}
        assert [change.public_key for change in plane.made if isinstance(change, SetPeer)] == [key_number(2)]
        assert done.mended == {"missing": 1}

    def test_comes_back_in_the_order_in_which_it_was_last_seen(self, plane: Recording) -> None:
        peers = [peer(number) for number in range(1, 1001)]
        seen = {stored.public_key: number % 100 for number, stored in enumerate(peers)}
        recover(policy(), loaded(*peers), plane, seen=lambda of: of.update({raw: seen[text_key(raw)] for raw in of}))
        order = [seen[change.public_key] for change in plane.made if isinstance(change, SetPeer)]
        assert len(order) == 1000
        assert order == sorted(order, reverse=True)

    def test_is_told_as_it_comes(self, plane: Recording) -> None:
        progress: list[tuple[int, int]] = []
        recover(
            policy(),
            loaded(*(peer(number) for number in range(1, 601))),
            plane,
            progress=lambda done, total: progress.append((done, total)),
        )
        assert progress[-1] == (600, 600)
        assert len(progress) > 1


class Elsewhere(Recording):
    """A device on a host where somebody has a route of his own to one of the peers' prefixes."""

    taken = Prefix.parse("192.168.5.0/24")
    breaks = False

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if self.breaks or (isinstance(change, AddRoute) and change.prefix == self.taken):
                raise KernelError("cannot add routes to wg0: 192.168.5.0/24 is routed elsewhere already")
            super().apply([change])


class TestARouteThatIsSomebodyElses:
    """The host has got another network since the peer was created: the gateway serves all the others."""

    @pytest.fixture
    def plane(self, tmp_path: Path) -> Elsewhere:
        made = Elsewhere()
        made.open(DeviceSpec("wg0", tmp_path / "key", 51820, routes=(POOL,)))
        return made

    def test_keeps_no_gateway_from_starting(self, plane: Elsewhere, caplog: pytest.LogCaptureFixture) -> None:
        prefixes = [Prefix.parse(text) for text in ("192.168.4.0/24", "192.168.5.0/24", "192.168.6.0/24")]
        peers = [peer(n)._replace(allowed_ips=(prefix,)) for n, prefix in enumerate(prefixes, 1)]
        done = recover(policy(), loaded(*peers, peer(9)), plane)
        assert set(plane.peers()) == {*(each.public_key for each in peers), key_number(9)}
        assert plane.routes() == {prefixes[0], prefixes[2]}
        assert done.mended == {"missing": 4, "missing_route": 3}
        assert "192.168.5.0/24 could not be made" in caplog.text

    def test_is_no_excuse_for_a_device_that_takes_nothing(self, plane: Elsewhere) -> None:
        plane.breaks = True
        with pytest.raises(KernelError):
            recover(policy(), loaded(peer(1)._replace(allowed_ips=(plane.taken,))), plane)


class TestWhatOnlyTheDeviceKnows:
    def test_goes_when_it_is_little(self, plane: Recording) -> None:
        on_device(plane, peer(1), peer(2))
        done = recover(policy(), loaded(peer(1)), plane)
        assert set(plane.peers()) == {key_number(1)}
        assert (done.mended, done.kept) == ({"unknown": 1}, {})

    def test_stays_at_a_gateways_first_start(self, plane: Recording) -> None:
        on_device(plane, peer(1))
        done = recover(policy(), loaded(), plane, first_start=True)
        assert set(plane.peers()) == {key_number(1)}
        assert "first start" in done.kept[key_number(1)]

    def test_stays_where_redis_knows_almost_nothing_of_the_device(self, plane: Recording) -> None:
        strangers = [peer(number) for number in range(1, MANY_UNKNOWN + 2)]
        on_device(plane, *strangers)
        done = recover(policy(), loaded(), plane)
        assert set(plane.peers()) == {stranger.public_key for stranger in strangers}
        assert set(done.kept) == set(plane.peers())

    @pytest.mark.parametrize("unknown", ["remove", "keep", "adopt"])
    def test_goes_where_it_is_what_a_writer_had_begun_however_much_it_is(
        self, plane: Recording, unknown: Unknown
    ) -> None:
        begun = [peer(number) for number in range(1, 65)]
        on_device(plane, *begun, peer(70))
        done = recover(
            policy(), loaded(peer(70)), plane, unknown=unknown, in_hand={stored.public_key for stored in begun}
        )
        assert set(plane.peers()) == {key_number(70)}
        assert (done.mended, done.kept, done.adopted) == ({"unknown": 64}, {}, [] if unknown == "adopt" else ())

    def test_stays_when_told_so_and_nobody_else_gets_its_addresses(self, plane: Recording) -> None:
        stranger = StoredPeer(public_key=key_number(1), allowed_ips=(Prefix.host(4, POOL.network + 1),), created_at=1)
        on_device(plane, stranger)
        table = recover(policy(), loaded(), plane, unknown="keep").table
        wish = CreatePeer(gateway="iad", public_key=key_number(2))
        made = plan_create(table, wish, now=1).after
        assert made is not None
        assert [str(prefix) for prefix in made.allowed_ips] == ["10.8.0.2/32"]

    def test_is_taken_over_when_told_so_without_touching_it(self, plane: Recording) -> None:
        on_device(plane, peer(1), peer(2))
        done = recover(policy(), loaded(peer(2)), plane, unknown="adopt")
        assert [plan.public_key for plan in done.adopted] == [key_number(1)]
        assert plane.made == []

    def test_is_as_old_as_its_taking_over_so_that_no_sweep_takes_it_for_a_peer_that_never_came(
        self, plane: Recording
    ) -> None:
        on_device(plane, peer(1))
        now = 1_800_000_000
        (plan,) = recover(policy(), Loaded(at=now), plane, unknown="adopt").adopted
        assert plan.after is not None
        assert plan.after.created_at == now
        life = Lifetime(plan.after.created_at, None, pinned=False)
        assert decide({plan.public_key: life}, {}, now + 700, Limits(), Sight([plan.public_key], True, now)) == []  # noqa: FBT003 - a NamedTuple's

    @pytest.mark.parametrize("unknown", ["keep", "adopt"])
    def test_keeps_its_route_when_it_stays(self, plane: Recording, unknown: Unknown) -> None:
        routed = StoredPeer(public_key=key_number(1), allowed_ips=(Prefix.parse("172.16.0.0/24"),))
        on_device(plane, routed)
        stray = Prefix.parse("172.16.9.0/24")
        plane.apply([AddRoute(routed.allowed_ips[0]), AddRoute(stray)])
        serving = replace(policy(), serves=(Prefix.parse("172.16.0.0/16"),))
        done = recover(serving, loaded(), plane, unknown=unknown)
        assert len(done.kept) + len(done.adopted) == 1
        assert plane.routes() == {routed.allowed_ips[0]}

    def test_gets_the_route_that_it_lacks_when_it_is_taken_over(self, plane: Recording) -> None:
        routed = StoredPeer(public_key=key_number(1), allowed_ips=(Prefix.parse("172.16.0.0/24"),))
        on_device(plane, routed)
        serving = replace(policy(), serves=(Prefix.parse("172.16.0.0/16"),))
        recover(serving, loaded(), plane, unknown="adopt")
        assert plane.routes() == {routed.allowed_ips[0]}

    def test_is_kept_where_it_cannot_be_taken_over(self, plane: Recording) -> None:
        outside = StoredPeer(public_key=key_number(1), allowed_ips=(Prefix.parse("172.16.0.0/24"),), created_at=1)
        on_device(plane, outside)
        done = recover(policy(), loaded(), plane, unknown="adopt")
        assert set(plane.peers()) == {key_number(1)}
        assert "outside" in done.kept[key_number(1)]


class TestRecordsThatCannotBeUsed:
    def test_leave_their_peer_on_the_device_as_it_is(self, plane: Recording) -> None:
        on_device(plane, peer(1))
        broken = Loaded(broken={key_number(1): peer(1)}, reasons={key_number(1): "the record does not parse"})
        table = recover(policy(), broken, plane).table
        assert set(plane.peers()) == {key_number(1)}
        assert table.broken == {key_number(1): "the record does not parse"}

    def test_are_the_younger_ones_where_two_hold_the_same_address(self, plane: Recording) -> None:
        older = StoredPeer(public_key=key_number(1), allowed_ips=(Prefix.parse("10.8.1.0/28"),), created_at=1)
        younger = StoredPeer(public_key=key_number(2), allowed_ips=(Prefix.parse("10.8.1.3/32"),), created_at=2)
        table = recover(policy(), loaded(older, younger), plane).table
        assert set(table.broken) == {key_number(2)}
        assert set(plane.peers()) == {key_number(1)}
