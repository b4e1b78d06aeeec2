"""What the callers of a fault run ask for: it follows from the run's seed alone."""

from __future__ import annotations

import base64
import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fault_history import Act, Call

#: With upkeep: how many peers that live for two seconds each caller makes first. Together they are several slices.
SHORT_LIVED = 14
#: Seconds that a peer lives which nobody will see expire.
LONG = 3600


def key_of(text: str) -> str:
    """A public key that follows from ``text``."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@dataclass(frozen=True, slots=True)
class Ask:
    """One call to make."""

    act: Act
    key: str
    request: str
    timeout: float
    wish: tuple[str, ...] = ()
    bulk: bool = False
    ttl: int | None = None
    pinned: bool = False
    #: Seconds in which the request may be carried out, where that is not its timeout.
    deadline: float | None = None

    @property
    def secret(self) -> bool:
        """Whether the wish has a preshared key."""
        return self.act == "create" and self.arguments()["preshared_key"] is not None

    def arguments(self) -> dict[str, Any]:
        """What a create asks for; secret and keepalive follow from the key, so that asking again is the same wish."""
        mark = hashlib.sha256(self.key.encode()).digest()
        return {
            "allowed_ips": list(self.wish) or None,
            "preshared_key": key_of(f"secret {self.key}") if mark[0] % 4 == 0 else None,
            "keepalive": 25 if mark[1] % 4 == 0 else 0,
            "ttl": self.ttl,
            "pinned": self.pinned,
        }

    def as_dict(self) -> dict[str, Any]:
        """For an order's JSON."""
        return asdict(self)


def ask_from(fields: dict[str, Any]) -> Ask:
    """From an order's JSON."""
    values = dict(fields)
    values["wish"] = tuple(fields["wish"])
    return Ask(**values)


#: What a create asks for besides its key: allowed IPs, ttl, pinned.
_Wish = tuple[tuple[str, ...], int | None, bool]
_PLAIN: _Wish = ((), None, False)


@dataclass
class Chooser:
    """What one caller asks next: mostly new peers, some deletes, some repetitions, some that must be refused.

    With ``upkeep`` most peers live for seconds, some are pinned, and what expires is deleted, asked for again or made
    anew to stay, before and after a sweep comes by.
    """

    gateway: str
    name: str
    seed: str
    timeouts: Sequence[float]
    contested: Sequence[str]
    bulk: bool = False
    upkeep: bool = False
    #: Whether requests have deadlines that differ from their callers' timeouts, as plain Celery allows.
    unlike: bool = False
    mine: list[str] = field(default_factory=list[str])
    _busy: set[str] = field(default_factory=set[str])
    _wishes: dict[str, _Wish] = field(default_factory=dict[str, _Wish])
    _past: list[Ask] = field(default_factory=list["Ask"])
    #: Keys that were deleted, to be created with another wish.
    _again: list[str] = field(default_factory=list[str])
    _count: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed} {self.name}")

    def next(self) -> Ask:
        """One call; ``learn`` is told how it ended."""
        self._count += 1
        request = f"{self.gateway}.{self.name}-{self._count}-{hashlib.sha256(self.seed.encode()).hexdigest()[:12]}"
        timeout = self.rng.choice(self.timeouts)
        ask = (self._of_short_life(request, timeout) if self.upkeep else None) or self._any(request, timeout)
        if self.unlike:
            ask = replace(ask, deadline=round(timeout * self.rng.choice([0.3, 0.6, 1.0, 2.5, 10.0]), 2))
        self._busy.add(ask.key)
        return ask

    def _any(self, request: str, timeout: float) -> Ask:
        chance = self.rng.random()
        free = [key for key in self.mine if key not in self._busy]
        if chance < 0.22 and free:
            return Ask("delete", self.rng.choice(free), request, timeout)
        if chance < 0.28 and free:
            return self._same(self.rng.choice(free), request, timeout)
        if chance < 0.33 and (past := [old for old in self._past if old.key not in self._busy]):
            old = self.rng.choice(past)  # the same request again
            return Ask(old.act, old.key, old.request, timeout, old.wish, ttl=old.ttl, pinned=old.pinned)
        if chance < 0.37:
            return Ask("delete", key_of(f"{self.seed} nobody {self._count}"), request, timeout)
        key = key_of(f"{self.seed} {self.name} {self._count}")
        wish: tuple[str, ...] = ()
        if chance < 0.47:
            wish = (self.rng.choice(self.contested), f"fd77::{self.rng.randrange(1, 4000):x}:0/112")
        ttl, pinned = self._life() if self.upkeep else (None, False)
        self._wishes[key] = (wish, ttl, pinned)
        return Ask("create", key, request, timeout, wish, self.bulk or chance > 0.9, ttl, pinned)

    def _same(self, key: str, request: str, timeout: float) -> Ask:
        wish, ttl, pinned = self._wishes.get(key, _PLAIN)
        return Ask("create", key, request, timeout, wish, ttl=ttl, pinned=pinned)

    def _life(self) -> tuple[int | None, bool]:
        chance = self.rng.random()
        if chance < 0.4:
            return self.rng.choice([None, LONG]), False
        return (self.rng.randint(1, 3), False) if chance < 0.85 else (None, True)

    def _of_short_life(self, request: str, timeout: float) -> Ask | None:
        """What only upkeep makes interesting; None: anything else."""
        if self._count <= SHORT_LIVED:
            key = key_of(f"{self.seed} {self.name} {self._count}")
            self._wishes[key] = ((), 2, False)
            return Ask("create", key, request, timeout, ttl=2)
        short = [key for key in self.mine if key not in self._busy and self._wishes.get(key, _PLAIN)[1] in (1, 2, 3)]
        chance = self.rng.random()
        if chance < 0.3 and self._again:
            key = self._again.pop(self.rng.randrange(len(self._again)))
            ttl, pinned = self.rng.choice([(None, False), (LONG, False), (None, True)])
            return Ask("create", key, request, timeout, ttl=ttl, pinned=pinned)
        if chance > 0.7 or not short:
            return None
        key = self.rng.choice(short)
        if chance < 0.5:
            return Ask("delete", key, request, timeout)
        if chance < 0.6:
            return self._same(key, request, timeout)
        return Ask("create", key, request, timeout, ttl=LONG)  # refused while it is there: another wish

    def asks(self, calls: int, until: float) -> Iterator[Ask]:
        """So many calls, as long as there is time."""
        for _ in range(calls):
            if time.monotonic() < until:
                yield self.next()

    def rest(self, done: Call, pace: float) -> float:
        """Seconds until the next call; longer after one that was not carried out."""
        if self.upkeep and self._count < SHORT_LIVED:
            return self.rng.uniform(0, 0.05)
        return self.rng.uniform(0, pace) + (0.15 if done.end != "ok" else 0.0)

    def learn(self, ask: Ask, done: Call) -> None:
        """What is known now; a key whose state is unknown is left alone from here on."""
        if not done.definite:
            return
        self._busy.discard(ask.key)
        if done.outcome != "unavailable":
            # Repeated only while nothing else was asked of the key since: a repetition answers of the past.
            self._past = [old for old in self._past if old.key != ask.key]
            self._past.append(ask)
        if done.end == "ok":
            self.mine = [key for key in self.mine if key != ask.key]
            if ask.act == "create":
                self.mine.append(ask.key)
                self._wishes[ask.key] = (ask.wish, ask.ttl, ask.pinned)
            elif self.upkeep and ask.key in self._wishes:
                self._again.append(ask.key)
