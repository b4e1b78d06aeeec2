"""One fault run from its seed: calls, a fault, its end, quiet, and the judge's verdict."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fault_calls import key_of
from fault_checker import Evidence, Final, Held, Verdict, Window, judge
from fault_history import Call, read
from fault_site import Plane, Site
from redis.exceptions import RedisError

#: Peers that stay from run to run: nobody asks for them, and every run must leave them alone.
RESIDENTS = 24
#: Seconds in which drift may still be mended after quiet: what a restart of Redis lost is noticed within two.
SETTLES_WITHIN = 8.0


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


@dataclass
class Run:
    """What a scenario gets: the site, chance, and where to say what it did."""

    site: Site
    rng: random.Random
    seed: str
    away: list[Window] = field(default_factory=list[Window])
    #: When Redis came back without its last second.
    lost_at: float | None = None
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


@dataclass(frozen=True)
class Report:
    """What came of one run."""

    seed: int
    scenario: str
    verdict: Verdict
    calls: int
    ok: int
    refused: int
    unknown: int
    back_after: float | None
    seconds: float
    notes: Sequence[str]
    artefacts: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "verdict": [str(found) for found in self.verdict.violations], "lost": self.verdict.lost}


class Bench:
    """Makes runs on one site, one after the other."""

    def __init__(self, site: Site, *, keep: Path | None = None) -> None:
        """``keep`` is where the artefacts of failing runs go."""
        self.site = site
        self._keep = keep
        self._count = 0

    def run(self, scenario: Scenario, seed: int) -> Report:
        """One run; raises nothing but what the bench itself does wrong."""
        began = time.monotonic()
        self._count += 1
        name = f"run{self._count}-{scenario.name}-{seed}"
        run = Run(self.site, random.Random(f"{scenario.name} {seed}"), f"{scenario.name} {seed} {self._count}")
        self.site.fail_at()
        residents, _ = self.site.in_redis()
        self.site.monitor.taken()
        if scenario.before is not None:
            scenario.before(run)
        histories = [self.site.callers.write_to(name)]
        self._begin_work(scenario.work, run)
        scenario.act(run)
        healed = time.monotonic()
        self.site.fail_at()
        if self.site.callers.answer() is None:
            self.site.callers.start()
            histories.append(self.site.callers.write_to(name))
        back_after = self._back(run, histories, healed)
        if scenario.after is not None:
            scenario.after(run)
            histories.append(self.site.callers.write_to(f"{name}-after"))
        if not self._settle(histories):
            run.notes.append("the lane did not empty")
            back_after = None
        calls = read(histories)
        final, verdict = self._judged(run, calls, residents, back_after)
        kept = self._keep_artefacts(name, histories, verdict, final)
        self._clear(final, residents)
        ends = [call.end for call in calls]
        return Report(
            seed=seed,
            scenario=scenario.name,
            verdict=verdict,
            calls=len(calls),
            ok=ends.count("ok"),
            refused=ends.count("refused"),
            unknown=ends.count("unknown") + ends.count("open"),
            back_after=back_after,
            seconds=time.monotonic() - began,
            notes=tuple(run.notes),
            artefacts=kept,
        )

    def _begin_work(self, work: Work, run: Run) -> None:
        self.site.callers.order(
            do="work",
            seed=run.seed,
            contested=[f"10.77.{number}.0/28" for number in range(8)],
            **{**asdict(work), "timeouts": list(work.timeouts)},
        )

    def _back(self, run: Run, histories: Sequence[Path], healed: float) -> float | None:
        """Seconds from the fault's end to the first answer of the writer to something that was asked afterwards."""
        number = 0
        while True:
            answered = [
                call.ended
                for call in read(histories)
                if call.end == "ok" and call.began >= healed and call.ended is not None
            ]
            if answered:
                return min(answered) - healed
            if time.monotonic() - healed > 45:
                return None
            number += 1
            key = key_of(f"{run.seed} probe {number}")
            request = f"{self.site.name}.probe-{number}-{self._count}"
            asked: dict[str, Any] = {"act": "create", "key": key, "request": request, "timeout": 1.0, "wish": ()}
            if self.site.callers.ask([asked]) != ["ok"]:
                time.sleep(0.1)

    def _settle(self, histories: Sequence[Path]) -> bool:
        """Ask again, with the same id, whatever has no definite answer; whether the lane is empty afterwards."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            calls = read(histories)
            known = {call.request for call in calls if call.definite}
            pending = {call.request: call for call in calls if call.request not in known}
            if not pending:
                break
            self.site.callers.ask(
                [
                    {"act": call.act, "key": call.key, "request": call.request, "timeout": 3.0, "wish": call.wish}
                    for call in pending.values()
                ]
            )
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if self.site.idle():
                return True
            time.sleep(0.02)
        return False

    def _judged(
        self, run: Run, calls: Sequence[Call], residents: dict[str, Held], back_after: float | None
    ) -> tuple[Final, Verdict]:
        commits = self.site.monitor.taken()
        until = time.monotonic() + SETTLES_WITHIN
        while True:
            final = self._final(until)
            verdict = judge(Evidence(calls, final, residents, commits, run.away, back_after, run.lost_at))
            mending = any(found.invariant in ("I1", "I2", "I3") for found in verdict.violations)
            if not mending or time.monotonic() > until:
                return final, verdict
            time.sleep(0.3)

    def _final(self, until: float) -> Final:
        while True:
            try:
                return self.site.final()
            except (RedisError, OSError, ValueError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _keep_artefacts(self, name: str, histories: Sequence[Path], verdict: Verdict, final: Final) -> str | None:
        if not verdict.violations or self._keep is None:
            return None
        target = self._keep / name
        target.mkdir(parents=True, exist_ok=True)
        for path in [*histories, *self.site.directory.glob("*.log")]:
            shutil.copy(path, target)
        (target / "verdict").write_text("\n".join(map(str, verdict.violations)) + "\n")
        (target / "final").write_text(repr(final) + "\n")
        return str(target)

    def _clear(self, final: Final, residents: dict[str, Held]) -> None:
        """Take the run's peers away, but for a few that stay."""
        spare = max(0, RESIDENTS - len(residents))
        fresh = sorted(key for key in final.redis if key not in residents)
        leaving = [*fresh[min(spare, 3) :], *sorted(residents)[RESIDENTS:]]
        self.site.callers.write_to(f"clearing-{self._count}")
        for start in range(0, len(leaving), 50):
            self.site.callers.ask(
                [
                    {
                        "act": "delete",
                        "key": key,
                        "request": f"{self.site.name}.clear-{self._count}-{start + place}",
                        "timeout": 8.0,
                        "wish": [],
                    }
                    for place, key in enumerate(leaving[start : start + 50])
                ]
            )
