"""Decides which peers are stale, and whether a sweep may remove that many. Pure: no clock, no I/O.

The rules, in order: a pinned peer is never stale. An expired peer is. The others are judged by the device's counters,
if these are known, were watched for some time (they start again with the device), and contain the peer: it is stale if
it had no handshake for some time after it was created or imported, or if it was not seen for a long time. "Never
handshaked" is a separate state, not timestamp 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from peerlane.config.settings import Settings
from peerlane.tasks.wire.bulk import Reason
from peerlane.workers.store.activity import StoredActivity

#: Fewer peers than this say nothing about whether a reading is plausible.
FEW = 10


class SweepCandidate(Protocol):
    """The fields of a peer's record that a sweep uses."""

    @property
    def created_at(self) -> int: ...
    @property
    def expires_at(self) -> int | None: ...
    @property
    def pinned(self) -> bool: ...
    @property
    def imported_at(self) -> int | None: ...


class StalePeer(NamedTuple):
    """A stale peer. ``since``: when it expired, was created or imported (never), or was last seen (idle)."""

    public_key: str
    reason: Reason
    created_at: int
    since: int


@dataclass(frozen=True, slots=True)
class Limits:
    """One gateway's policy. In seconds; 0 switches ``never_after`` and ``idle_after`` off."""

    never_after: int = 86_400
    idle_after: int = 30 * 86_400
    start_grace: int = 600
    #: A sweep of more than this share of the peers, and more than ``floor``, needs force.
    share: float = 0.5
    floor: int = 50

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits of the settings."""
        return cls(
            never_after=settings.sweep_never_after,
            idle_after=settings.sweep_idle_after,
            start_grace=settings.sweep_start_grace,
            share=settings.sweep_share,
            floor=settings.sweep_floor,
        )


@dataclass(frozen=True, slots=True)
class Sight:
    """A reading of the counters, as a sweep uses it."""

    #: Keys of the peers that the reading showed.
    shown: Collection[str]
    #: Whether peers that it did not show are not on the device for sure.
    complete: bool
    #: Since when the device's counters have been watched, in seconds on Redis' clock.
    since: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a sweep must not continue without a person: the kind of its alarm, and a sentence."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A sweep's decision. With a ``refusal`` nothing is removed; ``victims`` are those that would be."""

    peers: int
    victims: tuple[StalePeer, ...]
    refusal: Refusal | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many victims for each reason."""
        return dict(Counter(victim.reason for victim in self.victims))


def decide(
    peers: Mapping[str, SweepCandidate],
    seen: Mapping[str, StoredActivity],
    now: int,
    limits: Limits,
    sight: Sight | None,
) -> list[StalePeer]:
    """The stale peers among ``peers``, the earliest expired first. Without a ``sight`` only expiry counts."""
    watched = sight is not None and now - sight.since >= limits.start_grace
    victims: list[StalePeer] = []
    for key, peer in peers.items():
        if peer.pinned:
            continue
        if peer.expires_at is not None and peer.expires_at <= now:
            victims.append(StalePeer(key, "expired", peer.created_at, peer.expires_at))
        elif watched and sight is not None and key in sight.shown:
            known = seen.get(key)
            # StoredActivity before this peer was made: that was an earlier one with the same key.
            at = known.last_seen if known is not None and known.last_seen >= peer.created_at else 0
            if at == 0:
                since = max(peer.created_at, peer.imported_at or 0)
                if limits.never_after and now - since > limits.never_after:
                    victims.append(StalePeer(key, "never", peer.created_at, since))
            elif limits.idle_after and now - at > limits.idle_after:
                victims.append(StalePeer(key, "idle", peer.created_at, at))
    victims.sort(key=lambda victim: (victim.reason != "expired", victim.since))
    return victims


def implausible(peers: Collection[str], sight: Sight) -> Refusal | None:
    """Why a reading cannot be right; None if it can.

    A peer that was deleted between the two looks is missing from the reading rightly, so a few may be.
    """
    missing = sum(key not in sight.shown for key in peers)
    if len(peers) > FEW and missing * 2 > len(peers):
        return Refusal(
            "counters",
            f"the device shows {len(peers) - missing:,} of the {len(peers):,} peers that Redis holds: "
            "it is being recovered, or was emptied by hand",
        )
    if not sight.complete and missing > max(FEW, len(peers) // 10):
        return Refusal(
            "counters",
            f"the reading of the counters was interrupted and lacks {missing:,} of {len(peers):,} peers",
        )
    return None


def excessive(
    victims: Collection[StalePeer], peers: int, limits: Limits, sure_since: int | None = None
) -> Refusal | None:
    """Why a sweep must not remove so many without a person; None if it may.

    Who expired after ``sure_since`` does not count: their time ran out while the clock was watched. A flood of peers
    with one TTL ends all at once, and that is as it should be.
    """
    doubtful = sum(victim.reason != "expired" or sure_since is None or victim.since <= sure_since for victim in victims)
    if doubtful <= limits.floor or doubtful <= limits.share * peers:
        return None
    return Refusal(
        "sweep",
        f"{doubtful:,} of {peers:,} peers are stale, more than the share of {limits.share:.0%} that a sweep may "
        "remove by itself: look at them (sweep --dry-run), then remove them (sweep --force)",
    )


def judge(
    peers: Mapping[str, SweepCandidate],
    seen: Mapping[str, StoredActivity],
    now: int,
    limits: Limits,
    sight: Sight | None,
    *,
    held: Iterable[Refusal] = (),
    force: bool = False,
    sure_since: int | None = None,
) -> Decision:
    """Decide, and refuse where something is wrong. ``held`` are reasons known already (clock, unreadable counters).

    ``sure_since``: from when on Redis' clock has been watched without a break, in seconds on it; None if it is not.

    ``force`` overrules every refusal; peers that the reading does not show then still go for their expiry only.
    """
    victims = tuple(decide(peers, seen, now, limits, sight))
    if force:
        return Decision(len(peers), victims)
    refusal = next(iter(held), None)
    if refusal is None and sight is not None:
        refusal = implausible(peers, sight)
    return Decision(len(peers), victims, refusal or excessive(victims, len(peers), limits, sure_since))
