"""The event loop while a writer fills: slice after slice while nothing arrives, and what arrives comes first."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.worker import state as worker_state
from kombu.asynchronous import Hub

from peerlane.workers.lane import steps
from peerlane.workers.lane.steps import TickStep

SLICES = 20


class Turns:
    """A worker's event loop, and a service with so many slices to add; what happens in ``order``."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.hub: Any = cast("Any", Hub)()
        self.before_a_slice: Callable[[int], None] = lambda _number: None
        self._parent = SimpleNamespace(service=self, hub=self.hub)
        self._step = TickStep(self._parent)
        self._near, self._far = socket.socketpair()
        self.hub.add_reader(self._near.fileno(), self._on_message)

    def fill(self) -> bool:
        self.before_a_slice(self.order.count("slice") + 1)
        self.order.append("slice")
        return self.order.count("slice") < SLICES

    def tick(self) -> None:
        """What a tick does first."""
        self._step._fill(self._parent)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a tick needs a connection

    def send(self) -> None:
        self._far.send(b"\0")

    def _on_message(self) -> None:
        self._near.recv(1)
        self.order.append("message")

    def turn(self) -> None:
        next(self.hub.loop)

    @property
    def fills(self) -> bool:
        """Whether the loop is to go on filling."""
        return len(self.hub.readers) > 1

    def close(self) -> None:
        self._step.stop(self._parent)
        for end in (self._near, self._far):
            end.close()
        self.hub.close()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    monkeypatch.setattr(steps, "FILLING", 60.0)
    made = Turns()
    yield made
    made.close()


def test_all_is_filled_in_one_turn_while_nothing_arrives(turns: Turns) -> None:
    turns.tick()
    assert turns.order == ["slice"] * SLICES
    assert not turns.fills


def test_a_message_waits_for_the_slice_in_hand_and_at_most_one_more(turns: Turns) -> None:
    turns.before_a_slice = lambda number: turns.send() if number == 3 else None
    turns.tick()
    assert turns.order == ["slice"] * 3, "the turn ends, so that the loop can read it"
    turns.turn()
    assert turns.order[3:5].count("message") == 1
    while turns.fills:
        turns.turn()
    assert turns.order.count("slice") == SLICES


def test_a_turn_ends_in_time_for_the_loops_timers(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "FILLING", 0.0)
    for count in range(1, 4):
        (turns.turn if count > 1 else turns.tick)()
        assert turns.order == ["slice"] * count


def test_a_worker_that_is_to_stop_fills_no_further_slice(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_state, "should_stop", 0)
    turns.tick()
    assert turns.order == ["slice"]
