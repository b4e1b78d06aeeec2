"""The observer of a fault run: ``celery -A fault_observed worker``. It may be told to decide for a short time only.

Without WireGuard it looks at the file that fault_device.py keeps. Half of that device's peers are in use: each
handshakes every two seconds, and its counters grow from the moment at which the device got it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import fault_device

from peerlane.config.settings import Settings, current
from peerlane.tasks.errors import KernelError
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers import observer
from peerlane.workers.dataplane import DeviceIdentity, DevicePeer, DeviceSpec, keyfile
from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.dataplane.factory import Plane, device_spec
from peerlane.workers.upkeep import sweeper as sweeping
from peerlane.workers.upkeep import writer_requests as errands

#: Names how many seconds a decision holds, instead of the product's 30.
WITHIN = "PEERLANE_TEST_WITHIN"
#: Seconds between two handshakes.
_REKEYED = 2.0

_T = TypeVar("_T")


class Eyes:
    """In place of the kernel's counters and view."""

    complete = True

    def __init__(self) -> None:
        self._path = Path(os.environ[fault_device.VARIABLE])

    def counters(self) -> Iterator[list[PeerCounters]]:
        """As ``CounterSource.counters``."""
        now, wall = time.monotonic(), time.time()
        yield [_activity(key, now - at, wall) for key, at in self._read(fault_device.since).items()]

    def peers(self) -> Iterator[DevicePeer]:
        """As KernelView has it, and the following."""
        yield from self._look()[0].values()

    def routes(self) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        return self._look()[1], frozenset(_spec().routes)

    def up(self) -> bool:
        return self._path.exists()

    def identity(self) -> DeviceIdentity:
        spec = _spec()
        return DeviceIdentity(keyfile.public_key_in(spec.private_key_file), spec.listen_port, spec.mtu or 1420)

    def index(self) -> int:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """There is nothing to let go of."""

    def _look(self) -> tuple[Mapping[str, DevicePeer], frozenset[Prefix]]:
        return self._read(partial(fault_device.look, spec=_spec()))

    def _read(self, look: Callable[[Path], _T]) -> _T:
        try:
            return look(self._path)
        except FileNotFoundError:
            raise KernelError("there is no such device") from None


def talks(key: str) -> bool:
    """Whether the peer is in use, where the device is a file."""
    return hashlib.sha256(key.encode()).digest()[2] % 2 == 0


def _activity(key: str, age: float, wall: float) -> PeerCounters:
    if not talks(key):
        return PeerCounters(key, 0.0, 0, 0, None)
    passed = int(age * 1000)
    return PeerCounters(key, wall - age % _REKEYED, 148 + passed, 92 + 2 * passed, ("192.0.2.9", 51820))


def _spec() -> DeviceSpec:
    return device_spec(current())[0]


def open_plane(settings: Settings) -> Plane:
    """In place of the factory's: the writer's device, looked at through its file."""
    eyes = Eyes()
    return dataclasses.replace(fault_device.open_plane(settings), counters=eyes, view=eyes)


if fault_device.VARIABLE in os.environ:
    cast("Any", observer).open_plane = open_plane
if WITHIN in os.environ:
    cast("Any", errands).WITHIN = cast("Any", sweeping).FRESH = float(os.environ[WITHIN])
app = observer.app
