"""``make faults``: many seeded fault runs on one site, judged one by one; a failure comes again by seed and scenario.

python tests/faults/fault_runs.py --runs 200 --seed 1 --plane kernel
python tests/faults/fault_runs.py --seed 57 --scenario redis_killed --runs 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fault_bench import Bench, Report
from fault_look import Plane
from fault_of_host import FAKETIME
from fault_play import Scenario
from fault_scenarios import SCENARIOS
from fault_site import Site
from kernel_bridge import find_kernel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from peerlane.workers.dataplane.kernel import kernel_available

ROOT = Path(__file__).resolve().parents[2]
#: Set on the other side of a bridge to a kernel, so that it builds none itself.
_HERE = "PEERLANE_TEST_FAULTS_HERE"


def own_machine() -> bool:
    """Whether this kernel is a guest's own, so that its clock may be moved."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def playable(plane: Plane) -> list[Scenario]:
    """The scenarios that can be played here."""
    scenarios = [scenario for scenario in SCENARIOS.values() if plane in scenario.planes]
    if not own_machine():
        scenarios = [scenario for scenario in scenarios if not scenario.needs_own_machine]
    if not FAKETIME.exists():
        scenarios = [scenario for scenario in scenarios if scenario.name != "clocks_jump"]
    return scenarios


def schedule(scenarios: Sequence[Scenario], runs: int, seed: int, shard: tuple[int, int]) -> list[tuple[int, Scenario]]:
    """Which seed is played as what: all scenarios in turn, in an order that follows from the first seed."""
    order = list(scenarios)
    random.Random(seed).shuffle(order)
    plan = [(seed + number, order[number % len(order)]) for number in range(runs)]
    return plan[shard[0] - 1 :: shard[1]]


def play(plan: Sequence[tuple[int, Scenario]], plane: Plane, keep: Path, console: Console) -> list[Report]:
    """All runs on one site; a line for each where nobody watches a terminal."""
    reports: list[Report] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    # Not below a long path: a socket's name holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="flt", dir="/tmp") as name, Site(plane, Path(name)) as site, progress:
        bench, task = Bench(site, keep=keep), progress.add_task("fault runs", total=len(plan))
        for seed, scenario in plan:
            progress.update(task, description=f"{scenario.name} (seed {seed})")
            report = bench.run(scenario, seed)
            reports.append(report)
            progress.advance(task)
            if not console.is_terminal or report.verdict.violations:
                console.print(_line(report), highlight=False, soft_wrap=True)
    return reports


def _line(report: Report) -> str:
    back = "never" if report.back_after is None else f"{report.back_after:.1f} s"
    lost = f", {report.verdict.lost} lost with Redis' last second" if report.verdict.lost else ""
    notes = f" ({'; '.join(report.notes)})" if report.notes else ""
    counts = f"{report.calls} calls, {report.ok} ok, {report.refused} refused, {report.unknown} unknown{lost}"
    seen = "never" if report.observer_back_after is None else f"{report.observer_back_after:.1f} s"
    backs = f"lane back after {back}, observer after {seen}"
    swept = f", {report.swept} swept" if report.swept else ""
    lines = [f"seed {report.seed} {report.scenario}: {counts}{swept}, {backs}, {report.seconds:.1f} s{notes}"]
    lines += [f"  VIOLATION {violation}" for violation in report.verdict.violations[:12]]
    if report.artefacts:
        lines.append(
            f"  kept in {report.artefacts}; again with --seed {report.seed} --scenario {report.scenario} --runs 1"
        )
    return "\n".join(lines)


