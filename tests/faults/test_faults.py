"""A short set of the fault runs that ``make faults`` plays by the hundred: every scenario once, here or on a kernel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_bench import Bench
from fault_look import Plane
from fault_runs import playable
from fault_scenarios import SCENARIOS
from fault_site import Site
from speeds import lacking

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

#: Played on a real kernel; the others there by ``make faults``.
ON_A_KERNEL = (
    "killed_after_apply",
    "killed_before_commit",
    "killed_in_recovery",
    "redis_killed",
    "redis_loses_last_second",
    "failover_loses_two_seconds",
    "killed_with_full_groups",
    "killed_with_half_a_list",
    "disk_full",
    "packets_lost",
    "stale_writer",
    "device_deleted",
    "machine_clock_jumps",
    "observer_killed",
    "device_tampered",
    "filling_killed",
)
IN_MEMORY = tuple(
    name for name, scenario in SCENARIOS.items() if "memory" in scenario.planes and name not in ON_A_KERNEL
)


def _bench(plane: Plane) -> Iterator[Bench]:
    # Not tmp_path: its name is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="flt") as name, Site(plane, Path(name)) as site:
        yield Bench(site)


@pytest.fixture(scope="module")
def memory_bench() -> Iterator[Bench]:
    """One site for all runs of this module; each run leaves it as sound as it found it."""
    yield from _bench("memory")


@pytest.fixture(scope="module")
def kernel_bench() -> Iterator[Bench]:
    """The same on a WireGuard device."""
    yield from _bench("kernel")


def _holds(bench: Bench, plane: Plane, name: str, seed: int) -> None:
    if SCENARIOS[name] not in playable(plane):
        if name == "clocks_jump":
            lacking("faketime", "apt-get install faketime")
        pytest.skip("the scenario moves the machine's clock, and this kernel is not a guest's")
    report = bench.run(SCENARIOS[name], seed)
    assert report.ok > 0
    assert report.swept > 0 or not SCENARIOS[name].work.upkeep
    assert not report.verdict.violations, "\n".join(map(str, report.verdict.violations))


@pytest.mark.parametrize("name", IN_MEMORY)
def test_every_promise_holds_through(name: str, memory_bench: Bench) -> None:
    _holds(memory_bench, "memory", name, 1)


@pytest.mark.kernel
@pytest.mark.parametrize("name", ON_A_KERNEL)
def test_every_promise_holds_on_a_real_kernel_through(name: str, kernel_bench: Bench) -> None:
    _holds(kernel_bench, "kernel", name, 2)
