"""The index of held prefixes, held against a plain set that is searched from end to end."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.peers.prefixes import PrefixIndex


def _prefix(version: int, number: int, length: int) -> Prefix:
    bits = 32 if version == 4 else 128
    return Prefix(version, (number >> (8 - length)) << (bits - length) if length else 0, length)


#: The few prefixes of at most eight bits: they overlap all the time. And single hosts, near each other or pages apart.
short = st.builds(_prefix, st.sampled_from((4, 6)), st.integers(0, 255), st.integers(0, 8))
hosts = st.builds(
    Prefix.host, st.sampled_from((4, 6)), st.sampled_from((0, 1, 2, 62, 1022, 1023, 1024, 1025, 2047, 2048, 1 << 25))
)


def _around_pages(version: int, number: int, length: int) -> Prefix:
    return Prefix(version, number << length, (32 if version == 4 else 128) - length)


wide_in_pages = st.builds(_around_pages, st.sampled_from((4, 6)), st.integers(0, 3), st.sampled_from((1, 4, 9, 10, 11)))
prefixes = short | hosts | wide_in_pages


class IndexAgainstASet(RuleBasedStateMachine):
    entered: Bundle[Prefix] = Bundle("entered")

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.model: set[Prefix] = set()

    def _overlapping(self, prefix: Prefix) -> list[Prefix]:
        return sorted(entry for entry in self.model if entry.overlaps(prefix))

    @rule(target=entered, prefix=prefixes)
    def add_where_free(self, prefix: Prefix) -> Prefix:
        if not self._overlapping(prefix):
            self.index.add(prefix)
            self.model.add(prefix)
        return prefix

    @rule(target=entered, prefix=prefixes)
    def take_if_free(self, prefix: Prefix) -> Prefix:
        free = not self._overlapping(prefix)
        assert self.index.take(prefix) == free
        if free:
            self.model.add(prefix)
        return prefix

    @rule(prefix=consumes(entered))
    def remove(self, prefix: Prefix) -> None:
        if prefix not in self.model:
            with pytest.raises(KeyError):
                self.index.remove(prefix)
        else:
            self.model.remove(prefix)
            self.index.remove(prefix)

    @rule(prefix=prefixes)
    def ask_for_overlaps(self, prefix: Prefix) -> None:
        assert list(self.index.overlapping(prefix)) == self._overlapping(prefix)
        assert (prefix in self.index) == (prefix in self.model)

    @rule(prefix=prefixes)
    def ask_for_the_holder(self, prefix: Prefix) -> None:
        for address in (prefix.network, prefix.last):
            holder = next((p for p in self.model if p.overlaps(Prefix.host(prefix.version, address))), None)
            assert self.index.holder(prefix.version, address) == holder

    @rule(prefix=wide_in_pages | hosts)
    def ask_for_the_first_free(self, prefix: Prefix) -> None:
        candidates = range(prefix.network, prefix.last + 1)
        free = (n for n in candidates if not self._overlapping(Prefix.host(prefix.version, n)))
        assert self.index.first_free(prefix.version, prefix.network, prefix.last) == next(free, None)

    @rule(area=prefixes)
    def count_what_begins_within(self, area: Prefix) -> None:
        begin = [entry for entry in self.model if entry.version == area.version]
        assert self.index.count_within(area) == sum(area.network <= entry.network <= area.last for entry in begin)

    @rule(areas=st.lists(prefixes, max_size=2))
    def ask_what_lies_outside(self, areas: list[Prefix]) -> None:
        outside = {entry for entry in self.model if not any(area.contains(entry) for area in areas)}
        assert set(self.index.outside(areas)) == outside

    @rule()
    def copy(self) -> None:
        other = self.index.copy()
        for prefix in self.model:
            self.index.remove(prefix)
        assert (len(self.index), list(self.index)) == (0, [])
        self.index = other

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.index) == len(self.model)
        assert set(self.index) == self.model


TestTheIndexAnswersAsASetWould = IndexAgainstASet.TestCase
