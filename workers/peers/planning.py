"""``PlanningContext``: the input of planners. ``Decision``: their result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peerlane.tasks.errors import Invalid, PeerlaneError
from peerlane.tasks.wire.bulk import StagedPeer
from peerlane.tasks.wire.model import CreatePeer
from peerlane.tasks.wire.psk_cipher import PskCipher, Unsealable
from peerlane.workers.dataplane import Change, DevicePeer
from peerlane.workers.peers.plan import Plan
from peerlane.workers.peers.table import PeerTable

Wish = TypeVar("Wish", CreatePeer, StagedPeer)


@dataclass(frozen=True, slots=True)
class PlanningContext:
    """The input of planners."""

    table: PeerTable
    #: Milliseconds since 1970 on Redis' clock.
    now_ms: int
    #: ``active`` or ``draining``.
    state: str
    #: What results say of the gateway.
    facts: Mapping[str, str]
    #: Reads the device's peers.
    device: Callable[[], Mapping[str, DevicePeer]]
    #: Reads what was staged under a token.
    staged: Callable[[str], Sequence[str]]
    #: Opens preshared keys that were sealed on their way here.
    cipher: PskCipher = field(default_factory=PskCipher)
    #: Wishes of a list, by index, that the device has refused a moment ago: they are answered with that.
    refused: Mapping[int, PeerlaneError] = field(default_factory=dict[int, PeerlaneError])

    @property
    def now(self) -> int:
        """In seconds, as records have it."""
        return self.now_ms // 1000

    def opened(self, wish: Wish) -> Wish:
        """A wish with its preshared key in clear.

        Raises:
            Invalid: no key of ours opens it.
        """
        try:
            return self.cipher.opened(self.table.policy.gateway, wish)
        except Unsealable as error:
            raise Invalid(f"peer {wish.public_key}: {error}") from None


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision about a request."""

    plans: tuple[Plan, ...]
    changes: tuple[Change, ...]
    result: Mapping[str, Any]
    #: In ms on Redis' clock; 0 for none.
    deadline: int = 0
    #: Whether the device itself is to be made what it should be, before the changes.
    reopen: bool = False
    #: Of a list: which of its wishes each plan is for. One that cannot be carried out does not touch the others.
    indexes: tuple[int, ...] = ()

    @property
    def removes(self) -> bool:
        """Whether a peer's session would end."""
        return any(plan.after is None and plan.before is not None for plan in self.plans)
