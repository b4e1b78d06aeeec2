"""Device locks: at most one writer and one observer for each device, by an abstract unix socket.

The kernel releases the socket when the process ends. Its scope is the network namespace, as the device's is.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from peerlane.config import names
from peerlane.tasks.errors import LaneHeld

_UCRED = struct.Struct("iII")
_A = {"writer": "a writer", "observer": "an observer"}


class DeviceLock:
    """A lock that is held from ``acquire`` until ``release`` or the end of the process.

    The scope of an abstract socket is the network namespace (unix(7)), as it is the device's: no two writers of one
    device, while namesakes in other namespaces do not disturb each other.
    """

    def __init__(self, device: str, role: Literal["writer", "observer"]) -> None:
        self.device = device
        self.role = role
        self._name = names.writer_lock(device) if role == "writer" else names.observer_lock(device)
        self._socket: socket.socket | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LaneHeld: says which process holds it.
        """
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            lock.bind(self._name)
            lock.listen(8)
            lock.setblocking(False)  # noqa: FBT003 - its only parameter
        except OSError:
            lock.close()
            raise LaneHeld(f"the device {self.device} already has {_A[self.role]} here: {self._holder()}") from None
        self._socket = lock

    def _holder(self) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.settimeout(1)
            probe.connect(self._name)
            pid, _, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return f"process {pid}"
        return "a process that could not be asked"

    def heed(self) -> None:
        """Close the connections of those who have asked which process holds the lock; unheeded they fill its queue."""
        with contextlib.suppress(OSError):
            while self._socket is not None:
                self._socket.accept()[0].close()

    def release(self) -> None:
        """Release the lock."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class WriterLock(DeviceLock):
    """The lock of a device's writer."""

    def __init__(self, device: str) -> None:
        super().__init__(device, "writer")


class ObserverLock(DeviceLock):
    """The lock of a device's observer."""

    def __init__(self, device: str) -> None:
        super().__init__(device, "observer")


def namespace() -> str:
    """This process' boot and network namespace, which is the scope of the lock."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/net').readlink()}"
    return f"unknown/{os.getpid()}"
