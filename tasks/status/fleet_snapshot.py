"""The whole fleet at a glance, read from Redis in a few round trips; it costs by the gateway, never by the peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from peerlane.config import names
from peerlane.tasks.lane.admission import LaneState, unknown_gateway
from peerlane.tasks.status.alarms import parse_alarms
from peerlane.tasks.status.gateway_status import Condition, condition_of

#: Gateways asked about in one round trip.
SLICE = 200


@dataclass(frozen=True, slots=True)
class Glance:
    """One gateway at one moment."""

    lane: LaneState
    #: None where this Redis user may not see it.
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the fleet."""

    #: Redis' clock, in seconds.
    at: float
    glances: tuple[Glance, ...]


class Overview:
    """Looks at some gateways, or at all that are registered. Remembers what its Redis user may not see."""

    def __init__(self, redis: Redis, gateways: Sequence[str] = ()) -> None:
        self._redis = redis
        self._wanted = tuple(dict.fromkeys(gateways))
        self._refused: set[str] = set()

    def look(self) -> Look:
        """Look now.

        Raises:
            Unavailable: a gateway that was named is not registered.
            redis.RedisError: as it comes.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.smembers(names.GATEWAYS_KEY)
        (seconds, micros), members = cast("tuple[tuple[int, int], set[bytes]]", tuple(pipe.execute()))
        registered = names.well_formed(members)
        for name in self._wanted:
            if name not in registered:
                raise unknown_gateway(name)
        at = seconds + micros / 1e6
        return Look(at, tuple(self._glances(self._wanted or registered, at)))

    def _glances(self, gateways: Sequence[str], at: float) -> Iterator[Glance]:
        for start in range(0, len(gateways), SLICE):
            part = gateways[start : start + SLICE]
            pipe = self._redis.pipeline(transaction=False)
            for name in part:
                pipe.hgetall(names.gateway_key(name))
                pipe.llen(names.lane_queue(name))
                pipe.llen(names.bulk_queue(name))
                if name not in self._refused:
                    pipe.hgetall(names.observer_key(name))
                    pipe.hgetall(names.alarms_key(name))
            answers = iter(pipe.execute(raise_on_error=False))
            for name in part:
                facts, waiting, bulk = (_sound(next(answers)) for _ in range(3))
                lane = LaneState.of(name, facts, waiting, bulk, now=int(at * 1000))
                yield Glance(lane, None if name in self._refused else self._condition(lane, answers, at))

    def _condition(self, lane: LaneState, answers: Iterator[Any], at: float) -> Condition | None:
        told, alarms = next(answers), next(answers)
        if isinstance(told, NoPermissionError) or isinstance(alarms, NoPermissionError):
            self._refused.add(lane.gateway)
            return None
        recovered = lane.facts.get("recovered", "").encode()
        return condition_of(lane.gateway, parse_alarms(_sound(alarms)), _sound(told), recovered, now=at)


def _sound(answer: Any) -> Any:
    if isinstance(answer, RedisError):
        raise answer
    return answer