def summary(reports: Sequence[Report], seconds: float) -> dict[str, Any]:
    """The figures, for docs and machines."""
    backs = sorted(report.back_after for report in reports if report.back_after is not None)
    return {
        "runs": len(reports),
        "calls": sum(report.calls for report in reports),
        "ok": sum(report.ok for report in reports),
        "refused": sum(report.refused for report in reports),
        "unknown_then_settled": sum(report.unknown for report in reports),
        "lost_with_the_last_second": sum(report.verdict.lost for report in reports),
        # Redis has lost what it had confirmed, and its writer or the redo file made it true again.
        "confirmed_creates_lost": _count_of(reports, "a confirmed create is lost"),
        "confirmed_deletes_back": _count_of(reports, "a confirmed delete came back"),
        "violations": sum(len(report.verdict.violations) for report in reports),
        "lane_back_median_s": round(backs[len(backs) // 2], 2) if backs else None,
        "lane_back_worst_s": round(backs[-1], 2) if backs else None,
        "observer_back_worst_s": round(max((report.observer_back_after or 0.0) for report in reports), 2),
        "swept": sum(report.swept for report in reports),
        "seconds": round(seconds, 1),
        "by_scenario": {
            name: {
                "runs": len(mine),
                "calls": sum(report.calls for report in mine),
                "unknown": sum(report.unknown for report in mine),
                "lane_back_worst_s": round(max((report.back_after or 0.0) for report in mine), 2),
                "violations": sum(len(report.verdict.violations) for report in mine),
            }
            for name in sorted(Counter(report.scenario for report in reports))
            if (mine := [report for report in reports if report.scenario == name])
        },
        "failing": [report.as_dict() for report in reports if report.verdict.violations],
    }


def _count_of(reports: Sequence[Report], text: str) -> int:
    return sum(text in violation.sentence for report in reports for violation in report.verdict.violations)


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title=f"{figures['runs']} fault runs, {figures['calls']} calls, {figures['violations']} violations")
    table.add_column("fault")
    for name in ("runs", "calls", "unknown, settled", "lane back, worst", "violations"):
        table.add_column(name, justify="right")
    for name, row in figures["by_scenario"].items():
        cells = (row["runs"], row["calls"], row["unknown"], f"{row['lane_back_worst_s']:.1f} s", row["violations"])
        table.add_row(name, *map(str, cells))
    return table


def _elsewhere() -> int | None:
    """The same command on a kernel with WireGuard, if this one has none; its exit status."""
    if os.environ.get(_HERE) or kernel_available() is None:
        return None
    kernel = find_kernel(ROOT)
    if kernel is None:
        raise SystemExit("no kernel with WireGuard: see tests/support/kernel_bridge.py, or use --plane memory")
    if Path(kernel[0]).name == "run":  # its guest is given ten minutes unless told otherwise
        kernel = [kernel[0], "-t", "14400", *kernel[1:]]
    return subprocess.run(
        [*kernel, sys.executable, __file__, *sys.argv[1:]],
        check=False,
        cwd=ROOT,
        env=os.environ | {_HERE: "1", "PYTHONUNBUFFERED": "1"},
    ).returncode


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number), int(of)


def main() -> int:
    """Zero if no promise was broken."""
    parser = argparse.ArgumentParser(description="seeded fault runs against a real gateway, queue and server")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="of the first run")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), action="append", help="only this one; repeatable")
    parser.add_argument("--plane", choices=("kernel", "memory"), default="kernel")
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="play every N-th run, from the I-th"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--keep", type=Path, default=ROOT / ".faults", help="where failing runs leave their artefacts")
    options = parser.parse_args()
    if options.plane == "kernel" and (status := _elsewhere()) is not None:
        return status
    console = Console(width=None if sys.stdout.isatty() else 150)
    scenarios = playable(options.plane)
    if options.scenario:
        scenarios = [scenario for scenario in scenarios if scenario.name in options.scenario]
    console.print(
        f"{options.runs} runs from seed {options.seed} on the {options.plane} plane, shard {options.shard}",
        highlight=False,
    )
    began = time.monotonic()
    reports = play(schedule(scenarios, options.runs, options.seed, options.shard), options.plane, options.keep, console)
    figures = summary(reports, time.monotonic() - began)
    console.print(_table(figures))
    told_of = figures["confirmed_creates_lost"], figures["confirmed_deletes_back"]
    console.print("confirmed creates lost, confirmed deletes back: {}, {}".format(*told_of), highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if figures["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
