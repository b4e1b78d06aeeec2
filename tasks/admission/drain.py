"""Drains and resumes a gateway: sets its state in Redis, which the commit script obeys, also while it is down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from redis.client import Pipeline

from peerlane.config import names
from peerlane.tasks.admission.lane_state import unknown_gateway
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.redis.errors import reaching

State = Literal["active", "draining"]


@dataclass(frozen=True, slots=True)
class Switched:
    """A gateway's state before and after; equal if there was nothing to do."""

    gateway: str
    before: str
    after: State


def switch(lanes: Lanes, gateway: str, state: State) -> Switched:
    """Set a gateway's state. Every create that commits after this returns obeys it.

    Raises:
        Unavailable: no such gateway is registered.
        StorageError: Redis refuses, as where this user may not do it; nothing was changed.
        OutcomeUnknown: Redis could not be reached; doing it again is harmless.
    """
    key = names.gateway_key(gateway)

    def flip(pipe: Pipeline) -> Any:
        # Only where a gateway has registered: its name in the set and a hash of nothing but a state would be a ghost.
        known, before = cast("list[bytes | None]", pipe.hmget(key, "public_key", "state"))
        pipe.multi()
        if known is None:
            return None
        pipe.hset(key, "state", state)
        return "active" if before is None else before.decode(errors="replace")

    with reaching(f"whether {gateway} is {state} is unknown; ask again", refused="nothing was changed"):
        before = cast("str | None", lanes.redis.transaction(flip, key, value_from_callable=True))
        lanes.look(gateway)  # what this process believes of the lane is older
    if before is None:
        raise unknown_gateway(gateway)
    return Switched(gateway, before, state)
