"""Addresses for peers: always the smallest that nobody holds, held against trying each in turn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.peers.prefixes import AddressPool, PrefixIndex

POOLS = [Prefix.parse(text) for text in ("10.8.0.0/28", "10.8.0.16/30", "10.8.0.20/31", "10.8.0.22/32", "fd00::/124")]


class PoolAgainstTryingEach(RuleBasedStateMachine):
    """Peers take what the pool offers, or any prefix inside or around it, and give it back in any order."""

    @initialize(prefix=st.sampled_from(POOLS), reserved=st.sets(st.integers(0, 15), max_size=3), filled=st.booleans())
    def begin(self, prefix: Prefix, reserved: set[int], filled: bool) -> None:  # noqa: FBT001 - hypothesis calls it
        self.prefix = prefix
        self.reserved = frozenset(prefix.network + number for number in reserved)
        self.taken: list[Prefix] = []
        self.index = PrefixIndex()
        if filled:
            self.taken = [Prefix.host(prefix.version, prefix.network + 2)] if prefix.last > prefix.network + 2 else []
            for taken in self.taken:
                self.index.add(taken)
        self.pool = AddressPool(prefix, self.index, self.reserved)

    def smallest(self) -> Prefix | None:
        first, last = self.prefix.network, self.prefix.last
        if last - first >= 3:
            first, last = first + 1, last - (1 if self.prefix.version == 4 else 0)
        for address in range(first, last + 1):
            host = Prefix.host(self.prefix.version, address)
            if address not in self.reserved and not any(taken.overlaps(host) for taken in self.taken):
                return host
        return None

    @rule()
    def take_what_is_offered(self) -> None:
        offered = self.pool.smallest_free()
        if offered is not None:
            self.index.add(offered)
            self.taken.append(offered)

    @rule(shift=st.integers(0, 15), length=st.integers(26, 32))
    def take_a_prefix_by_name(self, shift: int, length: int) -> None:
        bits = self.prefix.bits
        size = 1 << (32 - length)
        network = (self.prefix.network + shift) // size * size
        wanted = Prefix(self.prefix.version, network, bits - (32 - length))
        if not any(taken.overlaps(wanted) for taken in self.taken):
            self.index.add(wanted)
            self.taken.append(wanted)

    @precondition(lambda self: bool(self.taken))
    @rule(data=st.data())
    def give_one_back(self, data: st.DataObject) -> None:
        gone = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.index.remove(gone)
        if gone.overlaps(self.prefix):
            self.pool.freed(gone)

    @invariant()
    def offers_the_smallest_free_address(self) -> None:
        expected = self.smallest()
        assert self.pool.smallest_free() == expected
        assert self.pool.smallest_free() == expected, "asking takes nothing"


TestThePoolOffersTheSmallestFreeAddress = PoolAgainstTryingEach.TestCase


class TestALargePool:
    def test_is_left_without_trying_each_address(self) -> None:
        """A peer that holds half of a /64 is stepped over at once, and so is what is full."""
        index = PrefixIndex()
        pool = AddressPool(Prefix.parse("fd00:8::/64"), index)
        index.add(Prefix.parse("fd00:8::/65"))
        assert str(pool.smallest_free()) == "fd00:8:0:0:8000::/128"
        index.add(Prefix.parse("fd00:8:0:0:8000::/65"))
        assert pool.smallest_free() is None

    def test_remembers_once_what_is_freed_again_and_again(self) -> None:
        """A peer that names its address comes and goes, while a smaller address is free."""
        index = PrefixIndex()
        pool: Any = AddressPool(Prefix.parse("10.8.0.0/16"), index)
        taken = [Prefix.host(4, 0x0A080001 + number) for number in range(9)]
        for address in taken:
            assert pool.smallest_free() == address
            index.add(address)
        assert pool.smallest_free() == Prefix.host(4, taken[-1].network + 1)
        index.remove(taken[3])
        pool.freed(taken[3])
        for _ in range(1000):
            index.remove(taken[7])
            pool.freed(taken[7])
            index.add(taken[7])
        assert len(pool._freed) == 2  # noqa: SLF001 - in weeks it would be all of the writer's memory
        assert pool.smallest_free() == taken[3]
        index.add(taken[3])
        assert pool.smallest_free() == Prefix.host(4, taken[-1].network + 1)
        index.remove(taken[7])
        pool.freed(taken[7])
        assert pool.smallest_free() == taken[7], "it is remembered anew once it was forgotten"

    def test_offers_again_what_was_freed_first(self) -> None:
        index = PrefixIndex()
        pool = AddressPool(Prefix.parse("10.8.0.0/16"), index, frozenset({0x0A080001}))
        taken: list[Prefix] = []
        for _ in range(500):
            offered = pool.smallest_free()
            assert offered is not None
            index.add(offered)
            taken.append(offered)
        assert str(taken[0]) == "10.8.0.2/32"
        for gone in (taken[300], taken[7]):
            index.remove(gone)
            pool.freed(gone)
        for expected in (taken[7], taken[300]):
            assert pool.smallest_free() == expected
            index.add(expected)
        assert pool.smallest_free() == Prefix.host(4, taken[-1].network + 1)


@pytest.mark.parametrize(
    ("prefix", "offers"),
    [("10.0.0.0/30", 2), ("10.0.0.0/31", 2), ("10.0.0.0/32", 1), ("fd00::/126", 3), ("fd00::/127", 2)],
)
def test_a_small_pool_has_as_many_addresses_as_hosts_may_use(prefix: str, offers: int) -> None:
    index = PrefixIndex()
    pool = AddressPool(Prefix.parse(prefix), index)
    count = 0
    while (offered := pool.smallest_free()) is not None:
        index.add(offered)
        count += 1
    assert count == offers
