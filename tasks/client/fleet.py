"""Creates peers for callers that name no gateway: by region and labels, on the undrained one with most room."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from itertools import islice
from operator import attrgetter
from typing import Any, TypedDict, Unpack, cast

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.client.gateway import Gateway, gateways
from peerlane.tasks.client.placement import (
    RETRY_ELSEWHERE,
    ListAnswer,
    ListPlacement,
    ListRemoval,
    Placement,
    Placing,
    Round,
    asked_for,
    binds,
    choose,
    matches,
)
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.lane import tasks
from peerlane.tasks.lane.request import Timeout, seconds_of
from peerlane.tasks.lane.slices import WINDOW, PeerAnswer, PeerWish, ask_slices, cut, interleaved, new_list_id
from peerlane.tasks.lane.telemetry import counted_for
from peerlane.tasks.redis.errors import reaching
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wire.bulk import SLICE
from peerlane.tasks.wire.model import DeletePeer, PeerResult, is_key, parse

#: Keys looked for on every gateway in one round trip.
LOOKED_UP = 500


class Wish(TypedDict, total=False):
    """The arguments of ``Gateway.create_peer`` besides the key. Without a request id, which belongs to one gateway."""

    allowed_ips: Sequence[str] | None
    preshared_key: str | None
    keepalive: int
    ttl: float | timedelta | None
    labels: Mapping[str, str] | None
    pinned: bool
    bulk: bool


class _How(TypedDict, total=False):
    """The arguments of ``Fleet.create_peers`` besides the wishes."""

    region: str | None
    where: Mapping[str, str] | None
    timeout: Timeout | None


class Fleet:
    """All gateways, seen from an API host. Threads may share it."""

    def __init__(self, app: PeerlaneApp | None = None, *, timeout: Timeout | None = None) -> None:
        self._app = app or tasks.app
        self._timeout = timeout

    def gateways(self) -> list[GatewayInfo]:
        """Every registered gateway, by name. Raises OutcomeUnknown where Redis cannot be reached."""
        return gateways(self._app)

    def create_peer(
        self,
        public_key: str,
        *,
        region: str | None = None,
        where: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
        **wish: Unpack[Wish],
    ) -> PeerResult:
        """Create a peer on the best gateway of ``region`` whose labels include ``where``; the result names it.

        A gateway that refuses because it is down, drained or full is passed over for the next. Any other refusal is
        the answer. So is a TimedOut, for the caller's time is up, and an OutcomeUnknown: the peer may be there, and
        asking elsewhere could make it twice. ``timeout`` is for all gateways together.

        Asked again, the same key stays where it is: a matching gateway that has it is the only one asked, also while
        it is down or drained; delete the peer there, or let it expire, to let it move. Two calls with one key at the
        same moment do not see each other: keep a key to one caller.

        Raises:
            Unavailable: no gateway can take it; names each and why.
            PeerlaneError: as Gateway.create_peer.
        """
        turns = self.turns(public_key, region, where, timeout)
        for gateway, left in turns:
            try:
                return Gateway(gateway, app=self._app).create_peer(public_key, timeout=left, **wish)
            except RETRY_ELSEWHERE as refusal:
                turns.refused(gateway, refusal)
        raise turns.no_gateway()

    def create_peers(
        self,
        wishes: Iterable[PeerWish] | Iterable[Mapping[str, Any]],
        *,
        region: str | None = None,
        where: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
    ) -> list[PeerAnswer]:
        """Create many peers, each on the gateway that ``create_peer`` would choose. Returns their answers in order.

        A list fills what has most room first, so it spreads over gateways of one size. What a gateway refuses as one
        that is down, drained or full is sent to the next; a key that a matching gateway has stays there. Answers are
        as those of ``Gateway.create_peers``, errors as values; ``timeout`` is for each slice on each gateway. Left by
        an exception, it cancels what is on its way.

        Raises:
            OutcomeUnknown: Redis could not be reached to choose the gateways; nothing was sent.
        """
        return _in_order(self.creating(list(wishes), region=region, where=where, timeout=timeout))

    def creating(
        self, wishes: Sequence[object], *, size: int = SLICE, window: int = WINDOW, **how: Unpack[_How]
    ) -> Generator[ListAnswer]:
        """As ``create_peers``; yields each answer when it is final. Closed early, it cancels what is on its way.

        ``size``: wishes in a slice. ``window``: slices on their way to one gateway.
        """
        within = self._within(how.get("timeout"))
        placement = self.place_list(wishes, how.get("region"), how.get("where"))
        while asked := placement.next_round():
            with closing(
                self._ask_lists(names.CREATE_PEERS, wishes, asked, within, size=size, window=window)
            ) as answered:
                for gateway, places, answers in answered:
                    yield from placement.heard(gateway, places, answers)
        yield from placement.unplaced

    def delete_peers(
        self,
        public_keys: Iterable[str],
        *,
        region: str | None = None,
        where: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
    ) -> list[PeerAnswer]:
        """Delete many peers, each from every matching gateway that has it. Returns results and errors in order.

        A key is ``deleted`` where all that had it have deleted it; an error of any of them is its answer. Of a key that
        none has, a gateway that serves its lane says that it is absent. As ``create_peers``.
        """
        return _in_order(self.deleting(list(public_keys), region=region, where=where, timeout=timeout))

    def deleting(
        self, public_keys: Sequence[object], *, size: int = SLICE, window: int = WINDOW, **how: Unpack[_How]
    ) -> Generator[ListAnswer]:
        """As ``delete_peers``; yields as ``creating``."""
        within = self._within(how.get("timeout"))
        removal, no_gateway = self.find_list(public_keys, how.get("region"), how.get("where"))
        with closing(
            self._ask_lists(names.DELETE_PEERS, public_keys, removal.round, within, size=size, window=window)
        ) as answered:
            for gateway, places, answers in answered:
                yield from removal.heard(gateway, places, answers)
        yield from removal.unheard(no_gateway)

    def _within(self, timeout: Timeout | None) -> float:
        return seconds_of(timeout, self._timeout, self._app.settings.timeout)

    def _ask_lists(
        self, task: str, items: Sequence[object], asked: Round, within: float, *, size: int, window: int
    ) -> Generator[tuple[str, list[int], list[PeerAnswer]]]:
        """Send each gateway its items, all at the same time; yields gateway, places and answers of each slice."""
        left = {gateway: iter(places) for gateway, places in asked.items()}
        lists = [
            cut(task, gateway, [items[place] for place in places], new_list_id(gateway), size=size, new=True)
            for gateway, places in asked.items()
        ]
        sent = ask_slices(self._app, interleaved(lists), timeout=within, window=window * len(asked))
        with counted_for(asked), closing(sent) as answered:
            for part, answers in answered:
                yield part.gateway, list(islice(left[part.gateway], len(answers))), answers

    def place_list(
        self, wishes: Sequence[object], region: str | None, where: Mapping[str, str] | None
    ) -> ListPlacement:
        """The placement of a list's wishes. Raises OutcomeUnknown if Redis cannot be reached."""
        fleet = self.gateways()
        matching = [info.name for info in fleet if matches(info, region, where or {}) is None]
        keys = [
            cast("Mapping[str, object]", wish).get("public_key") if isinstance(wish, Mapping) else None
            for wish in wishes
        ]
        holders = self._holders_of(keys, matching, binding=True)
        bound = {place: names_of[0] for place, names_of in holders.items()}
        return ListPlacement(len(wishes), choose(fleet, region, where), asked_for(region, where), bound)

    def find_list(
        self, keys: Sequence[object], region: str | None, where: Mapping[str, str] | None
    ) -> tuple[ListRemoval, PeerlaneError]:
        """The removal of a list's keys, and the error if no gateway could answer. Raises as ``place_list``."""
        fleet = self.gateways()
        matching = [info for info in fleet if matches(info, region, where or {}) is None]
        holders = self._holders_of(keys, [info.name for info in matching], binding=False)
        serving = next((info.name for info in matching if info.state in ("active", "draining")), None)
        no_gateway = Placement(choose(fleet, region, where), 0.0, asked_for(region, where)).no_gateway()
        return ListRemoval(keys, holders, serving), no_gateway

    def _holders_of(self, keys: Sequence[object], among: Sequence[str], *, binding: bool) -> dict[int, list[str]]:
        """The gateways of ``among`` that have these peers, by position; ``binding``: only unexpired peers count."""
        holders: dict[int, list[str]] = {}
        sound = [(place, key) for place, key in enumerate(keys) if is_key(key)]
        redis = lanes_of(self._app).redis
        for start in range(0, len(sound) if among else 0, LOOKED_UP):
            page = sound[start : start + LOOKED_UP]
            pipe = redis.pipeline(transaction=False)
            for name in among:
                for _, key in page:  # not HMGET, which API hosts may not call here
                    pipe.hget(names.peers_key(name), key)
            pipe.time()
            with reaching("nothing was sent"):
                *records, (now, _) = pipe.execute()
            for number, record in enumerate(records):
                place, key = page[number % len(page)]
                if record and (not binding or binds(key, record, now)):
                    holders.setdefault(place, []).append(among[number // len(page)])
        return holders

    def turns(
        self, public_key: str, region: str | None, where: Mapping[str, str] | None, timeout: Timeout | None = None
    ) -> Placement:
        """The gateways to ask for this key, in order.

        Raises:
            Invalid: not a public key.
            OutcomeUnknown: Redis could not be reached; nothing was sent.
        """
        within = self._within(timeout)
        (turns,) = self.turns_of([Placing(public_key, region, where, within, time.monotonic() + within)])
        if isinstance(turns, Exception):
            raise turns
        return turns

    def turns_of(self, placings: Sequence[Placing]) -> list[Placement | Exception]:
        """The gateways to ask for each of these, or why there are none. All are read together.

        Raises:
            OutcomeUnknown: Redis could not be reached; nothing was sent.
        """
        fleet = self.gateways()
        return [
            turns
            for start in range(0, len(placings), LOOKED_UP)
            for turns in self._turns_of(placings[start : start + LOOKED_UP], fleet)
        ]

    def _turns_of(self, placings: Sequence[Placing], fleet: Sequence[GatewayInfo]) -> list[Placement | Exception]:
        pipe = lanes_of(self._app).redis.pipeline(transaction=False)
        pipe.time()
        asked: list[list[GatewayInfo] | Exception] = []
        for placing in placings:
            try:
                matching = [info for info in fleet if matches(info, placing.region, placing.where or {}) is None]
                if matching:
                    parse(DeletePeer, {"gateway": matching[0].name, "public_key": placing.public_key})
            except Exception as error:  # noqa: BLE001 - it is that caller's alone
                asked.append(error)
                continue
            for info in matching:
                pipe.hget(names.peers_key(info.name), placing.public_key)
            asked.append(matching)
        with reaching("nothing was sent"):
            (now, _), *records = pipe.execute()
        left = iter(records)
        return [
            matching
            if isinstance(matching, Exception)
            else placing.turns(fleet, matching, list(islice(left, len(matching))), now)
            for placing, matching in zip(placings, asked, strict=True)
        ]


def _in_order(answers: Iterable[ListAnswer]) -> list[PeerAnswer]:
    """The answers by their places."""
    return [reply.answer for reply in sorted(answers, key=attrgetter("place"))]
