"""Benches tell alike: a table for people, JSON for programs, on this host or from a kernel elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_report import Advance, Bench, Figures, quantile, run
from rich.text import Text


def measure(chosen: argparse.Namespace, advance: Advance) -> Figures:
    """What a bench would; it may be told to fail."""
    advance("half of it", 0.5)
    if chosen.fail:
        sys.stderr.write("no such device\n")
        raise SystemExit(3)
    return {"answer": chosen.answer, "sound": chosen.answer == 42}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answer", type=int, default=42)
    parser.add_argument("--fail", action="store_true")


def show(figures: Figures) -> Text:
    return Text(f"the answer is {figures['answer']}")


def bench(*, needs_kernel: bool) -> Bench:
    return Bench(
        script=__file__, about="A bench.", measure=measure, show=show, options=options, needs_kernel=needs_kernel
    )


#: A kernel elsewhere, as far as a bench can see: a command that runs the rest of its arguments.
ELSEWHERE = ["env"]


@pytest.mark.parametrize("needs_kernel", [False, True])
class TestABench:
    def test_shows_people_a_table(self, capfd: pytest.CaptureFixture[str], *, needs_kernel: bool) -> None:
        assert run(bench(needs_kernel=needs_kernel), [], ELSEWHERE) == 0
        assert capfd.readouterr() == ("the answer is 42\n", "")

    def test_prints_json_instead_or_writes_it_beside(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, *, needs_kernel: bool
    ) -> None:
        assert run(bench(needs_kernel=needs_kernel), ["--json"], ELSEWHERE) == 0
        printed = capfd.readouterr().out
        assert json.loads(printed) == {"answer": 42, "sound": True}
        file = tmp_path / "figures.json"
        assert run(bench(needs_kernel=needs_kernel), ["--json", str(file)], ELSEWHERE) == 0
        assert file.read_text() == printed
        assert capfd.readouterr().out == "the answer is 42\n"

    def test_fails_where_its_figures_are_not_sound_but_shows_them(
        self, capfd: pytest.CaptureFixture[str], *, needs_kernel: bool
    ) -> None:
        assert run(bench(needs_kernel=needs_kernel), ["--answer", "41"], ELSEWHERE) == 1
        assert capfd.readouterr().out == "the answer is 41\n"


def test_a_kernels_side_that_dies_is_told_with_its_last_words(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(bench(needs_kernel=True), ["--fail"], ELSEWHERE) == 1
    output = capfd.readouterr()
    assert "status 3" in output.err
    assert "no such device" in output.err
    assert output.out == ""


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
    assert quantile([7.0], 0.99) == 7


def test_every_bench_can_be_run_by_its_path() -> None:
    """It finds what it imports without a variable that tells where."""
    files = [file for file in Path(__file__).parent.glob("*.py") if not file.name.startswith("test_")]
    programs = [file for file in files if '__name__ == "__main__"' in file.read_text()]
    assert len(programs) > 10
    run_them = "import runpy, sys; [runpy.run_path(each) for each in sys.argv[1:]]"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", run_them, *map(str, programs)]
    subprocess.run(command, cwd=Path(__file__).parent, env=environment, check=True)


if __name__ == "__main__":
    sys.exit(run(bench(needs_kernel=True)))
