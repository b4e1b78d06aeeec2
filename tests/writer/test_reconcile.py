"""Reconciling: whatever the device holds, the changes make it hold what the table says, and touch nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import key_number

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.dataplane import AddRoute, DevicePeer, DeviceSpec, RemovePeer, SetPeer
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.peers.drift import counted, drifts
from peerlane.workers.peers.table import Loaded, PeerTable, Policy, build_table
from peerlane.workers.start.recovery import recover

POOL = Prefix.parse("10.8.0.0/24")
POLICY = Policy("iad", key_number(999), (POOL,), (Prefix.parse("192.168.0.0/24"),))

#: Single hosts, so that no two overlap unless they are equal; the last eight need routes.
HOSTS = [Prefix.parse(f"10.8.0.{n}") for n in range(2, 18)] + [Prefix.parse(f"192.168.0.{n}") for n in range(8)]

psks = st.none() | st.sampled_from([key_number(50), key_number(51)])
keepalives = st.sampled_from([0, 0, 25])


@st.composite
def holdings(draw: st.DrawFn) -> dict[int, frozenset[Prefix]]:
    """Who holds which prefixes, no two the same; on a device some may hold none."""
    owners = draw(st.lists(st.integers(0, 7), min_size=len(HOSTS), max_size=len(HOSTS)))
    return {
        number: frozenset(prefix for prefix, owner in zip(HOSTS, owners, strict=True) if owner == number)
        for number in range(1, 8)
    }


@st.composite
def tables(draw: st.DrawFn) -> PeerTable:
    peers = [
        StoredPeer(
            public_key=key_number(number),
            allowed_ips=tuple(sorted(prefixes)),
            preshared_key=draw(psks),
            keepalive=draw(keepalives),
        )
        for number, prefixes in draw(holdings()).items()
        if prefixes
    ]
    return PeerTable(POLICY, peers)


def loaded_of(*peers: StoredPeer) -> Loaded:
    loaded = Loaded()
    for peer in peers:
        loaded.take(peer)
    return loaded


@st.composite
def devices(draw: st.DrawFn) -> list[SetPeer | AddRoute]:
    """What was done to a device before anybody looked."""
    peers = [
        SetPeer(key_number(number), prefixes, draw(psks), draw(keepalives))
        for number, prefixes in draw(holdings()).items()
        if draw(st.booleans())
    ]
    routes = [AddRoute(prefix) for prefix in HOSTS if prefix not in POOL_HOSTS and draw(st.booleans())]
    return [*peers, *routes]


POOL_HOSTS = {prefix for prefix in HOSTS if POOL.contains(prefix)}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> DeviceSpec:
    return DeviceSpec("wg0", tmp_path_factory.mktemp("key") / "key", 51820, routes=(POOL,))


def opened(spec: DeviceSpec, history: list[SetPeer | AddRoute]) -> MemoryDataPlane:
    plane = MemoryDataPlane()
    plane.open(spec)
    plane.apply(history)
    return plane


def as_stored(peer: StoredPeer) -> tuple[frozenset[Prefix], str | None, int]:
    return frozenset(peer.allowed_ips), peer.preshared_key, peer.keepalive


def as_on_device(peer: DevicePeer) -> tuple[frozenset[Prefix], str | None, int]:
    return peer.allowed_ips, peer.preshared_key, peer.keepalive


class TestMendingAnyDrift:
    @given(table=tables(), history=devices())
    def test_makes_the_device_equal_to_the_table(
        self, spec: DeviceSpec, table: PeerTable, history: list[SetPeer | AddRoute]
    ) -> None:
        plane = opened(spec, history)
        plane.apply([drift.change for drift in drifts(table, plane.peers().values(), plane.routes())])
        assert {key: as_on_device(peer) for key, peer in plane.peers().items()} == {
            key: as_stored(peer) for key, peer in table.peers.items()
        }
        routed = {p for peer in table.peers.values() for p in peer.allowed_ips if not POOL.contains(p)}
        assert plane.routes() == routed

    @given(table=tables(), history=devices())
    def test_leaves_nothing_to_mend(
        self, spec: DeviceSpec, table: PeerTable, history: list[SetPeer | AddRoute]
    ) -> None:
        plane = opened(spec, history)
        plane.apply([drift.change for drift in drifts(table, plane.peers().values(), plane.routes())])
        assert drifts(table, plane.peers().values(), plane.routes()) == []

    @given(table=tables(), history=devices())
    def test_touches_no_peer_that_is_as_it_should_be(
        self, spec: DeviceSpec, table: PeerTable, history: list[SetPeer | AddRoute]
    ) -> None:
        plane = opened(spec, history)
        device = plane.peers()
        right = {
            key
            for key, peer in device.items()
            if key in table.peers and as_on_device(peer) == as_stored(table.peers[key])
        }
        changed = {
            drift.change.public_key
            for drift in drifts(table, device.values(), plane.routes())
            if isinstance(drift.change, SetPeer | RemovePeer)
        }
        assert not changed & right
        assert changed == (device.keys() | table.peers.keys()) - right

    @given(table=tables(), history=devices(), untouchable=st.sets(st.integers(1, 7), max_size=3))
    def test_leaves_peers_alone_whose_records_do_not_parse(
        self, spec: DeviceSpec, table: PeerTable, history: list[SetPeer | AddRoute], untouchable: set[int]
    ) -> None:
        plane = opened(spec, history)
        keys = frozenset(key_number(number) for number in untouchable)
        assert not {drift.subject for drift in drifts(table, plane.peers().values(), plane.routes(), keys)} & keys


class TestRecovery:
    @settings(max_examples=30)
    @given(table=tables(), history=devices())
    def test_keeps_unknown_peers_when_told_to(
        self, spec: DeviceSpec, table: PeerTable, history: list[SetPeer | AddRoute]
    ) -> None:
        plane = opened(spec, history)
        strangers = plane.peers().keys() - table.peers.keys()
        done = recover(POLICY, loaded_of(*table.peers.values()), plane, unknown="keep")
        assert plane.peers().keys() == strangers | table.peers.keys()
        assert "unknown" not in done.mended

    def test_counts_what_it_mended_and_tells_how_far_it_is(self, spec: DeviceSpec) -> None:
        plane = opened(spec, [SetPeer(key_number(n), frozenset()) for n in (1, 2, 3)])
        addresses = [Prefix.host(4, (10 << 24) + (9 << 16) + n) for n in range(300)]
        peers = [StoredPeer(public_key=key_number(n + 3), allowed_ips=(addresses[n],)) for n in range(300)]
        loaded = loaded_of(*peers)
        progress: list[tuple[int, int]] = []
        policy = Policy("iad", key_number(999), (POOL, Prefix.parse("10.9.0.0/16")))
        done = recover(policy, loaded, plane, progress=lambda now, total: progress.append((now, total)))
        assert done.mended == {"unknown": 2, "allowed_ips": 1, "missing": 299}
        assert progress == [(256, 302), (302, 302)]
        assert recover(policy, loaded_of(*peers), plane).mended == {}

    def test_sets_the_younger_of_two_overlapping_records_aside(self, spec: DeviceSpec) -> None:
        old = StoredPeer(public_key=key_number(1), allowed_ips=(Prefix.parse("192.168.0.0/25"),), created_at=1)
        new = StoredPeer(
            public_key=key_number(2), allowed_ips=(Prefix.parse("10.8.0.2"), Prefix.parse("192.168.0.9")), created_at=2
        )
        loaded = loaded_of(new, old)
        table = build_table(POLICY, loaded)
        assert table.peers[old.public_key] == old
        assert "an older peer holds" in table.broken[new.public_key]
        plane = opened(spec, [SetPeer(new.public_key, frozenset(new.allowed_ips))])
        recover(POLICY, loaded_of(new, old), plane)
        assert plane.peers()[new.public_key].allowed_ips >= {Prefix.parse("10.8.0.2")}, "left as it was"
        assert plane.peers()[old.public_key].allowed_ips == frozenset(old.allowed_ips)


def test_drift_is_counted_by_kind(tmp_path: Path) -> None:
    table = PeerTable(POLICY, [StoredPeer(public_key=key_number(1), allowed_ips=(HOSTS[0],))])
    plane = opened(DeviceSpec("wg0", tmp_path / "key", 51820), [SetPeer(key_number(2), frozenset())])
    assert counted(drifts(table, plane.peers().values(), plane.routes())) == {"unknown": 1, "missing": 1}
