"""Devices for tests: a data plane of either kind and the means to look at it from outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import DataPlane, DeviceSpec
from peerlane.workers.dataplane.counters import CounterSource
from peerlane.workers.dataplane.kernel import KernelDataPlane
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.dataplane.reader import KernelCounters


@dataclass(frozen=True)
class Rig:
    """A plane, what to open, and who counts. The device is gone afterwards."""

    plane: DataPlane
    counters: CounterSource
    spec: DeviceSpec


def prefix(text: str) -> Prefix:
    """Short for tests: a bare address is a host."""
    return Prefix.parse(text)


def prefixes(*texts: str) -> frozenset[Prefix]:
    """Several at once."""
    return frozenset(map(Prefix.parse, texts))


def spec_for(interface: str, directory: Path) -> DeviceSpec:
    """A device with an IPv4 and an IPv6 pool, an address in each, a further pool without, and any free port."""
    addresses = (Prefix.parse_interface("10.8.0.1/16"), Prefix.parse_interface("fd08::1/64"))
    pools = (*(pool for _, pool in addresses), prefix("10.9.0.0/16"))
    return DeviceSpec(interface, directory / "private.key", 0, addresses=addresses, routes=pools)


def run(*command: str) -> str:
    """A command's output. CalledProcessError where it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def wg_dump(interface: str) -> dict[str, list[str]]:
    """``wg show INTERFACE dump``: public key → preshared key, endpoint, allowed IPs, handshake, rx, tx, keepalive."""
    rows = [line.split("\t") for line in run("wg", "show", interface, "dump").splitlines()[1:]]
    return {row[0]: row[1:] for row in rows}


@contextmanager
def memory_rig(directory: Path) -> Generator[Rig]:
    """A device in this process."""
    plane = MemoryDataPlane()
    yield Rig(plane, plane, spec_for("memory0", directory))


@contextmanager
def kernel_rig(directory: Path) -> Generator[Rig]:
    """A real device with a name of its own, made when it is opened."""
    interface = f"wgt{os.urandom(4).hex()}"
    plane, counters = KernelDataPlane(), KernelCounters(interface)
    try:
        yield Rig(plane, counters, spec_for(interface, directory))
    finally:
        counters.close()
        plane.close()
        delete(interface)


def delete(interface: str) -> None:
    """Take a device away, if it is there."""
    # Not ip(8): starting a process takes 0.4 s in a guest.
    with IPRoute() as opened:
        links: Any = opened
        for index in links.link_lookup(ifname=interface):
            links.link("del", index=index)
