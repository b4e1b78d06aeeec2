"""The one reader of gateways' status: two round trips of pipelined reads, independent of gateways and peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import LaneState, unknown_gateway
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.redis.errors import reading
from peerlane.tasks.status.gateway_status import GatewayStatus


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The status of gateways at one moment."""

    #: Redis' clock, in seconds.
    at: float
    #: By name; where some were asked for, in that order.
    gateways: tuple[GatewayStatus, ...]

    @property
    def beat_silent_for(self) -> float | None:
        """Seconds since a beat last asked one of these gateways for anything; None if that is not known."""
        return min((s.beat_silent_for for s in self.gateways if s.beat_silent_for is not None), default=None)


class FleetReader:
    """Reads some gateways, or all registered ones. Remembers what its Redis user may not read."""

    def __init__(
        self, redis: Redis, gateways: Sequence[str] = (), *, lanes_only: bool = False, measured: bool = False
    ) -> None:
        """``lanes_only`` omits alarms, observers and sweeps, which an API host's Redis user may not read.

        ``measured`` reads what writers and observers have measured, too.
        """
        self._redis = redis
        self._wanted = tuple(dict.fromkeys(gateways))
        self._lanes_only, self._measured = lanes_only, measured
        self._refused: set[str] = set()

    def read(self) -> FleetSnapshot:
        """Read now.

        Raises:
            Unavailable: a gateway that was named is not registered.
            StorageError: Redis refuses to show a gateway's lane to this user.
            OutcomeUnknown: Redis could not be reached.
        """
        with reading():
            pipe = self._redis.pipeline(transaction=False)
            pipe.time()
            pipe.smembers(names.GATEWAYS_KEY)
            (seconds, micros), members = cast("tuple[tuple[int, int], set[bytes]]", tuple(pipe.execute()))
            registered = names.well_formed(members)
            for name in self._wanted:
                if name not in registered:
                    raise unknown_gateway(name)
            at = seconds + micros / 1e6
            return FleetSnapshot(at, tuple(self._statuses(self._wanted or registered, at)))

    def _statuses(self, gateways: Sequence[str], at: float) -> Iterator[GatewayStatus]:
        if not gateways:
            return
        pipe = self._redis.pipeline(transaction=False)
        for name in gateways:
            pipe.hgetall(names.gateway_key(name))
            pipe.llen(names.lane_queue(name))
            pipe.llen(names.bulk_queue(name))
            if self._shows(name):
                pipe.hgetall(names.observer_key(name))
                pipe.hgetall(names.alarms_key(name))
                pipe.llen(names.poison_key(name))
                if self._measured:
                    pipe.hget(names.metrics_key(name), "writer")
        answers = iter(pipe.execute(raise_on_error=False))
        for name in gateways:
            facts, waiting, bulk = (_checked(next(answers)) for _ in range(3))
            lane = LaneState.of(name, facts, waiting, bulk, now=int(at * 1000))
            yield self._status(lane, answers, at) if self._shows(name) else GatewayStatus(lane, at, visible=False)

    def _shows(self, name: str) -> bool:
        return not self._lanes_only and name not in self._refused

    def _status(self, lane: LaneState, answers: Iterator[Any], at: float) -> GatewayStatus:
        observer, alarms, set_aside = next(answers), next(answers), next(answers)
        measured = next(answers) if self._measured else None
        if isinstance(observer, NoPermissionError) or isinstance(alarms, NoPermissionError):
            self._refused.add(lane.gateway)
            return GatewayStatus(lane, at, visible=False)
        return GatewayStatus.of(
            lane,
            now=at,
            observer=_checked(observer),
            alarms=_checked(alarms),
            set_aside=None if isinstance(set_aside, NoPermissionError) else _checked(set_aside),
            measured=None if isinstance(measured, RedisError) else measured,
        )


def read_gateway(app: PeerlaneApp, gateway: str) -> GatewayStatus:
    """One gateway's status. Raises as ``FleetReader.read`` does."""
    return FleetReader(lanes_of(app).redis, (gateway,)).read().gateways[0]


def _checked(answer: Any) -> Any:
    if isinstance(answer, RedisError):
        raise answer
    return answer
