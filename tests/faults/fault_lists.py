"""The callers of a fault run that ask by lists: each wish of a list is a call of the history."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from fault_choices import Ask, key_of
from fault_history import Call

from peerlane import Gateway
from peerlane.tasks.wire.model import PeerResult

#: How the token of a list's id begins: its commits are about calls of other ids.
LIST = "list-"
#: Lists of creates that one caller asks for at most.
MOST_LISTS = 40


class ListCaller:
    """Asks for lists of creates, and after each for a list of deletes of some of them."""

    def __init__(self, gateway: Gateway, name: str, seed: str, timeouts: Sequence[float]) -> None:
        self._gateway, self._name, self._seed, self._timeouts = gateway, name, seed, timeouts
        self._mark = hashlib.sha256(seed.encode()).hexdigest()[:12]

    def ask(
        self,
        until: float,
        begin: Callable[[Ask], tuple[Call, float]],
        end: Callable[[tuple[Call, float], PeerResult | Exception], Call],
    ) -> None:
        """Ask while there is time. ``begin`` notes a call, ``end`` what came of it."""
        rng = random.Random(f"{self._seed} {self._name}")
        for turn in range(MOST_LISTS):
            if time.monotonic() > until:
                return
            timeout = rng.choice(self._timeouts)
            keys = [key_of(f"{self._seed} {self._name} {turn} {at}") for at in range(rng.randint(20, 100))]
            made = self._list("create", keys, turn, timeout, begin, end)
            self._list("delete", [call.key for call in made if call.end == "ok"][::3], turn, timeout, begin, end)

    def _list(
        self,
        act: Any,
        keys: Sequence[str],
        turn: int,
        timeout: float,
        begin: Callable[[Ask], tuple[Call, float]],
        end: Callable[[tuple[Call, float], PeerResult | Exception], Call],
    ) -> list[Call]:
        # With its id a wish is asked again by itself, where nobody knows what became of its list.
        ids = [f"{self._gateway.name}.{self._name}-{turn}-{act}-{at}-{self._mark}" for at in range(len(keys))]
        identity = f"{self._gateway.name}.{LIST}{self._name}-{turn}{act[0]}-{self._mark}"
        asks = [Ask(act, key, request, timeout) for key, request in zip(keys, ids, strict=True)]
        begun = [begin(ask) for ask in asks]
        answers: Sequence[PeerResult | Exception]
        try:
            if act == "create":
                wishes = [_wish(ask) for ask in asks]
                answers = self._gateway.create_peers(cast("Any", wishes), timeout=timeout, request_id=identity)
            else:
                answers = self._gateway.delete_peers(keys, timeout=timeout, request_id=identity)
        except Exception as error:  # noqa: BLE001 - every end of a call is evidence
            answers = [error] * len(asks)
        return [end(call, answer) for call, answer in zip(begun, answers, strict=True)]


def of_a_list(request: str) -> bool:
    """Whether a request is a slice of one of these lists."""
    return request.partition(".")[2].startswith(LIST)


def _wish(ask: Ask) -> dict[str, Any]:
    return {"public_key": ask.key} | {name: value for name, value in ask.arguments().items() if value}
