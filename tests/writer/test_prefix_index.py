"""The index of held prefixes, held against a plain set that is searched from end to end."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from peerlane.tasks.wire.prefix import Prefix
from peerlane.workers.peers.prefix_index import PrefixIndex


def _prefix(version: int, number: int, length: int) -> Prefix:
    bits = 32 if version == 4 else 128
    return Prefix(version, (number >> (8 - length)) << (bits - length) if length else 0, length)


#: The few prefixes of at most eight bits: they overlap all the time.
prefixes = st.builds(_prefix, st.sampled_from((4, 6)), st.integers(0, 255), st.integers(0, 8))


class IndexAgainstASet(RuleBasedStateMachine):
    held: Bundle[Prefix] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.model: dict[Prefix, str] = {}

    def _overlapping(self, prefix: Prefix) -> list[tuple[Prefix, str]]:
        return sorted((p, owner) for p, owner in self.model.items() if p.overlaps(prefix))

    @rule(target=held, prefix=prefixes, owner=st.sampled_from("abc"))
    def add_where_free(self, prefix: Prefix, owner: str) -> Prefix:
        if not self._overlapping(prefix):
            self.index.add(prefix, owner)
            self.model[prefix] = owner
        return prefix

    @rule(prefix=consumes(held))
    def remove(self, prefix: Prefix) -> None:
        if self.model.pop(prefix, None) is None:
            with pytest.raises(KeyError):
                self.index.remove(prefix)
        else:
            self.index.remove(prefix)

    @rule(prefix=prefixes)
    def ask_for_overlaps(self, prefix: Prefix) -> None:
        assert list(self.index.overlapping(prefix)) == self._overlapping(prefix)

    @rule(prefix=prefixes)
    def ask_for_the_holder(self, prefix: Prefix) -> None:
        for address in (prefix.network, prefix.last):
            holder = next((p for p in self.model if p.overlaps(Prefix.host(prefix.version, address))), None)
            assert self.index.holder(prefix.version, address) == holder

    @rule()
    def fill_another_at_once(self) -> None:
        other = PrefixIndex()
        other.fill(self.model.items())
        assert sorted(other) == sorted(self.index)
        everything = (Prefix(4, 0, 0), Prefix(6, 0, 0))
        for prefix in everything:
            assert list(other.overlapping(prefix)) == list(self.index.overlapping(prefix))

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.index) == len(self.model)
        assert {prefix: self.index.owner(prefix) for prefix in self.index} == self.model


TestTheIndexAnswersAsASetWould = IndexAgainstASet.TestCase
