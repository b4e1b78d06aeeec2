"""Two hosts on one machine for kernel tests: a gateway's network namespace and a client's, joined by a veth pair."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import run
from gateways import ROOT, clean_environment

_numbers = itertools.count()

GATEWAY_ADDRESS = "192.0.2.1"
CLIENT_ADDRESS = "192.0.2.2"
ENDPOINT = f"{GATEWAY_ADDRESS}:51820"


@dataclass(frozen=True)
class Sites:
    """The names of the two network namespaces."""

    gateway: str
    client: str

    @property
    def prefix(self) -> list[str]:
        """Before a command: run it on the gateway's host. Replaces itself with the command."""
        return ["ip", "netns", "exec", self.gateway]

    def on_gateway(self, *command: str) -> str:
        """A command's output there."""
        return run("ip", "netns", "exec", self.gateway, *command)

    def on_client(self, *command: str) -> str:
        """A command's output there."""
        return run("ip", "netns", "exec", self.client, *command)

    def reaches(self, address: str, *, source: str | None = None, tries: int = 5) -> bool:
        """Whether a ping from the client comes back; the first may be the one that makes the handshake."""
        chosen = ["-I", source] if source else []
        command = ["ping", "-c", str(tries), "-i", "0.2", "-W", "1", "-w", str(tries), *chosen, address]
        done = subprocess.run(
            ["ip", "netns", "exec", self.client, *command], capture_output=True, check=False, timeout=60
        )
        return b" 0 received" not in done.stdout and done.returncode == 0

    def session(self, public_key: str, interface: str = "wg0") -> tuple[int, int, int]:
        """(latest handshake, bytes received, bytes sent) of a peer on the gateway's device."""
        for line in self.on_gateway("wg", "show", interface, "dump").splitlines()[1:]:
            row = line.split("\t")
            if row[0] == public_key:
                return int(row[4]), int(row[5]), int(row[6])
        raise AssertionError(f"{public_key} is not on {interface}")

    @contextmanager
    def tunnel(self, conf: Path) -> Generator[None]:
        """The client's tunnel, made by wg-quick from nothing but the file."""
        self.on_client("wg-quick", "up", str(conf))
        try:
            yield
        finally:
            self.on_client("wg-quick", "down", str(conf))


@contextmanager
def sites() -> Generator[Sites]:
    """Two hosts that reach each other, and nothing else."""
    number = next(_numbers)
    if not Path("/dev/fd").exists():
        Path("/dev/fd").symlink_to("/proc/self/fd")  # wg-quick's bash wants it; a kernel without udev lacks it
    made = Sites(f"gw{os.getpid()}x{number}", f"cl{os.getpid()}x{number}")
    try:
        for name in (made.gateway, made.client):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", made.gateway, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", made.client)
        for name, address in ((made.gateway, GATEWAY_ADDRESS), (made.client, CLIENT_ADDRESS)):
            run("ip", "-n", name, "addr", "add", f"{address}/30", "dev", "up0")
            run("ip", "-n", name, "link", "set", "up0", "up")
        yield made
    finally:
        for name in (made.gateway, made.client):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def peerlane(*arguments: str, redis_url: str, expect: int = 0) -> Any:
    """The command line, as a user types it, with ``--json``; what it prints. AssertionError on another exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "peerlane.workers.cli", *arguments, "--json"],
        cwd=ROOT,
        env=clean_environment() | {"PEERLANE_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == expect, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


@contextmanager
def steady_ping(made: Sites, address: str, *, every: float = 0.02) -> Generator[Sequence[str]]:
    """Ping from the client all the while; afterwards the list holds closing words like ping's own.

    A ping that is still on its way at the end counts for neither: lost is what a later one has overtaken.
    """
    words: list[str] = []
    process = subprocess.Popen(
        ["ip", "netns", "exec", made.client, "ping", "-i", str(every), "-W", "2", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        yield words
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        answered = {int(number) for number in re.findall(r"bytes from .* icmp_seq=(\d+) ", out)}
        sent = max(answered, default=0)
        lost = 100 * (sent - len(answered)) / sent if sent else 100
        words.append(f"{sent} packets transmitted, {len(answered)} received, {lost:g}% packet loss")
