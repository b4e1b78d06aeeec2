"""What a scenario of the fault runs is, and what it gets to work with."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fault_evidence import Window
from fault_look import Plane
from fault_site import Site


@dataclass(frozen=True, slots=True)
class Work:
    """What the callers do during a fault: each makes so many calls, while there is time."""

    calls: int = 14
    threads: int = 3
    tasks: int = 3
    seconds: float = 4.0
    pace: float = 0.25
    timeouts: Sequence[float] = (0.8, 1.2, 2.0)
    bulk: bool = False
    #: Sweeps and reconciliations are asked for all the while, and many peers live for seconds only.
    upkeep: bool = False
    #: The threads' requests have deadlines unlike their timeouts.
    unlike: bool = False
    #: Seconds after which sweeps take who never came, where the scenario has the observer do so.
    never_after: float | None = None


@dataclass
class Run:
    """What a scenario gets: the site, chance, and where to say what it did."""

    site: Site
    rng: random.Random
    seed: str
    away: list[Window] = field(default_factory=list[Window])
    #: When Redis came back without its last second.
    lost_at: float | None = None
    #: Whether its writer died with it, so that nothing but the redo file is left.
    redo_alone: bool = False
    #: What else befell it, for the report.
    notes: list[str] = field(default_factory=list[str])

    def soon(self, low: float = 0.1, high: float = 1.5) -> None:
        """A random moment during the calls."""
        time.sleep(self.rng.uniform(low, high))

    @contextmanager
    def unreachable(self) -> Generator[None]:
        """Around what keeps callers from Redis; ends once it answers."""
        began = time.monotonic()
        try:
            yield
            self.site.redis_up()
        finally:
            self.away.append(Window(began, time.monotonic()))

    def happened(self, *, within: float = 4.0) -> bool:
        """Wait for the failpoints that were switched on; whether they have all happened."""
        until = time.monotonic() + within
        while self.site.failpoints_left and time.monotonic() < until:
            time.sleep(0.02)
        if left := self.site.failpoints_left:
            self.notes.append(f"did not happen: {left}")
            self.site.fail_at()
        return not left


@dataclass(frozen=True)
class Scenario:
    """One kind of fault. ``act`` returns when the fault is over; ``before`` and ``after`` stand outside the calls."""

    name: str
    act: Callable[[Run], None]
    work: Work = Work()
    planes: tuple[Plane, ...] = ("kernel", "memory")
    #: Whether it changes what other programs of the machine would feel.
    needs_own_machine: bool = False
    before: Callable[[Run], None] | None = None
    after: Callable[[Run], None] | None = None
