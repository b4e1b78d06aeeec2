"""Two speeds of tests: slow ones say why, what cannot run here is told in one line, and nothing is skipped in CI."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import speeds

SEVERAL = """
    import pytest

    def test_quick(): pass

    @pytest.mark.needs("sh")
    def test_with_a_program(): pass

    @pytest.mark.needs("sh", "no-such-program")
    def test_without_one(): pass

    @pytest.mark.needs("no-such-program")
    def test_without_one_either(): pass

    def test_elsewhere(): pytest.skip("this host has WireGuard")

    @pytest.mark.slow("waits for a lease to run out")
    def test_slow(): pass

    @pytest.mark.faults
    @pytest.mark.slow("plays it twice")
    def test_of_faults(): pass
"""
QUICK = "not (kernel or slow or faults or browser)"


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with nothing but these marks, not in CI."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest('pytest_plugins = ["speeds", "kernel_bridge"]')
    pytester.makepyprojecttoml(
        f'[tool.pytest.ini_options]\npythonpath = ["{Path(speeds.__file__).parent}"]\naddopts = ["--strict-markers"]\n'
    )
    return pytester


@pytest.mark.parametrize("processes", [[], ["-n", "2"]])
def test_what_did_not_run_is_told_in_one_line_at_the_end(pytester: pytest.Pytester, processes: list[str]) -> None:
    pytester.makepyfile(SEVERAL)
    result = pytester.runpytest_subprocess("-m", QUICK, *processes)
    result.assert_outcomes(passed=2, skipped=3, deselected=0 if processes else 2)
    skipped = "2 tests need no-such-program, 1 test (this host has WireGuard)"
    result.stdout.fnmatch_lines([f"not run here: {skipped}; left to make test-all: 1 faults, 1 slow"])


def test_nothing_is_told_where_all_that_were_asked_for_ran(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SEVERAL)
    result = pytester.runpytest_inprocess("-k", "quick or of_faults")
    result.assert_outcomes(passed=2, deselected=5)
    result.stdout.no_fnmatch_line("*not run here*")
    result.stdout.no_fnmatch_line("*left to*")


def test_a_missing_program_fails_where_ci_is_true(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(SEVERAL)
    result = pytester.runpytest_inprocess("-m", QUICK)
    result.assert_outcomes(passed=2, errors=2, skipped=1, deselected=2)
    result.stdout.fnmatch_lines(["*needs no-such-program: apt-get install no-such-program*"])


def test_a_missing_kernel_is_told_in_the_same_line(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_bridge.find_kernel", _no_kernel)
    pytester.makepyfile("import pytest\n@pytest.mark.kernel\ndef test_there(): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["not run here: 1 test needs a kernel with WireGuard"])


@pytest.mark.parametrize("mark", ["slow", "slow()", "slow('')", "slow(reason='takes long')", "slow(3)"])
def test_a_slow_test_without_its_reason_stops_the_run_even_if_it_was_not_chosen(
    mark: str, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(f"import pytest\ndef test_quick(): pass\n@pytest.mark.{mark}\ndef test_slow(): pass")
    result = pytester.runpytest_inprocess("-m", "not slow")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*slow without its reason*::test_slow"])


def test_the_commonest_reason_comes_first() -> None:
    skipped = ["needs wg: apt-get install wireguard-tools", *["needs a kernel with WireGuard: run it"] * 3, "because"]
    assert speeds.not_run(skipped, Counter()) == (
        "not run here: 3 tests need a kernel with WireGuard, 1 test needs wg, 1 test (because)"
    )
    assert speeds.not_run([], Counter(slow=2, kernel=1)) == "left to make test-all: 1 kernel, 2 slow"
    assert speeds.not_run([], Counter()) == ""


def test_make_test_and_make_test_all_leave_no_test_out(pytestconfig: pytest.Config) -> None:
    makefile = (pytestconfig.rootpath / "Makefile").read_text()
    (apart,) = re.findall(r"^APART +:= (.*)$", makefile, flags=re.MULTILINE)
    assert set(apart.split(" or ")) == set(speeds.APART)
    assert "-m 'not ($(APART))'" in makefile
    assert "-m '$(APART)'" in makefile


def test_no_test_module_imports_another_and_tests_are_no_package(pytestconfig: pytest.Config) -> None:
    tests = pytestconfig.rootpath / "tests"
    assert list(tests.rglob("__init__.py")) == []
    modules = {path: ast.parse(path.read_text()) for path in tests.rglob("*.py")}
    assert modules
    imported = {
        (path.name, name)
        for path, module in modules.items()
        for node in ast.walk(module)
        for name in _imported(node)
        if name.rpartition(".")[2].startswith("test_")
    }
    assert imported == set()


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _no_kernel(_root: Path) -> None:
    """What find_kernel answers where there is none."""
