"""Chooses gateways for peers: the matching ones in order, and the reason why each other is not chosen. Pure.

A list is sent in rounds. In each round, every wish without an answer goes to the best gateway that has not refused it.
The rule is that of one create (``choose``): most room first, and peers of the same list count.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from peerlane.tasks.admission.lane_state import spread
from peerlane.tasks.errors import Draining, PeerlaneError, PoolExhausted, StorageError, TimedOut, Unavailable
from peerlane.tasks.lane.slices import PeerAnswer
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wire.model import PeerResult
from peerlane.tasks.wire.stored_peer import Peer

#: Refusals after which another gateway is asked: definite, and no fault of the wish. Not TimedOut: the caller's time
#: is up. Not OutcomeUnknown: the peer may be there, and asking elsewhere could make it twice.
RETRY_ELSEWHERE = (Unavailable, Draining, PoolExhausted)
#: Gateways named in a refusal.
LISTED = 50


@dataclass(frozen=True, slots=True)
class Choice:
    """The gateways to ask, in order, and why the others are not asked."""

    candidates: tuple[GatewayInfo, ...]
    #: Those of the region and the labels that take no peers now, each with the reason.
    passed: Mapping[str, str]
    #: Those that do not match, each with the reason: near misses (of the region, with another label) come first.
    elsewhere: Mapping[str, str]
    #: Whether the peer is on the one candidate already, so that no other may be asked.
    bound: bool = False


def matches(info: GatewayInfo, region: str | None, where: Mapping[str, str]) -> str | None:
    """Why the gateway does not match the region and the labels; None if it does."""
    if region is not None and info.region != region:
        return f"its region is {info.region}" if info.region else "it has no region"
    wrong = [name for name, value in where.items() if info.labels.get(name) != value]
    return f"its label {wrong[0]} is {info.labels.get(wrong[0], 'not set')}" if wrong else None


def choose(fleet: Iterable[GatewayInfo], region: str | None = None, where: Mapping[str, str] | None = None) -> Choice:
    """The matching gateways that take peers: most room first, then fewest waiting, then by name. Pure.

    A full one is asked last instead of never: what is known of its room is a second old.
    """
    candidates: list[GatewayInfo] = []
    passed: dict[str, str] = {}
    elsewhere: list[tuple[bool, str, str]] = []
    for info in fleet:
        if reason := matches(info, region, where or {}):
            elsewhere.append((region is not None and info.region != region, info.name, reason))
        elif info.state != "active":
            passed[info.name] = f"it is {info.state}"
        else:
            candidates.append(info)
    candidates.sort(key=lambda info: (-info.room, info.waiting, info.name))
    return Choice(tuple(candidates), passed, {name: reason for _, name, reason in sorted(elsewhere)})


class Placement:
    """Iterates over the candidates of one request while time is left, and collects why each refused."""

    def __init__(self, choice: Choice, within: float, asked_for: str = "", *, until: float | None = None) -> None:
        """``until``: when the time is up, on the monotonic clock; ``within`` seconds from now if it is not given."""
        self._choice = choice
        self._asked_for = asked_for
        self._within = within
        self._until = time.monotonic() + within if until is None else until
        self._reasons = dict(choice.passed)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        for info in self._choice.candidates:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimedOut(f"no gateway has taken the peer within {self._within:g} s: {self._listed()}")
            yield info.name, left

    def refused(self, gateway: str, refusal: PeerlaneError) -> None:
        """Note a refusal, and raise it if the peer is bound to this gateway."""
        if self._choice.bound:
            raise refusal
        self._reasons[gateway] = refusal.message

    def note(self, reasons: Mapping[str, str]) -> None:
        """Note why gateways have not taken it."""
        self._reasons |= reasons

    def no_gateway(self) -> PeerlaneError:
        """The error if all have refused."""
        if not self._reasons and not self._choice.elsewhere:
            return Unavailable("no gateway is registered; `peerlane gateway run NAME` starts one")
        return Unavailable(f"no gateway{self._asked_for} takes the peer: {self._listed()}", spread(5.0))

    def _listed(self) -> str:
        """The reasons, gateway by gateway; those of another region or other labels come last."""
        reasons = [*sorted(self._reasons.items()), *self._choice.elsewhere.items()]
        more = f"; and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
        return "; ".join(f"{name}: {reason}" for name, reason in reasons[:LISTED]) + more


def asked_for(region: str | None, where: Mapping[str, str] | None) -> str:
    """The region and labels that were asked for, as part of a sentence."""
    parts = [f"region {region}"] if region else []
    parts += [f"{name}={value}" for name, value in (where or {}).items()]
    return " with " + ", ".join(parts) if parts else ""


def binds(public_key: str, record: bytes, now: int) -> bool:
    """Whether a peer's record binds its key to that gateway: it has not expired. ``now`` is in s on Redis' clock."""
    try:
        peer = Peer.from_record(public_key, record)
    except (ValueError, StorageError):
        return True  # its gateway has to refuse what it cannot read
    return peer.pinned or peer.expires_at is None or peer.expires_at > now


@dataclass(frozen=True, slots=True)
class Placing:
    """A request for a peer on any gateway."""

    public_key: str
    region: str | None
    where: Mapping[str, str] | None
    #: Seconds that its caller waits, and until when, on the monotonic clock.
    within: float
    until: float

    def turns(
        self, fleet: Sequence[GatewayInfo], matching: Sequence[GatewayInfo], records: Sequence[bytes | None], now: int
    ) -> Placement:
        """The gateways to ask; ``records`` are the peer's on those that match, and ``now`` is in s on Redis' clock."""
        choice = choose(fleet, self.region, self.where)
        for info, record in zip(matching, records, strict=True):
            if record and binds(self.public_key, record, now):
                choice = Choice((info,), {}, {}, bound=True)
                break
        return Placement(choice, self.within, asked_for(self.region, self.where), until=self.until)


@dataclass(frozen=True, slots=True)
class ListAnswer:
    """The answer to one item of a list."""

    #: Its place in the list.
    place: int
    answer: PeerAnswer
    #: Who gave it; None if no gateway was asked, or none took it.
    gateway: str | None = None


#: Which wishes of the list, by their places in it, go to which gateway.
Round = dict[str, list[int]]


@dataclass(slots=True)
class _Candidate:
    about: GatewayInfo
    room: int


@dataclass(slots=True)
class _Open:
    """A wish without an answer."""

    refused: dict[str, str] = field(default_factory=dict[str, str])


class ListPlacement:
    """One list of creates: its rounds, until every wish has an answer."""

    def __init__(self, count: int, choice: Choice, asked_for: str, bound: Mapping[int, str]) -> None:
        """``bound``: the gateways of wishes whose peer exists already; no other gateway is asked for them."""
        self._choice, self._asked_for = choice, asked_for
        self._bound = bound
        self._candidates = [_Candidate(info, info.room) for info in choice.candidates]
        self._open = {place: _Open() for place in range(count)}
        self._answers: dict[int, PeerAnswer] = {}
        #: The answers to wishes that no gateway takes.
        self.unplaced: list[ListAnswer] = []
        #: Gateways that have refused a wish as one that takes none now: no others are sent there.
        self._closed: set[str] = set()

    def next_round(self) -> Round:
        """The gateways of the next round with their wishes; empty if each wish has its answer."""
        chosen: Round = {}
        for place, wish in list(self._open.items()):
            gateway = self._bound.get(place) or self._best(wish)
            if gateway is None:
                self._answers[place] = self._no_gateway(wish)
                self.unplaced.append(ListAnswer(place, self._answers[place]))
                del self._open[place]
            else:
                chosen.setdefault(gateway, []).append(place)
        return chosen

    def _best(self, wish: _Open) -> str | None:
        out = wish.refused.keys() | self._closed
        left = [candidate for candidate in self._candidates if candidate.about.name not in out]
        if not left:
            return None
        best = min(left, key=lambda candidate: (-candidate.room, candidate.about.waiting, candidate.about.name))
        best.room -= 1
        return best.about.name

    def heard(self, gateway: str, places: Sequence[int], answers: Sequence[PeerAnswer]) -> list[ListAnswer]:
        """Take a gateway's answers; returns those that are final. Its other wishes go elsewhere in the next round."""
        final: list[ListAnswer] = []
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, RETRY_ELSEWHERE) and place not in self._bound:
                self._open[place].refused[gateway] = answer.message
                self._closed.add(gateway)
            else:
                self._answers[place] = answer
                final.append(ListAnswer(place, answer, gateway))
                del self._open[place]
        return final

    def _no_gateway(self, wish: _Open) -> PeerAnswer:
        placement = Placement(self._choice, 0.0, self._asked_for)
        for gateway in self._closed - wish.refused.keys():
            wish.refused[gateway] = "it has refused others of the list"
        placement.note(wish.refused)
        return placement.no_gateway()

    @property
    def answers(self) -> list[PeerAnswer]:
        """The answers in the order of the wishes, after the last round."""
        return [self._answers[place] for place in sorted(self._answers)]


