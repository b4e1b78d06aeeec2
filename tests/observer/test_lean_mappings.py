"""What an observer holds in few bytes says what was put in."""

from __future__ import annotations

import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from keys import key_number

from peerlane.tasks.values.key_set import KeySet
from peerlane.workers.upkeep.lean_mappings import StalePeer, StalePeers

keys = st.integers(1, 500).map(key_number)
times = st.integers(-(2**70), 2**70)
stale = st.builds(StalePeer, keys | st.just("no key"), st.sampled_from(["expired", "never", "idle"]), times, times)


@given(st.lists(keys, max_size=100), keys)
def test_keys(wanted: list[str], other: str) -> None:
    keys = KeySet()
    fresh = [keys.add(key) for key in wanted]
    assert fresh == [key not in wanted[:at] for at, key in enumerate(wanted)]
    assert (len(keys), other in keys) == (len(set(wanted)), other in wanted)
    assert all(key in keys for key in wanted)


@given(st.lists(stale, max_size=30))
def test_stale_peers(wanted: list[StalePeer]) -> None:
    peers = StalePeers(wanted)
    assert list(peers) == wanted
    assert peers[3:7] == wanted[3:7]
    assert peers.counts == Counter(peer.reason for peer in wanted)
    peers.sort()
    assert list(peers) == sorted(wanted, key=lambda peer: (peer.reason != "expired", peer.since))
    assert peers.first(2) == list(peers)[:2]


def test_a_hundred_thousand_cost_few_bytes_each() -> None:
    texts = [key_number(n) for n in range(1, 100_001)]
    tracemalloc.start()
    keys = KeySet(texts)
    of_keys = tracemalloc.get_traced_memory()[0]
    victims = StalePeers(StalePeer(text, "expired", 1_700_000_000, 1_800_000_000) for text in texts)
    of_victims = tracemalloc.get_traced_memory()[0] - of_keys
    tracemalloc.stop()
    assert len(keys) == len(victims) == 100_000
    assert of_keys <= 33 * 100_000
    assert of_victims <= 65 * 100_000
