"""Runs the tests marked ``kernel`` where there is a kernel with WireGuard, and reports them here as they finish.

Other processes run them, one file's tests after another's and beside the tests that run here, in the first of these
places there is:

1. this host, if this process is root and the kernel has WireGuard: in a network namespace of its own;
2. whatever the command in ``PEERLANE_TEST_KERNEL`` leads to, such as ``./boot-a-guest --``: a program that runs
   the rest of its arguments as root, on this file system (a relative path counts from the root of the repository);
3. a virtual machine with this host's kernel, if virtme-ng (``vng``) is installed.

Where there is none they are skipped, or fail if ``CI`` is ``true``. Each other process is pytest again, with
``--kernel-reports FILE``: there each test simply runs, and each report is appended to FILE.

With pytest-xdist (``-n 4 --dist loadfile``) each of its processes has the kernel tests of a file run once it has been
handed that file.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from peerlane.workers.dataplane.kernel import kernel_available

COMMAND = "PEERLANE_TEST_KERNEL"
MISSING = (
    f"needs a kernel with WireGuard: run pytest as root on one, install virtme-ng (vng), or set {COMMAND} to a command"
    " that runs another as root on such a kernel"
)

#: Seconds without any report, or the end, until the other process is taken for dead: more than one test may take.
SILENCE = 300.0
_TAIL = 4000
#: What a shell says of a command that it cannot run.
_CANNOT_RUN = 127
_BRIDGES = pytest.StashKey["dict[Path | None, Bridge | None]"]()

# A mount namespace too, so that /sys shows the network namespace's devices.
_OWN_NAMESPACE = ["unshare", "--net", "--mount", "sh", "-c"]
_ENTER = 'mount -t sysfs sysfs /sys && ip link set lo up && exec "$@"'


def find_kernel(root: Path) -> list[str] | None:
    """The words to put before a command so that it runs on a kernel with WireGuard; None if there is no such place."""
    if os.geteuid() == 0 and kernel_available() is None:
        here = [*_OWN_NAMESPACE, _ENTER, "sh"]
        if subprocess.run([*here, "true"], capture_output=True, check=False).returncode == 0:
            return here
    command = shlex.split(os.environ.get(COMMAND, ""))
    if command:
        # A bare name is looked up on PATH.
        return [str(root / command[0]), *command[1:]] if "/" in command[0] else command
    if shutil.which("vng"):
        return ["vng", "--run", "--rw", "--cwd", str(root), "--memory", "4G", "--"]
    return None


@dataclass
class Batch:
    """The tests of one file: one boot, so that a kernel that is lost takes no other file's tests with it."""

    nodeids: list[str]
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    status: int | None = None

    @property
    def output(self) -> Path:
        """What the other process prints."""
        return self.directory / "output"


