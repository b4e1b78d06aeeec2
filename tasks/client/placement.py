"""Which gateway takes a peer: the matching ones in their order, and why each of the others does not. Pure.

A list is asked for in rounds. In each, every wish that has no answer yet goes to the best gateway that has not refused
it. The rule is that of one create (``choose``), and what the list itself fills is reckoned with: most room first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from peerlane.tasks.errors import Draining, PeerlaneError, PoolExhausted, TimedOut, Unavailable
from peerlane.tasks.lane.slices import PeerAnswer
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wire.model import PeerResult

#: Refusals after which another gateway is asked: definite, and no fault of the wish. Not TimedOut: the caller's time
#: is up. Not OutcomeUnknown: the peer may be there, and asking elsewhere could make it twice.
RETRY_ELSEWHERE = (Unavailable, Draining, PoolExhausted)
#: Gateways named in a refusal.
TOLD = 50


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to be asked, in order, and why the others are not."""

    candidates: tuple[GatewayInfo, ...]
    #: Those of the region and the labels that take no peers now, each with the reason.
    passed: Mapping[str, str]
    #: Those that do not match, each with the reason: near misses (of the region, with another label) come first.
    elsewhere: Mapping[str, str]
    #: Whether the peer is on the one candidate already, so that no other may be asked.
    bound: bool = False


def matches(one: GatewayInfo, region: str | None, where: Mapping[str, str]) -> str | None:
    """None where the gateway is of the region and has the labels; else in what it is another."""
    if region is not None and one.region != region:
        return f"its region is {one.region}" if one.region else "it has no region"
    wrong = [name for name, value in where.items() if one.labels.get(name) != value]
    return f"its label {wrong[0]} is {one.labels.get(wrong[0], 'not set')}" if wrong else None


def choose(fleet: Iterable[GatewayInfo], region: str | None = None, where: Mapping[str, str] | None = None) -> Choice:
    """The matching gateways that take peers: most room first, then fewest waiting, then by name. Pure.

    A full one is asked last instead of never: what is known of its room is a second old.
    """
    candidates: list[GatewayInfo] = []
    passed: dict[str, str] = {}
    elsewhere: list[tuple[bool, str, str]] = []
    for one in fleet:
        if reason := matches(one, region, where or {}):
            elsewhere.append((region is not None and one.region != region, one.name, reason))
        elif one.state != "active":
            passed[one.name] = f"it is {one.state}"
        else:
            candidates.append(one)
    candidates.sort(key=lambda one: (-one.room, one.waiting, one.name))
    return Choice(tuple(candidates), passed, {name: reason for _, name, reason in sorted(elsewhere)})


class Placement:
    """The candidates of one request, one after the other while time is left, and why each did not take the peer."""

    def __init__(self, choice: Choice, within: float, asked_for: str = "") -> None:
        self._choice = choice
        self._asked_for = asked_for
        self._within = within
        self._until = time.monotonic() + within
        self._reasons = dict(choice.passed)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        for one in self._choice.candidates:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimedOut(f"no gateway has taken the peer within {self._within:g} s: {self._told()}")
            yield one.name, left

    def refused(self, gateway: str, refusal: PeerlaneError) -> None:
        """``gateway`` has refused; on to the next, unless the peer is bound to this one: then the refusal is raised."""
        if self._choice.bound:
            raise refusal
        self._reasons[gateway] = refusal.message

    def note(self, reasons: Mapping[str, str]) -> None:
        """Why some have not taken it."""
        self._reasons |= reasons

    def nobody(self) -> PeerlaneError:
        """What to raise once all have refused."""
        if not self._reasons and not self._choice.elsewhere:
            return Unavailable("no gateway is registered; `peerlane gateway run NAME` starts one")
        return Unavailable(f"no gateway{self._asked_for} takes the peer: {self._told()}", 5.0)

    def _told(self) -> str:
        """Why each was not chosen; those of another region or other labels come last, near misses before the rest."""
        told = [*sorted(self._reasons.items()), *self._choice.elsewhere.items()]
        more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
        return "; ".join(f"{name}: {reason}" for name, reason in told[:TOLD]) + more


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
        """``bound``: wishes whose peer is on a gateway already, and on which; no other is asked for them."""
        self._choice, self._asked_for = choice, asked_for
        self._bound = bound
        self._candidates = [_Candidate(one, one.room) for one in choice.candidates]
        self._open = {place: _Open() for place in range(count)}
        self._answers: dict[int, PeerAnswer] = {}
        #: Gateways that have refused a wish as one that takes none now: no others are sent there.
        self._closed: set[str] = set()

    def next_round(self) -> Round:
        """Who is to be asked for what; nothing once each wish has its answer."""
        found: Round = {}
        for place, wish in list(self._open.items()):
            gateway = self._bound.get(place) or self._best(wish)
            if gateway is None:
                self._answers[place] = self._nobody(wish)
                del self._open[place]
            else:
                found.setdefault(gateway, []).append(place)
        return found

    def _best(self, wish: _Open) -> str | None:
        left = [one for one in self._candidates if one.about.name not in wish.refused.keys() | self._closed]
        if not left:
            return None
        best = min(left, key=lambda one: (-one.room, one.about.waiting, one.about.name))
        best.room -= 1
        return best.about.name

    def heard(self, gateway: str, places: Sequence[int], answers: Sequence[PeerAnswer]) -> None:
        """What a gateway has answered; what it cannot take goes to another in the next round."""
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, RETRY_ELSEWHERE) and place not in self._bound:
                self._open[place].refused[gateway] = answer.message
                self._closed.add(gateway)
            else:
                self._answers[place] = answer
                del self._open[place]

    def _nobody(self, wish: _Open) -> PeerAnswer:
        placement = Placement(self._choice, 0.0, self._asked_for)
        for gateway in self._closed - wish.refused.keys():
            wish.refused[gateway] = "it has refused others of the list"
        placement.note(wish.refused)
        return placement.nobody()

    @property
    def answers(self) -> list[PeerAnswer]:
        """In the order of the wishes, once there are no more rounds."""
        return [self._answers[place] for place in sorted(self._answers)]


class ListRemoval:
    """One list of deletes: each key goes to every gateway that holds it."""

    def __init__(self, keys: Sequence[object], holders: Mapping[int, Sequence[str]], anywhere: str | None) -> None:
        """``anywhere`` is who answers for keys that nobody holds, and refuses what is no key."""
        self._keys = keys
        self._heard: dict[int, list[PeerAnswer]] = {}
        self.round: Round = {}
        for place in range(len(keys)):
            for gateway in holders.get(place) or ([anywhere] if anywhere else []):
                self.round.setdefault(gateway, []).append(place)

    def heard(self, places: Sequence[int], answers: Sequence[PeerAnswer]) -> None:
        """What a gateway has answered."""
        for place, answer in zip(places, answers, strict=True):
            self._heard.setdefault(place, []).append(answer)

    def answer(self, place: int, nobody: PeerAnswer) -> PeerAnswer:
        """Of several gateways' the one that says most: an error, else that the peer was deleted."""
        told = self._heard.get(place, [nobody])
        return max(told, key=lambda each: 1 if isinstance(each, PeerResult) and each.outcome == "absent" else 2)
