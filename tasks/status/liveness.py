"""Reads whether a gateway's writer serves its lane, in one round trip, for health checks."""

from __future__ import annotations

from typing import cast

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import LaneState, unknown_gateway
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.redis.errors import reading
from peerlane.tasks.redis.server_clock import milliseconds


def read_lane(app: PeerlaneApp, gateway: str) -> LaneState:
    """The gateway's hash and Redis' clock, in one round trip. The lane's length is not looked at.

    Raises:
        Unavailable: no such gateway has registered.
        OutcomeUnknown: Redis could not be reached.
    """
    with reading():
        pipe = lanes_of(app).redis.pipeline(transaction=False)
        pipe.hgetall(names.gateway_key(gateway))
        pipe.time()
        facts, time_reply = cast("tuple[dict[bytes, bytes], tuple[int, int]]", tuple(pipe.execute()))
    if not facts:
        raise unknown_gateway(gateway)
    return LaneState.of(gateway, facts, 0, 0, now=milliseconds(time_reply))
