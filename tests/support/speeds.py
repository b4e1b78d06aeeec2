"""Which tests run where: slow ones apart, each with its reason; what a machine lacks is told in one line at the end.

``make test`` runs what is marked neither ``kernel`` nor ``slow``, ``faults`` or ``browser``; ``make test-all`` runs the
tests with one of these marks.
A test that needs a program says so by ``@pytest.mark.needs("wg")``. Where the program is missing the test is skipped,
or fails if ``CI`` is ``true``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

import pytest

#: Marks of the tests that ``make test`` leaves out; a test with several is counted by the first.
APART = ("kernel", "faults", "browser", "slow")
#: What every test on a kernel starts.
ON_A_KERNEL = ("ip", "ping", "wg")
#: The Debian package of a program that has another name than its package.
PACKAGES = {
    "chromedriver": "chromium-driver",
    "ip": "iproute2",
    "nft": "nftables",
    "promtool": "prometheus",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "systemd-analyze": "systemd",
    "tc": "iproute2",
    "wg": "wireguard-tools",
}

_MARKS = (
    "slow(reason): takes long, and why it has to; make test leaves it out",
    "faults: a fault run, see tests/faults/fault_bench.py; make test leaves it out",
    "browser: needs a browser; make test leaves it out",
    "needs(*programs): is skipped where one of these programs is missing, and fails there if CI is true",
)
_LEFT_OUT = pytest.StashKey[Counter[str]]()
_WORKER_OUTPUT = "peerlane_left_out"


def lacking(missing: str, how: str) -> NoReturn:
    """End a test that needs ``missing``: it is skipped, or fails if CI is true. ``how`` says how to get it."""
    said = f"needs {missing}: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(said, pytrace=False)
    pytest.skip(said)


def require(program: str) -> str:
    """The path of a program; the test ends by ``lacking`` where there is none."""
    path = shutil.which(program)
    if path is None:
        lacking(program, f"apt-get install {PACKAGES.get(program, program)}")
    return path


def pytest_configure(config: pytest.Config) -> None:
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)
    config.stash[_LEFT_OUT] = Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a slow test without its reason. First of all: before tests are deselected."""
    bare = [item.nodeid for item in items if not all(map(_gives_a_reason, item.iter_markers("slow")))]
    if bare:
        raise pytest.UsageError("slow without its reason, as in @pytest.mark.slow('waits for ...'): " + ", ".join(bare))


def _gives_a_reason(mark: pytest.Mark) -> bool:
    return not mark.kwargs and len(mark.args) == 1 and isinstance(mark.args[0], str) and bool(mark.args[0].strip())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    programs = [program for mark in item.iter_markers("needs") for program in mark.args]
    if item.get_closest_marker("kernel") is not None:
        if item.config.getoption("--kernel-reports", None) is None:
            return  # it is the kernel that is missing here, and tests/support/kernel_bridge.py says so
        programs += ON_A_KERNEL
    for program in programs:
        require(program)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in APART:
            if item.get_closest_marker(mark) is not None:
                item.config.stash[_LEFT_OUT][mark] += 1
                break


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process of pytest-xdist: hand on what was deselected there."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER_OUTPUT] = dict(session.config.stash[_LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the process that started those: each of them has collected all tests, so that one speaks for all."""
    config: pytest.Config = node.config
    config.stash[_LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    by_mark = str(config.getoption("markexpr")).startswith("not ")
    left_out = config.stash[_LEFT_OUT] if by_mark else Counter[str]()
    line = not_run(_reasons(terminalreporter.stats.get("skipped", [])), left_out)
    if line:
        terminalreporter.write_line(line)


def _reasons(reports: Iterable[pytest.TestReport]) -> Iterable[str]:
    for report in reports:
        match report.longrepr:
            case (_, _, str(reason)):
                yield reason.removeprefix("Skipped: ")
            case other:
                yield str(other)


def not_run(skipped: Iterable[str], left_out: Counter[str]) -> str:
    """One line on what was skipped, by reason, and what was left to ``make test-all``, by mark."""
    needs: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for reason in skipped:
        need = re.match(r"needs (.+?)(?::|$)", reason)
        counter, cause = (needs, need[1]) if need else (others, reason)
        counter[cause] += 1
    sentences = [
        f"{_tests(count)} {'needs' if count == 1 else 'need'} {missing}" for missing, count in needs.most_common()
    ]
    sentences += [f"{_tests(count)} ({reason})" for reason, count in others.most_common()]
    left = [f"{left_out[mark]} {mark}" for mark in APART if left_out[mark]]
    parts = {"not run here: ": sentences, "left to make test-all: ": left}
    return "; ".join(start + ", ".join(sentences_of) for start, sentences_of in parts.items() if sentences_of)


def _tests(count: int) -> str:
    return f"{count} test{'' if count == 1 else 's'}"
