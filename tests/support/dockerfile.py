"""A Dockerfile followed without an engine: its steps, as they stand, on a directory in place of the image's root."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from installations import ROOT, environment_of_a_user, output_of

#: Directories of the image that its steps name; each is one below the directory of the test.
PLACES = ("/src", "/wheels", "/opt/peerlane", "/var/lib/peerlane", "/etc/peerlane")
#: Programs of the image's system that would change this one. They succeed if they are called as they may be.
_STAND_INS = 'useradd() { test "$1" = --system; }\n'


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile and what it is told; lines that go on are one."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def in_the_context(path: str) -> bool:
    """Whether .dockerignore lets it through to the engine: the last pattern that fits decides."""
    through = True
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        if fnmatch.fnmatch(path, pattern):
            through = line.startswith("!")
    return through


def base_python() -> Path:
    """An interpreter that every user may run: this one, or else the system's. This one also where there is none."""
    fits = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    for path in map(Path, (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3")):
        real = path.resolve()
        is_open = real.exists() and all(parent.stat().st_mode & 0o001 for parent in real.parents)
        if is_open and subprocess.run([path, "-c", fits], capture_output=True, check=False).returncode == 0:
            return real
    return Path(sys.executable)


class Image:
    """What the steps make. The base image is a new virtual environment, for each stage one."""

    def __init__(self, root: Path, owner: int) -> None:
        """Follow the steps. ``owner`` stands for the user that they make."""
        self.root = root
        self.user: str | None = None
        self.command: list[str] = []
        #: What an engine runs to see whether a container is well.
        self.health: list[str] = []
        self.labels: dict[str, str] = {}
        self.environment = environment_of_a_user()
        self.directory = root
        self._owner = owner
        stages = 0
        for word, rest in instructions((ROOT / "Dockerfile").read_text()):
            match word:
                case "FROM":
                    assert re.fullmatch(r"python:3\.\d+-slim( AS [a-z]+)?", rest), rest
                    stages += 1
                    system = root / f"system-{stages}"
                    output_of(base_python(), "-m", "venv", system, cwd=root)
                    self.environment = environment_of_a_user()
                    self.environment["PATH"] = f"{system / 'bin'}{os.pathsep}{self.environment['PATH']}"
                case "WORKDIR":
                    self.directory = Path(self.here(rest))
                    self.directory.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(rest)
                case "RUN":
                    self._run(rest)
                case "ENV":
                    for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
                        self.environment[name] = self.here(value).replace("$PATH", self.environment["PATH"])
                case "LABEL" | "HEALTHCHECK" | "USER" | "CMD":
                    self._note(word, rest)
                case _:
                    raise AssertionError(f"an instruction that is not followed: {word} {rest}")

    def _note(self, word: str, rest: str) -> None:
        """What an engine keeps of the image beside its files."""
        match word:
            case "LABEL":
                self.labels |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "HEALTHCHECK":
                options, _, command = rest.partition("CMD ")
                assert re.fullmatch(r"(--(interval|timeout|start-period)=\d+s\s+)*", options), options
                self.health = json.loads(command)
            case "USER":
                self.user = rest
            case _:
                self.command = json.loads(rest)

    def here(self, text: str) -> str:
        """The text with the image's directories as they are on this host."""
        return re.sub(rf"(?<![\w/.])({'|'.join(PLACES)})(?![\w-])", lambda place: f"{self.root}{place[1]}", text)

    def _copy(self, rest: str) -> None:
        *sources, target = shlex.split(rest)
        place = self.directory / target
        for name in sources:
            assert in_the_context(name), f".dockerignore keeps {name} from the engine"
            if (ROOT / name).is_dir():
                assert len(sources) == 1, "of a directory its content is copied"
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, place)

    def _run(self, rest: str) -> None:
        script = self.here(re.sub(r"--mount=\S+ +", "", rest))
        script = script.replace("--owner peerlane", f"--owner {self._owner}")
        output_of("sh", "-ec", _STAND_INS + script, cwd=self.directory, env=self.environment)
