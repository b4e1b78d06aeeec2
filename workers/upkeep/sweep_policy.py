"""Decides which peers are stale, and whether a sweep may remove that many. Pure: no clock, no I/O.

The rules, in order: a pinned peer is never stale. An expired peer is. The others are judged by the device's counters,
if these are known, were watched for some time (they start again with the device), and contain the peer: it is stale if
it had no handshake for some time after it was created or imported, or after Redis began to keep activity (it may have
lost that), or if it was not seen for a long time. "Never
handshaked" is a separate state, not timestamp 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from peerlane.config.settings import Settings
from peerlane.workers.store.activity import StoredActivity
from peerlane.workers.upkeep.lean_mappings import StalePeer, StalePeers

#: Seconds by which a record's times may lie before the moment that its writer wrote it, on Redis' clock.
SLACK = 2
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


class Keys(Protocol):
    """Some public keys."""

    def __contains__(self, public_key: object, /) -> bool: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sight:
    """A reading of the counters, as a sweep uses it."""

    #: Keys of the peers that the reading showed.
    shown: Keys
    #: Whether peers that it did not show are not on the device for sure.
    complete: bool
    #: Since when the device's counters have been watched, in seconds on Redis' clock.
    since: int
    #: When the reading began, in seconds on Redis' clock: a peer made later may be missing from it. None: no peer is.
    at: int | None = None
    #: Since when activity is kept in Redis, in seconds on its clock: a handshake before that may be forgotten.
    kept_since: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a sweep must not continue without a person: the kind of its alarm, and a sentence."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A sweep's decision. With a ``refusal`` nothing is removed; ``victims`` are those that would be."""

    peers: int
    victims: StalePeers = field(default_factory=StalePeers)
    refusal: Refusal | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many victims for each reason."""
        return dict(self.victims.counts)


def decide(
    peers: Mapping[str, SweepCandidate],
    seen: Mapping[str, StoredActivity],
    now: int,
    limits: Limits,
    sight: Sight | None,
) -> list[StalePeer]:
    """The stale ones among ``peers``, those that expired first in front. Without a ``sight`` only expiry counts."""
    watched = watches(now, limits, sight)
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
                if limits.never_after and now - max(since, sight.kept_since) > limits.never_after:
                    victims.append(StalePeer(key, "never", peer.created_at, since))
            elif limits.idle_after and now - at > limits.idle_after:
                victims.append(StalePeer(key, "idle", peer.created_at, at))
    victims.sort(key=lambda victim: (victim.reason != "expired", victim.since))
    return victims


def watches(now: int, limits: Limits, sight: Sight | None) -> bool:
    """Whether counters say anything yet: they were watched for a while."""
    return sight is not None and now - sight.since >= limits.start_grace


def implausible(peers: int, missing: int, *, complete: bool) -> Refusal | None:
    """Why a reading that lacks ``missing`` of ``peers`` cannot be what the device holds; None if it can.

    A peer that was deleted between the two looks is missing from the reading rightly, so a few may be.
    """
    if peers > FEW and missing * 2 > peers:
        return Refusal(
            "counters",
            f"the device shows {peers - missing:,} of the {peers:,} peers that Redis holds: "
            "it is being recovered, or was emptied by hand",
        )
    if not complete and missing > max(FEW, peers // 10):
        return Refusal(
            "counters",
            f"the reading of the counters was interrupted and lacks {missing:,} of {peers:,} peers",
        )
    return None


def doubtful(victim: StalePeer, sure_since: int | None) -> bool:
    """Whether a victim counts among those of which too many need a person's word.

    Who expired after ``sure_since`` does not: their time ran out while the clock was watched. A flood of peers with
    one TTL ends all at once, and that is as it should be.
    """
    return victim.reason != "expired" or sure_since is None or victim.since <= sure_since


def excessive(count: int, peers: int, limits: Limits) -> Refusal | None:
    """Why so many doubtful victims must not go without a person's word; None if they may."""
    if count <= limits.floor or count <= limits.share * peers:
        return None
    return Refusal(
        "sweep",
        f"{count:,} of {peers:,} peers are stale, more than the share of {limits.share:.0%} that a sweep may "
        "remove by itself: look at them (sweep --dry-run), then remove them (sweep --force)",
    )


class Judgement:
    """A sweep's decision, made page by page: only its victims are held."""

    def __init__(self, now: int, limits: Limits, sight: Sight | None, *, sure_since: int | None = None) -> None:
        """``sure_since``: since when Redis' clock has been watched without a break, on it; None if it is not."""
        self._now, self._limits, self._sight, self._sure_since = now, limits, sight, sure_since
        self._victims = StalePeers()
        self._peers = self._doubtful = 0
        #: Peers that the reading does not show though they were there before it.
        self.missing = 0

    def take(self, peers: Mapping[str, SweepCandidate], seen: Mapping[str, StoredActivity]) -> None:
        """Judge some peers; ``seen`` is what is known of their activity."""
        self._peers += len(peers)
        sight = self._sight
        if sight is not None:
            since = None if sight.at is None else sight.at - SLACK
            for key, peer in peers.items():
                fresh = since is not None and max(peer.created_at, peer.imported_at or 0) >= since
                self.missing += not fresh and key not in sight.shown
        for victim in decide(peers, seen, self._now, self._limits, sight):
            self._victims.append(victim)
            self._doubtful += doubtful(victim, self._sure_since)

    def decision(self, *, refusals: Iterable[Refusal] = (), force: bool = False) -> Decision:
        """The decision about all peers taken. ``refusals`` are reasons known already (clock, unreadable counters).

        ``force`` overrules every refusal; peers that the reading does not show then still go for their expiry only.
        """
        self._victims.sort()
        if force:
            return Decision(self._peers, self._victims)
        refusal = next(iter(refusals), None)
        if refusal is None and self._sight is not None:
            refusal = implausible(self._peers, self.missing, complete=self._sight.complete)
        return Decision(self._peers, self._victims, refusal or excessive(self._doubtful, self._peers, self._limits))


def judge(
    peers: Mapping[str, SweepCandidate],
    seen: Mapping[str, StoredActivity],
    now: int,
    limits: Limits,
    sight: Sight | None,
    *,
    refusals: Iterable[Refusal] = (),
    force: bool = False,
    sure_since: int | None = None,
) -> Decision:
    """The ``Judgement`` of peers that are all in memory."""
    whole = Judgement(now, limits, sight, sure_since=sure_since)
    whole.take(peers, seen)
    return whole.decision(refusals=refusals, force=force)
