"""Runs the tests marked ``kernel`` where there is a kernel with WireGuard, and reports them here as they finish.

One other process runs them all, in the first of these places there is:

1. this host, if this process is root and the kernel has WireGuard: in a network namespace of its own;
2. whatever the command in ``PEERLANE_TEST_KERNEL`` leads to, such as ``./boot-a-guest --``: a program that runs
   the rest of its arguments as root, on this file system (a relative path counts from the root of the repository);
3. a virtual machine with this host's kernel, if virtme-ng (``vng``) is installed.

Where there is none they are skipped, or fail if ``CI`` is ``true``. The other process is pytest again, with
``--kernel-reports FILE``: there each test simply runs, and each report is appended to FILE.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from workers.dataplane.kernel import kernel_available

COMMAND = "PEERLANE_TEST_KERNEL"
MISSING = (
    f"needs a kernel with WireGuard: run pytest as root on one, install virtme-ng (vng), or set {COMMAND} to a command"
    " that runs another as root on such a kernel"
)

#: Seconds without any report, or the end, until the other process is taken for dead: more than one test may take.
SILENCE = 300.0
_TAIL = 4000
_BRIDGE = pytest.StashKey["Bridge | None"]()

# A mount namespace too, so that /sys shows the network namespace's devices.
_OWN_NAMESPACE = ["unshare", "--net", "--mount", "sh", "-c"]
_ENTER = 'mount -t sysfs sysfs /sys && ip link set lo up && exec "$@"'


def find_kernel(root: Path) -> list[str] | None:
    """The words to put before a command so that it runs on a kernel with WireGuard; None if there is no such place."""
    if os.geteuid() == 0 and kernel_available() is None:
        here = [*_OWN_NAMESPACE, _ENTER, "sh"]
        if subprocess.run([*here, "true"], capture_output=True, check=False).returncode == 0:
            return here
    told = shlex.split(os.environ.get(COMMAND, ""))
    if told:
        # A bare name is looked up on PATH.
        return [str(root / told[0]), *told[1:]] if "/" in told[0] else told
    if shutil.which("vng"):
        return ["vng", "--run", "--rw", "--cwd", str(root), "--memory", "4G", "--"]
    return None


class Bridge:
    """The other process and what it has reported so far."""

    def __init__(self, session: pytest.Session, items: list[pytest.Item], kernel: list[str]) -> None:
        config = session.config
        # On this file system and not below /tmp, which may be another one on the other side.
        cache = config.rootpath / ".pytest_cache"
        cache.mkdir(exist_ok=True)
        self._directory = Path(tempfile.mkdtemp(prefix="kernel-", dir=cache))
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._config = config
        self._rest = b""
        sink = self._directory / "reports"
        sink.touch()
        arguments = self._directory / "arguments"
        arguments.write_text("\n".join(item.nodeid for item in items) + "\n")
        self._source: IO[bytes] = sink.open("rb")
        self._output = self._directory / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *kernel,
                    *(sys.executable, "-m", "pytest", f"--kernel-reports={sink}", f"--rootdir={config.rootpath}"),
                    *((f"-c{config.inipath}",) if config.inipath else ()),
                    *("-v" for _ in range(config.get_verbosity())),
                    *("-p", "no:cacheprovider", f"--tb={config.getoption('tbstyle')}", f"@{arguments}"),
                ],
                cwd=config.rootpath,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The item's reports, as they come in; a failed one at the end if the process died before its last."""
        last_sign = time.monotonic()
        while True:
            # In this order: what was written before the end must still be read.
            ended = self._process.poll() is not None
            if self._read():
                last_sign = time.monotonic()
            for report in self._reports.pop(item.nodeid, []):
                yield report
                if report.when == "teardown":
                    return
            if ended:
                yield self._died(item, f"ended with status {self._process.returncode}")
                return
            if time.monotonic() - last_sign > SILENCE:
                self._kill()
                yield self._died(item, f"said nothing for {SILENCE:.0f} s and was killed")
                return
            time.sleep(0.02)

    def close(self) -> None:
        """End the process, if it has not, and remove its files."""
        self._kill()
        self._source.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _read(self) -> bool:
        """Take in whole lines that were appended since. Whether there were any."""
        *lines, self._rest = (self._rest + self._source.read()).split(b"\n")
        for line in lines:
            data: dict[str, Any] = json.loads(line)
            if data["outcome"] == "skipped" and "wasxfail" not in data:
                # A skip's (file, line, reason): JSON has no tuples, and pytest insists on one.
                data["longrepr"] = tuple(data["longrepr"])
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            self._reports.setdefault(report.nodeid, []).append(report)
        return bool(lines)

    def _died(self, item: pytest.Item, how: str) -> pytest.TestReport:
        tail = self._output.read_bytes()[-_TAIL:].decode("utf-8", "replace")
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=f"the kernel's side {how} before this test was done; its last words:\n{tail}",
            when="call",
        )

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Reporter:
    """The other side's end: appends each report to the file as one line of JSON."""

    def __init__(self, config: pytest.Config, sink: Path) -> None:
        self._config = config
        self._sink = sink

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        # Opened and closed each time: that is when a guest's file system hands the line to the host.
        with self._sink.open("a") as file:
            file.write(json.dumps(data, default=str) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("peerlane").addoption(
        "--kernel-reports", metavar="FILE", type=Path, help="run kernel tests right here and append reports to FILE"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel: needs a kernel with WireGuard, see tests/kernel_bridge.py")
    sink: Path | None = config.getoption("--kernel-reports")
    if sink is not None:
        config.pluginmanager.register(Reporter(config, sink))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernel tests come last: pytest carries fixtures from each test to the next, and these must not be in between."""
    items.sort(key=_is_for_the_kernel)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Replay a kernel test's reports instead of running it."""
    bridge = _bridge_for(item)
    if bridge is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in bridge.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    """The other side's pytest-timeout watches its tests; here the first would wait for the whole start."""
    return True if _bridge_for(item) is not None else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Only reached by a kernel test where there is no other side."""
    if _is_for_the_kernel(item):
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING, pytrace=False)
        pytest.skip(MISSING)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    bridge = session.config.stash.get(_BRIDGE, None)
    if bridge is not None:
        bridge.close()


def _is_for_the_kernel(item: pytest.Item) -> bool:
    return item.get_closest_marker("kernel") is not None and item.config.getoption("--kernel-reports") is None


def _bridge_for(item: pytest.Item) -> Bridge | None:
    """The bridge that runs this test, begun for the first one; None if the test is to run here."""
    if not _is_for_the_kernel(item):
        return None
    stash = item.config.stash
    if _BRIDGE not in stash:
        kernel = find_kernel(item.config.rootpath)
        items = [other for other in item.session.items if _is_for_the_kernel(other)]
        stash[_BRIDGE] = None if kernel is None else Bridge(item.session, items, kernel)
    return stash[_BRIDGE]
