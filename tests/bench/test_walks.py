"""``make walks`` records the real ways: each of the four passes through the files that do its work."""

from __future__ import annotations

import pytest
from walk_recorder import Call
from walks import counts, measure


@pytest.fixture(scope="module")
def walks() -> dict[str, list[Call]]:
    return measure()


@pytest.mark.slow("follows real processes call by call")
def test_each_walk_is_recorded_from_its_own_process(walks: dict[str, list[Call]]) -> None:
    entered = {name: {file.rsplit("/", 1)[0] for file, _ in calls} for name, calls in walks.items()}
    assert "tasks/client" in entered["create: caller"]
    assert not [room for room in entered["create: caller"] if room.startswith("workers")]
    assert {"workers/lane", "workers/writer", "workers/peers", "workers/store"} <= entered["create: writer"]
    assert "workers/upkeep" in entered["sweep of one expired peer: observer"]
    assert "tasks/cli/gateway" in entered["peerlane gateway list"]


@pytest.mark.slow("follows real processes call by call")
def test_a_create_goes_through_few_files(walks: dict[str, list[Call]]) -> None:
    """Through no more than the architecture's page says: whoever reads the way of a create opens each."""
    assert counts(walks["create: caller"])["files"] <= 8
    assert counts(walks["create: writer"])["files"] <= 27


def test_a_walk_is_counted_by_calls_functions_files_and_crossings() -> None:
    walk = [("a.py", "f"), ("a.py", "f"), ("b.py", "g"), ("a.py", "f")]
    assert counts(walk) == {"calls": 4, "functions": 2, "files": 2, "crossings": 2}
