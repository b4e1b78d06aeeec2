"""The strings tests and the demo pull on a device in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from devices import prefix, prefixes, spec_for
from keys import some_key

from peerlane.tasks.errors import KernelError
from peerlane.workers.dataplane import AddRoute, SetPeer
from peerlane.workers.dataplane.memory import MemoryDataPlane


@pytest.fixture
def plane(tmp_path: Path) -> MemoryDataPlane:
    plane = MemoryDataPlane()
    plane.open(spec_for("memory0", tmp_path))
    return plane


def test_told_to_fail_it_makes_as_many_changes_as_it_was_told_and_fails_once(plane: MemoryDataPlane) -> None:
    first, second = SetPeer(some_key(), prefixes("10.8.0.2")), SetPeer(some_key(), prefixes("10.8.0.3"))
    plane.fail_next(after=1, message="no memory")
    with pytest.raises(KernelError, match="no memory"):
        plane.apply([first, second, AddRoute(prefix("192.0.2.0/24"))])
    assert set(plane.peers()) == {first.public_key}
    assert not plane.routes()
    plane.apply([second])
    assert set(plane.peers()) == {first.public_key, second.public_key}


def test_told_to_fail_after_the_last_change_it_makes_them_all(plane: MemoryDataPlane) -> None:
    change = SetPeer(some_key(), frozenset())
    plane.fail_next(after=5)
    with pytest.raises(KernelError):
        plane.apply([change])
    assert set(plane.peers()) == {change.public_key}


def test_each_reading_can_be_told_to_fail(plane: MemoryDataPlane, tmp_path: Path) -> None:
    for method in ("open", "peers", "routes"):
        plane.fail_next(method)
    for ask in (lambda: plane.open(spec_for("memory0", tmp_path)), plane.peers, plane.routes):
        with pytest.raises(KernelError):
            ask()
        ask()


def test_a_handshake_shows_in_peers_and_counters_and_adds_up(plane: MemoryDataPlane) -> None:
    key = some_key()
    plane.apply([SetPeer(key, prefixes("10.8.0.2"))])
    plane.handshake(key, 1000.5, rx=10, tx=20, endpoint=("192.0.2.7", 40000))
    plane.handshake(key, 1120.5, rx=1, tx=2)
    plane.apply([SetPeer(key, prefixes("10.8.0.3"), some_key())])
    peer = plane.peers()[key]
    assert (peer.latest_handshake, peer.rx_bytes, peer.tx_bytes) == (1120.5, 11, 22)
    assert list(plane.counters()) == [[(key, 1120.5, 11, 22, ("192.0.2.7", 40000))]]