class Bridge:
    """The other processes, one batch after another, beside the tests that run here; and what they have reported."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item], kernel: list[str]) -> None:
        # On this file system and not below /tmp, which may be another one on the other side.
        cache = config.rootpath / ".pytest_cache"
        cache.mkdir(exist_ok=True)
        self._directory = Path(tempfile.mkdtemp(prefix="kernel-", dir=cache))
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._config = config
        self._kernel = kernel
        self._rest = b""
        self._last_sign = time.monotonic()
        self._sink = self._directory / "reports"
        self._sink.touch()
        self._source: IO[bytes] = self._sink.open("rb")
        self._batches: list[Batch] = []
        for number, (_, batch) in enumerate(itertools.groupby(items, lambda item: item.path)):
            directory = self._directory / str(number)
            directory.mkdir()
            self._batches.append(Batch([item.nodeid for item in batch], directory))
        self._batch_of = {nodeid: batch for batch in self._batches for nodeid in batch.nodeids}
        self._starting = threading.Lock()
        self._closed = False
        self._runner = threading.Thread(target=self._run, name="kernel-tests", daemon=True)
        self._runner.start()

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The item's reports, as they come in; a failed one at the end if its process died before its last."""
        batch = self._batch_of[item.nodeid]
        self._last_sign = time.monotonic()
        while True:
            # In this order: what was written before the end must still be read.
            ended = batch.status is not None
            self._read()
            for report in self._reports.pop(item.nodeid, []):
                yield report
                if report.when == "teardown":
                    return
            if ended:
                yield self._died(item, batch, f"ended with status {batch.status}")
                return
            if time.monotonic() - self._last_sign > SILENCE:
                if batch.process is not None:
                    _kill(batch.process)
                yield self._died(item, batch, f"said nothing for {SILENCE:.0f} s and was killed")
                return
            time.sleep(0.02)

    def close(self) -> None:
        """End the process, if it has not, and remove its files."""
        with self._starting:
            self._closed = True
        for batch in self._batches:
            if batch.process is not None:
                _kill(batch.process)
        self._runner.join()
        self._source.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self) -> None:
        """Run the batches, in a thread of its own."""
        for batch in self._batches:
            with self._starting, batch.output.open("wb") as output:
                if self._closed:
                    return
                try:
                    batch.process = subprocess.Popen(
                        self._command(batch),
                        cwd=self._config.rootpath,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                except OSError as error:
                    output.write(str(error).encode())
                    batch.status = _CANNOT_RUN
                    continue
            batch.status = batch.process.wait()

    def _command(self, batch: Batch) -> list[str]:
        config = self._config
        arguments = batch.directory / "arguments"
        arguments.write_text("\n".join(batch.nodeids) + "\n")
        return [
            *self._kernel,
            *(sys.executable, "-m", "pytest", f"--kernel-reports={self._sink}", f"--rootdir={config.rootpath}"),
            *((f"-c{config.inipath}",) if config.inipath else ()),
            *("-v" for _ in range(config.get_verbosity())),
            *("-p", "no:cacheprovider", f"--tb={config.getoption('tbstyle')}", f"@{arguments}"),
        ]

    def _read(self) -> None:
        """Take in whole lines that were appended since."""
        *lines, self._rest = (self._rest + self._source.read()).split(b"\n")
        for line in lines:
            data: dict[str, Any] = json.loads(line)
            if data["outcome"] == "skipped" and "wasxfail" not in data:
                # A skip's (file, line, reason): JSON has no tuples, and pytest insists on one.
                data["longrepr"] = tuple(data["longrepr"])
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            self._reports.setdefault(report.nodeid, []).append(report)
            self._last_sign = time.monotonic()

    @staticmethod
    def _died(item: pytest.Item, batch: Batch, how: str) -> pytest.TestReport:
        tail = batch.output.read_bytes()[-_TAIL:].decode("utf-8", "replace")
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=f"the kernel's side {how} before this test was done; its last words:\n{tail}",
            when="call",
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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
    config.addinivalue_line("markers", "kernel: needs a kernel with WireGuard, see tests/support/kernel_bridge.py")
    config.stash[_BRIDGES] = {}
    sink: Path | None = config.getoption("--kernel-reports")
    if sink is not None:
        config.pluginmanager.register(Reporter(config, sink))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernel tests come last: pytest carries fixtures from each test to the next, and these must not be in between."""
    items.sort(key=_is_for_the_kernel)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Begin before the first test that runs here: the kernel's side takes as long as all of those."""
    kernel_tests = [item for item in session.items if _is_for_the_kernel(item)]
    if kernel_tests and not session.config.option.collectonly and not _is_one_of_several(session.config):
        _bridge_for(kernel_tests[0])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Replay a kernel test's reports instead of running it."""
    bridge = _bridge_for(item)
    if bridge is None:
        if nextitem is None or not _is_for_the_kernel(nextitem):
            return None
        # Nothing is carried over to a test that is replayed: it would never be torn down.
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        return True
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
    for bridge in session.config.stash[_BRIDGES].values():
        if bridge is not None:
            bridge.close()


def _is_for_the_kernel(item: pytest.Item) -> bool:
    return item.get_closest_marker("kernel") is not None and item.config.getoption("--kernel-reports") is None


def _is_one_of_several(config: pytest.Config) -> bool:
    """Whether this process is one of pytest-xdist's, which all collect every test and run some of them."""
    return hasattr(config, "workerinput")


def _bridge_for(item: pytest.Item) -> Bridge | None:
    """The bridge that runs this test, begun for the first one; None if the test is to run here."""
    if not _is_for_the_kernel(item):
        return None
    bridges = item.config.stash[_BRIDGES]
    path = item.path if _is_one_of_several(item.config) else None
    if path not in bridges:
        kernel = find_kernel(item.config.rootpath)
        items = [other for other in item.session.items if _is_for_the_kernel(other) and path in {None, other.path}]
        bridges[path] = None if kernel is None else Bridge(item.config, items, kernel)
    return bridges[path]
