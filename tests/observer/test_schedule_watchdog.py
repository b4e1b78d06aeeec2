"""Where no beat runs, an operator is told: an alarm comes when scheduled sweeps stay out, and goes with the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from gateways import MakeSettings, new_name
from redis import Redis

from peerlane.config.redis.client import connect
from peerlane.tasks.status.alarms import read_alarms
from peerlane.workers.upkeep.schedule_watchdog import ScheduleWatchdog


@dataclass
class Scene:
    """One gateway, and a steady clock that a test moves."""

    redis: Redis
    name: str = field(default_factory=new_name)
    at: float = 1_000.0

    def attendance(self) -> ScheduleWatchdog:
        """What an observer makes at its start."""
        return ScheduleWatchdog(self.redis, self.name, steady=lambda: self.at)

    def alarms(self, watchdog: ScheduleWatchdog, *, after: float, every: float = 60) -> list[str]:
        """Which stand after so many seconds."""
        self.at += after
        watchdog.look(lambda: every, int(self.at))
        return [alarm.kind for alarm in read_alarms(self.redis, self.name)]


@pytest.fixture
def scene(settings: MakeSettings) -> Iterator[Scene]:
    redis = connect(settings())
    yield Scene(redis)
    redis.close()


def test_an_alarm_comes_when_nobody_asks_and_goes_when_somebody_does(scene: Scene) -> None:
    watchdog = scene.attendance()
    assert scene.alarms(watchdog, after=300) == []
    assert scene.alarms(watchdog, after=1) == ["unattended"]
    watchdog.asked()
    assert scene.alarms(watchdog, after=300) == []
    assert scene.alarms(watchdog, after=300) == ["unattended"]


def test_a_long_interval_is_waited_for(scene: Scene) -> None:
    watchdog = scene.attendance()
    assert scene.alarms(watchdog, after=18_000, every=3_600) == []
    assert scene.alarms(watchdog, after=1, every=3_600) == ["unattended"]


def test_the_alarm_of_an_earlier_observer_stands_until_somebody_asks(scene: Scene) -> None:
    assert scene.alarms(scene.attendance(), after=301) == ["unattended"]
    again = scene.attendance()
    assert scene.alarms(again, after=1) == ["unattended"]
    again.asked()
    assert scene.alarms(again, after=1) == []


def test_a_beat_is_excused_while_redis_is_away(scene: Scene) -> None:
    watchdog = scene.attendance()
    scene.at += 3_600
    watchdog.excused()
    assert scene.alarms(watchdog, after=10) == []
