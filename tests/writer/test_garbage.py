"""The garbage collector stops a writer for no longer with many peers than with few."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from peerlane.workers.host import garbage


class Node:
    """Something that can be in a cycle."""

    def __init__(self) -> None:
        self.other: object = None


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def cycle() -> weakref.ref[Node]:
    """Garbage that only the collector finds."""
    first, second = Node(), Node()
    first.other, second.other = second, first
    return weakref.ref(first)


def is_looked_at(tracked: object) -> bool:
    return any(each is tracked for each in gc.get_objects())


class TestPeersThatAreNew:
    def test_are_looked_at_once_and_put_aside(self) -> None:
        peers = [Node() for _ in range(10)]
        assert is_looked_at(peers[0])
        garbage.put_aside()
        assert not any(map(is_looked_at, peers))

    def test_take_no_garbage_along(self) -> None:
        lost = cycle()
        garbage.put_aside()
        assert lost() is None

    def test_are_freed_when_they_are_deleted(self) -> None:
        peer = Node()
        watched = weakref.ref(peer)
        garbage.put_aside()
        del peer
        assert watched() is None


class TestALoad:
    def test_is_not_interrupted_and_put_aside(self) -> None:
        with garbage.loading():
            assert not gc.isenabled()
            peer = Node()
        assert gc.isenabled()
        assert not is_looked_at(peer)

    def test_that_fails_leaves_the_collector_on(self) -> None:
        with pytest.raises(ZeroDivisionError), garbage.loading():
            raise ZeroDivisionError
        assert gc.isenabled()
