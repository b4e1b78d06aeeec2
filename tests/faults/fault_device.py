"""A device that outlives its writer, as the kernel's does, for fault runs without WireGuard; and its gateway.

It is the product's memory device with a file behind it: each change is appended in one write, so that kill -9 leaves
exactly what was applied. Taking the file away is what ``ip link del`` is to a real device.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from peerlane.config.settings import Settings
from peerlane.tasks.errors import KernelError
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers import failpoints, gateway
from peerlane.workers.dataplane import (
    AddRoute,
    Change,
    DeviceFacts,
    DevicePeer,
    DeviceSpec,
    RemovePeer,
    RemoveRoute,
    SetPeer,
)
from peerlane.workers.dataplane.factory import Plane
from peerlane.workers.dataplane.memory import MemoryDataPlane

#: Names the device's file to the gateway's process.
VARIABLE = "PEERLANE_TEST_DEVICE"


class LastingDevice:
    """A DataPlane whose state is the file at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._memory = MemoryDataPlane()

    def open(self, spec: DeviceSpec) -> DeviceFacts:
        made = not self._path.exists()
        self._path.touch()
        self._inode = self._path.stat().st_ino
        self._memory = MemoryDataPlane()
        facts = self._memory.open(spec)
        self._memory.apply([_decoded(line) for line in self._path.read_text().splitlines()])
        return DeviceFacts(facts.public_key, facts.listen_port, made)

    def peers(self) -> Mapping[str, DevicePeer]:
        self._require()
        return self._memory.peers()

    def routes(self) -> frozenset[Prefix]:
        self._require()
        return self._memory.routes()

    def apply(self, changes: Sequence[Change]) -> None:
        for number, change in enumerate(changes):
            if number:
                failpoints.reach("between_changes")
            self._require()
            self._memory.apply([change])
            with self._path.open("ab", buffering=0) as file:
                file.write(_encoded(change))

    def alive(self) -> bool:
        return self._memory.alive() and self._path.exists() and self._path.stat().st_ino == self._inode

    def close(self) -> None:
        self._memory.close()

    def _require(self) -> None:
        if not self.alive():
            raise KernelError("no such device")


def look(path: Path, spec: DeviceSpec) -> tuple[Mapping[str, DevicePeer], frozenset[Prefix]]:
    """Peers and per-peer routes of the device at ``path``, read from outside."""
    memory = MemoryDataPlane()
    memory.open(spec)
    memory.apply([_decoded(line) for line in path.read_text().splitlines()])
    return memory.peers(), memory.routes()


def since(path: Path) -> dict[str, float]:
    """Since when each peer has been on the device, on the machine's monotonic clock."""
    moments: dict[str, float] = {}
    for line in path.read_text().splitlines():
        match json.loads(line):
            case {"set": key, "at": at}:
                moments.setdefault(key, at)
            case {"remove": key}:
                moments.pop(key, None)
            case _:
                pass
    return moments


def tamper(path: Path, changes: Sequence[Change]) -> None:
    """Change the device behind its writer's back."""
    with path.open("ab", buffering=0) as file:
        file.write(b"".join(map(_encoded, changes)))


def _encoded(change: Change) -> bytes:
    match change:
        case SetPeer():
            fields: dict[str, Any] = {
                "set": change.public_key,
                "ips": sorted(map(str, change.allowed_ips)),
                "psk": change.preshared_key,
                "keepalive": change.keepalive,
                "at": time.monotonic(),
            }
        case RemovePeer():
            fields = {"remove": change.public_key}
        case AddRoute():
            fields = {"route": str(change.prefix)}
        case RemoveRoute():
            fields = {"unroute": str(change.prefix)}
    return json.dumps(fields).encode() + b"\n"


def _decoded(line: str) -> Change:
    match json.loads(line):
        case {"set": key, "ips": ips, "psk": psk, "keepalive": keepalive}:
            return SetPeer(key, frozenset(map(Prefix.parse, ips)), psk, keepalive)
        case {"remove": key}:
            return RemovePeer(key)
        case {"route": text}:
            return AddRoute(Prefix.parse(text))
        case {"unroute": text}:
            return RemoveRoute(Prefix.parse(text))
        case other:
            raise ValueError(f"no change: {other}")


def open_plane(settings: Settings) -> Plane:
    """In place of the factory's: as the kernel's, this device outlives its writer and is locked by its name."""
    device = LastingDevice(Path(os.environ[VARIABLE]))
    return Plane("kernel", settings.interface, device, None, None, on_host=True, missing=lambda: None)


if VARIABLE in os.environ:  # in the gateway's process: `celery -A fault_device worker`
    cast("Any", gateway).open_plane = open_plane
app = gateway.app
