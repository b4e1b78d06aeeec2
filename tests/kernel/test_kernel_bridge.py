"""The bridge to a kernel with WireGuard: tried with commands that only pretend to be one."""

from __future__ import annotations

import stat
from pathlib import Path

import kernel_bridge
import pytest

TESTS = """
    import os
    import pytest

    def test_that_needs_no_kernel():
        assert "KERNEL_SIDE" not in os.environ

    @pytest.mark.kernel
    def test_that_passes():
        assert os.environ["KERNEL_SIDE"] == "1"

    @pytest.mark.kernel
    def test_that_fails():
        assert {"the answer": 41} == {"the answer": 42}

    @pytest.mark.kernel
    @pytest.mark.parametrize("what", ["a name with spaces", "ünïcode"])
    def test_with_a_parameter(what):
        assert what

    @pytest.mark.kernel
    def test_that_skips():
        pytest.skip("because it wants to")

    @pytest.fixture
    def broken():
        raise OSError("no such thing")

    @pytest.mark.kernel
    def test_that_cannot_begin(broken):
        pass
"""


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with nothing but the bridge, and a host without WireGuard, virtme-ng or CI."""
    monkeypatch.setattr(kernel_bridge, "kernel_available", lambda: "this host has no WireGuard")
    monkeypatch.setattr(kernel_bridge.shutil, "which", _no_program)
    monkeypatch.delenv(kernel_bridge.COMMAND, raising=False)
    monkeypatch.delenv("CI", raising=False)
    pytester.makeconftest('pytest_plugins = ["kernel_bridge"]')
    pytester.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        pythonpath = ["{Path(kernel_bridge.__file__).parent}"]
        addopts = ["--strict-markers"]
        timeout = 60
        """
    )
    return pytester


def test_without_a_kernel_they_are_skipped_with_a_sentence_saying_what_to_install(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-rs")
    result.assert_outcomes(passed=1, skipped=6)
    result.stdout.fnmatch_lines(["*run pytest as root on one, install virtme-ng (vng), or set PEERLANE_TEST_KERNEL*"])


def test_without_a_kernel_they_fail_where_ci_is_true(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(TESTS)
    pytester.runpytest_inprocess().assert_outcomes(passed=1, errors=6)


def test_they_run_through_the_command_and_come_out_as_if_they_had_run_here(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_bridge.COMMAND, "env KERNEL_SIDE=1")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-v", "-rs")
    result.assert_outcomes(passed=4, failed=1, skipped=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*::test_that_passes PASSED*", "E *no such thing", "E *'the answer': 41*", "*: because it wants to"]
    )
    assert not list(pytester.path.glob(".pytest_cache/kernel-*"))


def test_only_the_chosen_ones_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel_bridge.COMMAND, "env KERNEL_SIDE=1")
    pytester.makepyfile(TESTS)
    pytester.runpytest_inprocess("-k", "spaces").assert_outcomes(passed=1, deselected=6)


def test_fixtures_of_tests_that_run_here_are_torn_down_whatever_comes_between(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_bridge.COMMAND, "env")
    module = """
        import pytest

        @pytest.fixture(scope="module", autouse=True)
        def of_the_module():
            yield
            print("torn down")

        def test_here(): pass

        @pytest.mark.kernel
        def test_there(): pass
    """
    pytester.makepyfile(test_a=module, test_b=module, test_c=module)
    result = pytester.runpytest_inprocess("-s")
    result.assert_outcomes(passed=6)
    assert result.stdout.str().count("torn down") == 3


def test_one_start_serves_all_of_a_file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    count = pytester.path / "starts"
    kernel = _script(pytester.path / "kernel", f'echo started >> {count}; KERNEL_SIDE=1 exec "$@"')
    monkeypatch.setenv(kernel_bridge.COMMAND, f"{kernel}")
    pytester.makepyfile(TESTS)
    pytester.runpytest_inprocess().assert_outcomes(passed=4, failed=1, skipped=1, errors=1)
    assert count.read_text() == "started\n"


def test_one_start_serves_all_of_a_file_also_where_several_processes_share_the_tests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = pytester.path / "starts"
    kernel = _script(pytester.path / "kernel", f'echo started >> {count}; KERNEL_SIDE=1 exec "$@"')
    monkeypatch.setenv(kernel_bridge.COMMAND, f"{kernel}")
    pytester.makepyfile(test_a=TESTS, test_b=TESTS, test_c="def test_here(): pass")
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile")
    result.assert_outcomes(passed=9, failed=2, skipped=2, errors=2)
    assert count.read_text() == "started\n" * 2
    assert not list(pytester.path.glob(".pytest_cache/kernel-*"))


def test_they_run_beside_those_that_run_here(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel_bridge.COMMAND, "env")
    pytester.makepyfile(
        """
        import pathlib, pytest, time

        def test_here():
            until = time.monotonic() + 30
            while not pathlib.Path("there").exists():
                assert time.monotonic() < until
                time.sleep(0.02)

        @pytest.mark.kernel
        def test_there(): pathlib.Path("there").touch()
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_a_kernel_that_dies_takes_no_other_files_tests_with_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_bridge.COMMAND, "env")
    panics = "import os, pytest\n@pytest.mark.kernel\ndef test_that_panics(): os._exit(3)"
    pytester.makepyfile(test_a=panics, test_b="import pytest\n@pytest.mark.kernel\ndef test_after(): pass")
    pytester.runpytest_inprocess("-p", "no:faulthandler").assert_outcomes(passed=1, failed=1)


def test_a_command_that_is_not_there_fails_them(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel_bridge.COMMAND, "./nowhere")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=6)
    result.stdout.fnmatch_lines(["*No such file or directory: *nowhere'"])


def test_a_relative_command_counts_from_the_root_of_the_repository(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(pytester.path / "kernel", 'KERNEL_SIDE=1 exec "$@"')
    monkeypatch.setenv(kernel_bridge.COMMAND, "./kernel")
    pytester.makepyfile(TESTS)
    elsewhere = pytester.mkdir("elsewhere")
    monkeypatch.chdir(elsewhere)
    result = pytester.runpytest_inprocess("-k", "passes", f"--rootdir={pytester.path}", str(pytester.path))
    result.assert_outcomes(passed=1, deselected=6)


def test_a_kernel_that_dies_fails_what_it_had_not_done(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_bridge.COMMAND, "env")
    pytester.makepyfile(
        """
        import os, pytest
        pytestmark = pytest.mark.kernel
        def test_before(): pass
        def test_that_panics():
            os.write(1, b"Kernel panic - not syncing\\n")
            os._exit(3)
        def test_after(): pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:faulthandler")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*ended with status 3 before this test was done*"])


def test_a_command_that_cannot_start_a_kernel_fails_them_and_shows_what_it_said(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _script(pytester.path / "kernel", "echo no memory for the guest; exit 125")
    monkeypatch.setenv(kernel_bridge.COMMAND, f"{kernel}")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=6)
    result.stdout.fnmatch_lines(["*ended with status 125*", "no memory for the guest"])


def test_a_kernel_that_falls_silent_is_killed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bridge, "SILENCE", 0.3)
    kernel = _script(pytester.path / "kernel", "exec sleep 60")
    monkeypatch.setenv(kernel_bridge.COMMAND, f"{kernel}")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-k", "passes")
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(["*said nothing for 0 s and was killed*"])


def _no_program(_name: str) -> None:
    """What shutil.which answers where nothing is installed."""


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
