"""A Flower with the command line of compose.yaml, on a port of its own; its user is ada, her password love."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


@dataclass(frozen=True)
class Page:
    """What Flower answers."""

    USER: ClassVar[str] = "ada:love"

    url: str
    pid: int
    log: Path

    def get(self, path: str, *, user: str = "", post: bool = False) -> tuple[int, str]:
        """Status and body of one request; (0, "") while nobody listens."""
        request = urllib.request.Request(self.url + path, data=b"" if post else None)  # noqa: S310, http on loopback
        if user:
            request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310, as above
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode(errors="replace")
        except OSError:
            return 0, ""

    def status(self, path: str, *, user: str = "", post: bool = False) -> int:
        """The status alone."""
        return self.get(path, user=user, post=post)[0]

    def text(self, path: str) -> str:
        """The body, for ada."""
        return self.get(path, user=self.USER)[1]


@contextmanager
def flower(redis_url: str, directory: Path, **variables: str) -> Generator[Page]:
    """Run it; it ends in good order afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    here = {"--port=5555": f"--port={port}", "--db=/var/lib/peerlane/flower/state": f"--db={directory / 'state'}"}
    command: list[str] = COMPOSE["services"]["flower"]["command"]
    words = [here.get(word, word) for word in command]
    assert set(here.values()) <= set(words)
    program = shutil.which(words[0], path=str(Path(sys.executable).parent))
    assert program is not None
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PEERLANE_", "FLOWER_", "CELERY_"))}
    log = directory / "flower.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *words[1:]],
            cwd=directory,
            env={**inherited, "PEERLANE_REDIS_URL": redis_url, "FLOWER_BASIC_AUTH": Page.USER, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    page = Page(f"http://127.0.0.1:{port}", process.pid, log)

    def answers() -> bool:
        assert process.poll() is None, f"Flower ended: {log.read_text()[-3000:]}"
        return page.status("/healthcheck") == 200

    try:
        eventually(answers, "Flower to answer")
        yield page
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
