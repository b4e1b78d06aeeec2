"""What the judge of a fault run sees, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fault_history import Call


@dataclass(frozen=True, slots=True)
class Life:
    """How long a peer is to be there; times are in seconds on Redis' clock. A pinned peer goes for nobody's sweep."""

    expires: int | None = None
    pinned: bool = False
    created: int = 0

    def over(self, now: float) -> bool:
        """Whether its time is up."""
        return not self.pinned and self.expires is not None and self.expires <= now


FOR_EVER = Life()


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer in Redis or in the kernel."""

    addresses: frozenset[str]
    preshared_key: str = ""
    keepalive: int = 0
    #: What only Redis knows.
    life: Life = field(default=FOR_EVER, compare=False)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gateway's hash tells of it, and what that is about."""

    #: The hash.
    fields: Mapping[str, str]
    #: The epoch's own key.
    epoch: int
    #: The process of the writer that serves, and the device's public key and port; None where nobody can tell.
    writer: int | None = None
    public_key: str | None = None
    listen_port: int | None = None


@dataclass(frozen=True, slots=True)
class Final:
    """What was found after quiet."""

    redis: Mapping[str, PeerState]
    #: Redis' address hash: prefix → key.
    owners: Mapping[str, str]
    kernel: Mapping[str, PeerState]
    #: Per-peer routes on the device, and those that the peers in Redis need.
    routes: frozenset[str] = frozenset()
    routes_needed: frozenset[str] = frozenset()
    #: When, in seconds on Redis' clock; and how far that is ahead of the machine's monotonic one.
    now: float = 0.0
    lead: float = 0.0
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit script, as Redis reported it. ``wrote``: it stored a result. ``changed``: peers came or went."""

    request: str
    epoch: int
    #: The newest epoch that Redis had been heard to give when this came.
    newest: int
    wrote: bool
    changed: bool
    #: When it was carried out and until when that was allowed (0: no limit), in seconds on Redis' clock.
    at: float = 0.0
    deadline: float = 0.0
    #: The peers that it stores, and those that it removes.
    stores: Mapping[str, Life] = field(default_factory=dict[str, Life])
    removes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sighting:
    """What an observer wrote down of one peer: when it was last seen, on Redis' clock, and its traffic in bytes."""

    key: str
    last_seen: int
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What is known of sweeps and of those who ask for them."""

    #: Seconds between two sweeps; None: none were asked for.
    every: float | None = None
    sightings: Sequence[Sighting] = ()
    #: Seconds after which a sweep takes who never came; None: it takes for their expiry only. And who never comes.
    never_after: float | None = None
    silent: frozenset[str] = frozenset()
    #: Seconds from the fault's end to the observer's first sign of life; None: never.
    back_after: float | None = 0.0

    def may_go(self, key: str, life: Life) -> float:
        """From when on a sweep may take this peer, in seconds on Redis' clock; infinite: never."""
        ends = [float("inf")]
        if not life.pinned and life.expires is not None:
            ends.append(life.expires)
        if not life.pinned and self.never_after is not None and key in self.silent:
            ends.append(life.created + self.never_after)
        return min(ends)


@dataclass(frozen=True, slots=True)
class Window:
    """When Redis could not be reached, in whole or by some."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the judge sees of one run."""

    calls: Sequence[Call]
    final: Final
    #: What was there before the run, and that nobody in the run asked for.
    residents: Mapping[str, PeerState] = field(default_factory=dict[str, PeerState])
    commits: Sequence[Commit] = ()
    away: Sequence[Window] = ()
    #: Seconds from the fault's end to the first request that was carried out; None: never.
    back_after: float | None = 0.0
    #: When Redis came back without its last second, if it did: what was confirmed before may be lost.
    lost_at: float | None = None
    #: Whether all that its writer knew was lost as well, but for its redo file.
    redo_alone: bool = False
    #: When Redis answered, and took long: the machine was too busy.
    slow: Sequence[Window] = ()
    #: The gateway's facts before the run.
    facts_before: Facts | None = None
    upkeep: Upkeep = Upkeep()


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, and how one sees it."""

    invariant: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says. ``lost``: confirmed creates that no redo file may keep, as they hold a secret in clear."""

    violations: tuple[Violation, ...]
    lost: int = 0
