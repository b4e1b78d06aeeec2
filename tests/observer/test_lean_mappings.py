"""What an observer holds in few bytes says what was put in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from keys import key_number

from peerlane.workers.store.activity import StoredActivity
from peerlane.workers.upkeep.lean_mappings import Activities, Keys, Lifetime, Lifetimes

keys = st.integers(1, 50).map(key_number)
counts = st.integers(0, 2**64 - 1)
times = st.integers(-(2**70), 2**70)
activities = st.builds(
    StoredActivity, *[counts] * 6, endpoint=st.sampled_from(["", "192.0.2.1:51820", "[2001:db8::1]:51820"])
)
lives = st.builds(Lifetime, times, st.none() | times, st.booleans(), st.none() | times)


@given(st.dictionaries(keys, lives), keys)
def test_lifetimes(wanted: dict[str, Lifetime], other: str) -> None:
    found = Lifetimes()
    for key, life in wanted.items():
        found.put(key, life)
    found.put("no key", Lifetime(1, None, pinned=False))
    assert dict(found) == wanted
    assert (len(found), other in found, "no key" in found) == (len(wanted), other in wanted, False)


@given(st.dictionaries(keys, activities), keys)
def test_activities(wanted: dict[str, StoredActivity], other: str) -> None:
    found = Activities()
    found.update(wanted)
    found["no key"] = StoredActivity(1, 1, 1, 1, 1, 1)
    assert dict(found) == wanted
    assert found.get(other) == wanted.get(other)
    assert (other in found, "no key" in found) == (other in wanted, False)
    if wanted:
        gone = next(iter(wanted))
        del found[gone], wanted[gone]
        assert dict(found) == wanted


@given(st.sets(keys), keys)
def test_keys(wanted: set[str], other: str) -> None:
    found = Keys()
    for key in [*wanted, "no key"]:
        found.add(key)
    assert (set(found), len(found), other in found) == (wanted, len(wanted), other in wanted)