class ListRemoval:
    """One list of deletes: each key goes to every gateway that has it."""

    def __init__(self, keys: Sequence[object], holders: Mapping[int, Sequence[str]], anywhere: str | None) -> None:
        """``anywhere`` is the gateway that answers for keys that no gateway has, and for malformed keys."""
        self._count = len(keys)
        self._heard: dict[int, list[ListAnswer]] = {}
        self._left: Counter[int] = Counter()
        self.round: Round = {}
        for place in range(len(keys)):
            for gateway in holders.get(place) or ([anywhere] if anywhere else []):
                self.round.setdefault(gateway, []).append(place)
                self._left[place] += 1

    def heard(self, gateway: str, places: Sequence[int], answers: Sequence[PeerAnswer]) -> list[ListAnswer]:
        """Take a gateway's answers; returns those of keys for which each of their gateways has answered."""
        for place, answer in zip(places, answers, strict=True):
            self._heard.setdefault(place, []).append(ListAnswer(place, answer, gateway))
            self._left[place] -= 1
        return [max(self._heard[place], key=_weight) for place in places if self._left[place] == 0]

    def unheard(self, no_gateway: PeerAnswer) -> list[ListAnswer]:
        """The answers to keys for which no gateway was asked."""
        return [ListAnswer(place, no_gateway) for place in range(self._count) if place not in self._left]

    def answers(self, no_gateway: PeerAnswer) -> list[PeerAnswer]:
        """The answers in the order of the keys: an error of any gateway, else ``deleted``, else ``absent``."""
        return [
            max(self._heard.get(place, [ListAnswer(place, no_gateway)]), key=_weight).answer
            for place in range(self._count)
        ]


def _weight(reply: ListAnswer) -> int:
    """The rank of an answer among those for one key. An error is first: the peer may still be there."""
    if not isinstance(reply.answer, PeerResult):
        return 3
    return 1 if reply.answer.outcome == "absent" else 2
