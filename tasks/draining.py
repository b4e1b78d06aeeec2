"""Emptying a gateway: its state in Redis, which the commit script obeys. A gateway that is down drains too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from redis.exceptions import RedisError

from config import names
from tasks.errors import OutcomeUnknown, Unavailable
from tasks.lanes import Lanes

State = Literal["active", "draining"]

# Only where a gateway has registered: its name in the set and a hash of nothing but a state would be a ghost.
_SWITCH = """
if redis.call('HEXISTS', KEYS[1], 'public_key') == 0 then return false end
local before = redis.call('HGET', KEYS[1], 'state') or 'active'
redis.call('HSET', KEYS[1], 'state', ARGV[1])
return before
"""


@dataclass(frozen=True, slots=True)
class Switched:
    """A gateway's state before and after; equal where there was nothing to do."""

    gateway: str
    before: str
    after: State


def switch(lanes: Lanes, gateway: str, state: State) -> Switched:
    """Set a gateway's state. Every create that commits after this returns obeys it.

    Raises:
        Unavailable: no such gateway is registered.
        OutcomeUnknown: Redis could not be reached; doing it again is harmless.
    """
    try:
        before = cast("bytes | None", lanes.redis.eval(_SWITCH, 1, names.gateway_key(gateway), state))
        lanes.look(gateway)  # what this process believes of the lane is older
    except RedisError as error:
        raise OutcomeUnknown(
            f"Redis could not be reached ({type(error).__name__}): whether {gateway} is {state} is unknown; ask again"
        ) from error
    if before is None:
        raise Unavailable(f"no gateway {gateway} is registered; `peerlane gateway list` shows those that are")
    return Switched(gateway, before.decode(errors="replace"), state)
