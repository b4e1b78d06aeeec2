"""What a worker does beside consuming, on an event loop of Celery's own that nobody else has."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous import Hub

from peerlane.workers.lane.steps import SignalStep, TickStep


@pytest.fixture
def hub() -> Iterator[Any]:
    made: Any = Hub()
    yield made
    made.close()


@pytest.fixture
def ticks() -> list[str]:
    return []


@pytest.fixture
def consumer(hub: Any, ticks: list[str]) -> Any:
    """What the steps use of Celery's consumer."""
    service = SimpleNamespace(tick=lambda: ticks.append("tick"), fill=lambda: False)
    return SimpleNamespace(hub=hub, timer=hub.timer, service=service, obey_pause=lambda: None, event_dispatcher=None)


def test_the_first_tick_is_due_at_once(consumer: Any, hub: Any, ticks: list[str]) -> None:
    """An observer's first sign of life, and its first sweep, do not wait for a second to pass."""
    step = TickStep(consumer)
    step.start(consumer)
    hub.fire_timers()
    assert ticks == ["tick"]
    step.stop(consumer)


def test_no_tick_comes_after_the_stop_nor_at_once_with_another_connection(
    consumer: Any, hub: Any, ticks: list[str]
) -> None:
    step = TickStep(consumer)
    step.start(consumer)
    step.stop(consumer)
    hub.fire_timers()
    step.start(consumer)
    hub.fire_timers()
    assert ticks == []
    step.stop(consumer)


def test_a_signal_wakes_the_event_loop(consumer: Any, hub: Any) -> None:
    heard: list[int] = []
    step, before = SignalStep(consumer), signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        step.start(consumer)
        assert not hub.poller.poll(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert hub.poller.poll(0), "there is something to read, for which the loop wakes"
        next(hub.create_loop())
        assert not hub.poller.poll(0), "it is read, so that the loop sleeps again"
        assert heard == [signal.SIGUSR1]
    finally:
        step.stop(consumer)
        signal.signal(signal.SIGUSR1, before)
    assert not hub.readers
