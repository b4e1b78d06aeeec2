"""Plants small faults, one at a time, in a copy of the sources, and says which test notices each.

    make mutants        or: python tests/mutants/mutants.py [--only NAME...] [--json] [--list]

Each fault is one that was met, or nearly so: a check that is skipped, a step that is not undone. The tests named for it
are run on the copy; the first that fails has caught it. Exit status 1 if a fault survives, 2 if one cannot be planted
because the code has changed, or if a test fails without any fault. Nothing of this tree is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mutant import Mutant
from planted_faults import MUTANTS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
#: What is copied: sources and tests.
COPIED = ("config", "tasks", "workers", "peerlane", "tests", "pyproject.toml", "examples", "README.md")
#: Seconds for the tests of one fault; a fault that makes them hang is caught, too.
TIMEOUT = 240
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", flags=re.MULTILINE)


class Unplantable(Exception):
    """The text that a fault replaces is not there, or not once: the code has changed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one fault."""

    name: str
    #: The test that noticed it; None: it has survived.
    caught_by: str | None
    tests: tuple[str, ...]


@contextmanager
def copied(root: Path = ROOT) -> Generator[Path]:
    """A copy of the tree, which is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="peerlane-mutants-"))
    try:
        for name in COPIED:
            source = root / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, directory / name, symlinks=True, ignore=ignored)
            elif source.exists():
                shutil.copy2(source, directory / name)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def planted(tree: Path, mutant: Mutant) -> Generator[None]:
    """The fault is in the tree, for as long as this lasts.

    Raises:
        Unplantable: says which text was looked for.
    """
    file = tree / mutant.file
    sound = file.read_text()
    if (count := sound.count(mutant.before)) != 1:
        raise Unplantable(f"{mutant.name}: {mutant.file} has {count} times instead of once: {mutant.before!r}")
    file.write_text(sound.replace(mutant.before, mutant.after))
    try:
        yield
    finally:
        file.write_text(sound)


def run(tree: Path, tests: Sequence[str], timeout: float = TIMEOUT) -> str | None:
    """The first of these tests that fails in the tree; None if all pass."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "", *tests]
    ran = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = ran.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(ran.pid, 9)  # ours: it has a session of its own
        ran.communicate()
        return f"{tests[0]} (which did not end)"
    if ran.returncode == 0:
        return None
    if ran.returncode != 1:
        raise RuntimeError(f"pytest ended with status {ran.returncode}:\n{said[-3000:]}")
    failed = _FAILED.search(said)
    return failed[1] if failed else tests[0]


def judged(mutants: Sequence[Mutant], console: Console) -> list[Verdict]:
    """Plant each and run its tests. Raises Unplantable, RuntimeError."""
    verdicts: list[Verdict] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with copied() as tree, Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("without any fault", total=len(mutants) + 1)
        every = sorted({test for mutant in mutants for test in mutant.tests})
        if (failed := run(tree, every, TIMEOUT * len(every))) is not None:
            raise RuntimeError(f"{failed} fails without any fault")
        for mutant in mutants:
            progress.update(bar, advance=1, description=mutant.name)
            with planted(tree, mutant):
                verdicts.append(Verdict(mutant.name, run(tree, mutant.tests), mutant.tests))
            if verdicts[-1].caught_by is None:
                console.print(f"[red]{mutant.name} has survived {', '.join(mutant.tests)}")
        progress.update(bar, advance=1)
    return verdicts


def main() -> int:
    """The program; its exit status."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--only", nargs="+", metavar="NAME", help="these faults alone")
    arguments.add_argument("--json", action="store_true", help="one document, for programs")
    arguments.add_argument("--list", action="store_true", help="name every fault, and plant none")
    options = arguments.parse_args()
    console = Console(stderr=True)
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in options.only or () if name not in known]:
        console.print(f"[red]no such fault: {', '.join(unknown)}; --list names them")
        return 2
    chosen = [known[name] for name in options.only] if options.only else list(MUTANTS)
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}\t{mutant.file}\t{mutant.fault}")  # noqa: T201 - a program says it there
        return 0
    try:
        verdicts = judged(chosen, console)
    except (Unplantable, RuntimeError) as error:
        console.print(f"[red]{error}")
        return 2
    survivors = [verdict.name for verdict in verdicts if verdict.caught_by is None]
    if options.json:
        document = {"faults": [asdict(verdict) for verdict in verdicts], "survivors": survivors}
        print(json.dumps(document))  # noqa: T201 - likewise
    else:
        table = Table("fault", "caught by", box=None, header_style="bold")
        for verdict in verdicts:
            table.add_row(verdict.name, verdict.caught_by or "[red]nobody")
        Console().print(table)
        console.print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} faults were caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
