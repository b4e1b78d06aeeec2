"""One fault run from its seed: calls, a fault, its end, quiet, and the judge's verdict."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fault_checker import judge
from fault_choices import Ask, key_of
from fault_evidence import Commit, Evidence, Facts, Final, PeerState, Sighting, Upkeep, Verdict
from fault_history import Call, read
from fault_lists import of_a_list
from fault_observed import talks
from fault_play import Run, Scenario, Work
from fault_site import UPKEEP, Site
from fault_upkeep import asked_for
from redis.exceptions import RedisError

#: Peers that stay from run to run: nobody asks for them, and every run must leave them alone.
RESIDENTS = 24
#: Seconds in which drift may still be mended after quiet: what a restart of Redis lost is noticed within two.
SETTLES_WITHIN = 8.0
#: Seconds after the last commit in which the writer has told what came of it.
TOLD_WITHIN = 2.0
#: What drift shows in.
MENDED = ("I1", "I2", "I3", "I9", "I12")


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
    observer_back_after: float | None
    swept: int
    seconds: float
    notes: Sequence[str]
    artefacts: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "verdict": [str(violation) for violation in self.verdict.violations],
            "lost": self.verdict.lost,
        }


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
        residents, _ = self.site.outside.in_redis()
        facts = self.site.outside.facts()
        self.site.monitor.taken()
        self.site.monitor.sightings()
        if scenario.before is not None:
            scenario.before(run)
        histories = [self.site.callers.write_to(name)]
        self._begin_work(scenario.work, run)
        with self._upkept(scenario.work):
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
                self.site.observed(since=time.monotonic())  # it may have been started anew
            if not self._settle(histories):
                run.notes.append("the lane did not empty")
                back_after = None
            calls = read(histories)
            observer_back = self._observer_back(healed)
            backs = (back_after, observer_back)
            final, evidence, verdict = self._judged(run, scenario.work, calls, residents, facts, backs)
        kept = self._keep_artefacts(name, histories, verdict, final, evidence.commits)
        self._clear(final, residents)
        ends = [call.end for call in calls]
        asked = {call.request for call in calls}
        return Report(
            seed=seed,
            scenario=scenario.name,
            verdict=verdict,
            calls=len(calls),
            ok=ends.count("ok"),
            refused=ends.count("refused"),
            unknown=ends.count("unknown") + ends.count("open"),
            back_after=back_after,
            observer_back_after=observer_back,
            swept=sum(
                len(commit.removes)
                for commit in evidence.commits
                if commit.request not in asked and not of_a_list(commit.request)
            ),
            seconds=time.monotonic() - began,
            notes=tuple(run.notes),
            artefacts=kept,
        )

    @contextmanager
    def _upkept(self, work: Work) -> Generator[None]:
        if not work.upkeep:
            yield
            return
        with asked_for(self.site.socket, self.site.name):
            yield

    def _observer_back(self, healed: float) -> float | None:
        try:
            return self.site.observed(since=healed, within=max(0.1, healed + 45 - time.monotonic())) - healed
        except AssertionError:
            return None

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
            if self.site.callers.ask([Ask("create", key, request, 1.0)]) != ["ok"]:
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
                    Ask(call.act, call.key, call.request, 3.0, call.wish, ttl=call.ttl, pinned=call.pinned)
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
        self,
        run: Run,
        work: Work,
        calls: Sequence[Call],
        residents: dict[str, PeerState],
        before: Facts,
        backs: tuple[float | None, float | None],
    ) -> tuple[Final, Evidence, Verdict]:
        until, latest = time.monotonic() + SETTLES_WITHIN, time.monotonic() + SETTLES_WITHIN + 2 * TOLD_WITHIN
        seq: str | None = None
        commits: list[Commit] = []
        sightings: list[Sighting] = []
        while True:
            final = self._final(until)
            if final.facts is not None and final.facts.fields.get("seq") != seq:
                seq = final.facts.fields.get("seq")
                until = max(until, min(time.monotonic() + TOLD_WITHIN, latest))
            commits += self.site.monitor.taken()
            sightings += self.site.monitor.sightings()
            every = float(UPKEEP["sweep_every"]) if work.upkeep else None
            upkeep = Upkeep(
                every,
                tuple(sightings),
                work.never_after,
                self._silent({*residents, *(c.key for c in calls)}),
                backs[1],
            )
            evidence = Evidence(
                calls,
                final,
                residents,
                tuple(commits),
                run.away,
                backs[0],
                run.lost_at,
                run.redo_alone,
                self.site.reach.slow_since(run.began),
                before,
                upkeep,
            )
            verdict = judge(evidence)
            mending = any(violation.invariant in MENDED for violation in verdict.violations)
            # What is about to expire is waited for: only then one sees whether it goes.
            waiting = work.upkeep and any(_short(stored, final.now) for stored in final.redis.values())
            if not (mending or waiting) or time.monotonic() > until:
                return final, evidence, verdict
            time.sleep(0.3)

    def _silent(self, keys: Iterable[str]) -> frozenset[str]:
        """Who never comes: nobody does on a real device, where callers make no tunnels."""
        return frozenset(key for key in keys if self.site.plane == "kernel" or not talks(key))

    def _final(self, until: float) -> Final:
        while True:
            try:
                return self.site.outside.final(self.site.writer)
            except (RedisError, OSError, ValueError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _keep_artefacts(
        self, name: str, histories: Sequence[Path], verdict: Verdict, final: Final, commits: Sequence[Commit]
    ) -> str | None:
        if not verdict.violations or self._keep is None:
            return None
        target = self._keep / name
        target.mkdir(parents=True, exist_ok=True)
        for path in filter(Path.exists, [*histories, *self.site.directory.glob("*.log")]):
            shutil.copy(path, target)
        (target / "verdict").write_text("\n".join(map(str, verdict.violations)) + "\n")
        (target / "final").write_text(repr(final) + "\n")
        (target / "commits").write_text("".join(f"{commit}\n" for commit in commits))
        return str(target)

    def _clear(self, final: Final, residents: dict[str, PeerState]) -> None:
        """Take the run's peers away, but for a few that stay."""
        spare = max(0, RESIDENTS - len(residents))
        fresh = sorted(key for key in final.redis if key not in residents)
        staying = [key for key in fresh if _stays(final.redis[key])][: min(spare, 3)]
        leaving = [*(key for key in fresh if key not in staying), *sorted(residents)[RESIDENTS:]]
        leaving += sorted(final.kernel.keys() - final.redis.keys())  # kept on the device when Redis had lost them
        self.site.callers.write_to(f"clearing-{self._count}")
        for start in range(0, len(leaving), 50):
            self.site.callers.ask(
                [
                    Ask("delete", key, f"{self.site.name}.clear-{self._count}-{start + place}", 8.0)
                    for place, key in enumerate(leaving[start : start + 50])
                ]
            )


def _short(stored: PeerState, now: float) -> bool:
    """Whether a peer's time will soon be up, or is, and it is still there."""
    return stored.life.over(now + SETTLES_WITHIN)


def _stays(stored: PeerState) -> bool:
    return stored.life.pinned or stored.life.expires is None
