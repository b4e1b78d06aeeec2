"""The history of a fault run: every call of every caller, written down before it is made and again when it ends.

One JSON line each, flushed at once: what a killed caller had begun is in the file too.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

#: Calls in one history; a run that makes more is a mistake, not a test.
MOST_CALLS = 20_000

Act = Literal["create", "delete"]
#: ``ok`` and ``refused`` are definite; ``broken`` is an answer that no caller may ever get; ``open`` is none at all.
End = Literal["ok", "refused", "unknown", "broken", "open"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call. Times are seconds on the machine's monotonic clock, which all its processes share."""

    number: str
    act: Act
    key: str
    request: str
    began: float
    timeout: float
    #: The allowed IPs that were asked for; empty: the gateway allocates.
    wish: tuple[str, ...] = ()
    #: Seconds after which the peer may go, where that was asked for; whether it may never.
    ttl: int | None = None
    pinned: bool = False
    #: Seconds after which the request may no longer be carried out; None: with its timeout. And whether its wish has a
    #: preshared key, which no redo file keeps in clear.
    deadline: float | None = None
    secret: bool = False
    ended: float | None = None
    end: End = "open"
    #: The outcome, or the error's code.
    outcome: str = ""
    addresses: tuple[str, ...] = ()
    #: When the peer was made and when it expires, as the caller was told: in seconds on Redis' clock.
    created: int | None = None
    expires: int | None = None
    #: Seconds during the call in which the caller's own process did not run: paused, or no CPU.
    stalled: float = 0.0
    #: What an error said.
    said: str = ""

    @property
    def definite(self) -> bool:
        """Whether the caller knows what became of it."""
        return self.end in ("ok", "refused")

    @property
    def outlived(self) -> bool:
        """Whether its request may be carried out after its caller has stopped waiting, unless it is cancelled."""
        return self.deadline is not None and self.deadline > self.timeout

    def over(self, now: float) -> bool:
        """Whether the time of the peer that was told of is up, ``now`` on Redis' clock."""
        return not self.pinned and self.expires is not None and self.expires <= now


class Stalls:
    """Notices when this process does not get to run: a caller that is stopped cannot take an answer."""

    _EVERY = 0.02

    def __init__(self) -> None:
        self._lost = 0.0
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(self._EVERY)
            now = time.monotonic()
            self._lost += max(0.0, now - self._last - 2 * self._EVERY)
            self._last = now

    @property
    def lost(self) -> float:
        """Seconds lost so far, with those that are being lost now."""
        return self._lost + max(0.0, time.monotonic() - self._last - 2 * self._EVERY)


@dataclass
class History:
    """Writes a history; threads share it."""

    path: Path
    caller: str
    stalls: Stalls = field(default_factory=Stalls)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(
        self,
        act: Act,
        key: str,
        request: str,
        timeout: float,
        wish: Iterable[str] = (),
        ttl: int | None = None,
        *,
        pinned: bool = False,
        deadline: float | None = None,
        secret: bool = False,
    ) -> tuple[Call, float]:
        """A call is about to be made. What is returned goes to ``end``."""
        with self._lock:
            self._count += 1
            number = f"{self.caller}-{self._count}"
        assert self._count <= MOST_CALLS, "a run that makes so many calls is a mistake"
        lost = self.stalls.lost
        call = Call(number, act, key, request, time.monotonic(), timeout, tuple(wish), ttl, pinned, deadline, secret)
        self._write(asdict(call))
        return call, lost

    def end(
        self,
        begun: tuple[Call, float],
        how: End,
        outcome: str,
        addresses: Iterable[str],
        said: str,
        created: int | None = None,
        expires: int | None = None,
    ) -> Call:
        """The call has ended."""
        call, lost = begun
        done = replace(
            call,
            ended=time.monotonic(),
            end=how,
            outcome=outcome,
            addresses=tuple(addresses),
            created=created,
            expires=expires,
            stalled=self.stalls.lost - lost,
            said=said[:300],
        )
        self._write(asdict(done))
        return done

    def _write(self, fields: dict[str, Any]) -> None:
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(fields) + "\n")


def read(paths: Iterable[Path]) -> list[Call]:
    """All calls of these histories, by the time they began; a call's later line wins over its earlier one."""
    calls: dict[str, Call] = {}
    for path in filter(Path.exists, paths):  # without a single call there is none
        for line in path.read_text().splitlines():
            try:
                fields = json.loads(line)
            except ValueError:  # the last line of a caller that was killed while it wrote
                continue
            fields |= {name: tuple(fields[name]) for name in ("wish", "addresses")}
            calls[fields["number"]] = Call(**fields)
    return sorted(calls.values(), key=lambda call: call.began)
