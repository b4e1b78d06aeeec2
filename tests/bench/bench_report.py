"""How every bench tells: a bar on a terminal while it runs, then a table, or JSON with ``--json``.

A bench that needs WireGuard is run once more where there is a kernel with it (support/kernel_bridge.py finds that); the
other side appends its progress and its figures to a file, and this side shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_folders import ROOT
from kernel_bridge import MISSING, find_kernel
from program_path import PROGRAM_PATH
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

#: SimulatedGateway now and again: what is being done, and the share of all that is done.
Advance = Callable[[str, float], None]
#: What JSON can hold.
Figures = dict[str, Any]

_TAIL = 4000


def _no_options(parser: argparse.ArgumentParser) -> None:
    """A bench without options of its own."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One bench: what it measures, and how people are shown that."""

    #: Its file, which runs it, and that file's docstring.
    script: str
    about: str
    measure: Callable[[argparse.Namespace, Advance], Figures]
    show: Callable[[Figures], RenderableType]
    options: Callable[[argparse.ArgumentParser], None] = _no_options
    #: What else is made of the figures.
    keep: Callable[[argparse.Namespace, Figures], None] = lambda _chosen, _figures: None
    needs_kernel: bool = False


class Died(Exception):
    """The kernel's side ended without figures."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all are not above; ``values`` is not empty."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def run(bench: Bench, words: Sequence[str] | None = None, kernel: Sequence[str] | None = None) -> int:
    """Measure and tell; the exit status, 1 where the figures say that they are not ``sound``.

    ``words`` are the command line's unless named, and ``kernel`` the words that lead to a kernel with WireGuard.
    """
    given = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(description=bench.about, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench.options(parser)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the figures, into FILE or instead of it")
    parser.add_argument("--report-to", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(given)
    if chosen.report_to is not None:
        reports: Path = chosen.report_to
        _append(reports, figures=bench.measure(chosen, lambda step, share: _append(reports, progress=[step, share])))
        return 0
    with bar() as advance:
        if not bench.needs_kernel:
            figures = bench.measure(chosen, advance)
        elif (there := find_kernel(ROOT) if kernel is None else list(kernel)) is None:
            sys.stderr.write(f"{Path(bench.script).name} skipped: {MISSING}\n")
            return 0
        else:
            try:
                figures = _measure_there([*there, sys.executable, "-W", "ignore", bench.script, *given], advance)
            except Died as error:
                sys.stderr.write(f"{error}\n")
                return 1
    document = json.dumps(figures, indent=2) + "\n"
    if chosen.json == "-":
        sys.stdout.write(document)
    else:
        Console(width=120).print(bench.show(figures))
    if chosen.json not in (None, "-"):
        Path(chosen.json).write_text(document, encoding="utf-8")
    bench.keep(chosen, figures)
    return 0 if figures.get("sound", True) else 1


@contextmanager
def bar() -> Generator[Advance]:
    """A bar on standard error, where that is a terminal; nothing otherwise."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, expand=True, transient=True) as shown:
        task = shown.add_task("starting", total=1.0)
        yield lambda step, share: shown.update(task, description=step, completed=share)


def _append(file: Path, **fields: Any) -> None:
    # Opened and closed each time: that is when a guest's file system hands the line to the host.
    with file.open("a", encoding="utf-8") as sink:
        sink.write(json.dumps(fields) + "\n")


def _measure_there(command: Sequence[str], advance: Advance) -> Figures:
    """The figures of the bench on the kernel's side.

    Raises:
        Died: it told none; with its last words.
    """
    # On this file system and not below /tmp, which may be another one on the other side.
    cache = ROOT / ".pytest_cache"
    cache.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=cache))
    reports, output = directory / "reports", directory / "output"
    reports.touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), PROGRAM_PATH])}
    figures: Figures | None = None
    try:
        with (
            output.open("wb") as sink,
            reports.open("rb") as source,
            subprocess.Popen(
                [*command, "--report-to", str(reports)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            rest = b""
            while True:
                ended = process.poll() is not None  # before the last look: what it wrote until then is still read
                *lines, rest = (rest + source.read()).split(b"\n")
                for report in map(json.loads, lines):
                    if "progress" in report:
                        advance(*report["progress"])
                    figures = report.get("figures", figures)
                if ended:
                    break
                time.sleep(0.1)
        if figures is None:
            tail = output.read_bytes()[-_TAIL:].decode("utf-8", "replace")
            raise Died(f"the kernel's side ended with status {process.returncode} and no figures; it said:\n{tail}")
        return figures
    finally:
        shutil.rmtree(directory, ignore_errors=True)
