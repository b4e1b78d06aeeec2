"""Peerlane as users install it: the wheel and what it declares in a fresh environment, without a developer's tools."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
#: Where the tools of these tests are; an environment under test has none of them.
TOOLS = Path(sys.executable).parent


def output_of(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, within: float = 300) -> str:
    """What a command prints that has to succeed."""
    ran = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=within, check=False)
    assert ran.returncode == 0, f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def build_wheel(target: Path) -> Path:
    """The wheel of this working copy, as `pip wheel` builds it."""
    output_of(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target, cwd=ROOT)
    (wheel,) = target.glob("*.whl")
    return wheel


def environment_of_a_user(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment without what makes other packages importable, and without settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PEERLANE_", "FLOWER_", "CELERY_", "PYTHON", "VIRTUAL_ENV"))
    } | dict(settings or {})


class Started:
    """A process that a test started, and what it has said."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """All it has said."""
        return self._log.read_text(errors="replace")

    def says(self, sentence: str, *, within: float = 60) -> None:
        """Wait until it has said this; it must not end before."""

        def said() -> bool:
            if sentence in self.log:
                return True
            assert self.process.poll() is None, f"ended with {self.process.returncode}; it said:\n{self.log}"
            return False

        try:
            eventually(said, sentence, within=within)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.log}") from None


class Installation:
    """A virtual environment that holds the wheel, one choice of extras, and their declared closure."""

    def __init__(self, directory: Path, wheel: Path, extras: Sequence[str]) -> None:
        """Make it. Versions are the lock's."""
        self.bin = directory / "bin"
        uv = TOOLS / "uv"
        output_of(uv, "venv", "--quiet", "--python", sys.executable, directory, cwd=directory.parent)
        wanted = f"peerlane[{','.join(extras)}] @ {wheel.as_uri()}"
        install = [uv, "pip", "install", "--quiet", "--python", self.bin / "python"]
        output_of(*install, "--constraints", ROOT / "constraints.txt", wanted, cwd=directory.parent)

    def run(
        self, program: str, *words: str | Path, cwd: Path, within: float = 120, env: Mapping[str, str] | None = None
    ) -> str:
        """What one of its programs prints; it has to succeed."""
        command = [self.bin / program, *words]
        return output_of(*command, cwd=cwd, env=environment_of_a_user(env), within=within)

    @contextmanager
    def running(
        self, program: str, *words: str | Path, cwd: Path, log: Path, env: Mapping[str, str] | None = None
    ) -> Generator[Started]:
        """One of its programs, in a session of its own; asked to end afterwards, which it has to do with status 0."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self.bin / program, *words],
                cwd=cwd,
                env=environment_of_a_user(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Started(process, log)
        try:
            yield started
            process.terminate()
            status = process.wait(60)
            assert status == 0, f"{program} ended with {status}; it said:\n{started.log}"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
