"""Sends sd_notify(3) messages to the service manager's socket, NOTIFY_SOCKET. Never raises."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """systemd, or a compatible service manager. Without a socket nothing is sent."""

    address: str | None = None
    #: Seconds between two signs of life that it asks for (WatchdogSec); None: it asks for none.
    asks_every: float | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceManager:
        """The service manager of the process' environment."""
        named = environment.get("NOTIFY_SOCKET", "")
        if named[:1] not in ("/", "@"):
            return cls()
        micros, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        asked = micros.isdecimal() and int(micros) > 0 and pid in ("", str(os.getpid()))
        # Half of what it waits for, as sd_watchdog_enabled(3) recommends.
        return cls(named, int(micros) / 2e6 if asked else None)

    def tell(self, *lines: str) -> None:
        """Send a message such as READY=1, STATUS=…, WATCHDOG=1."""
        if self.address is None:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.settimeout(0)
            sending.sendto("\n".join(lines).encode(), name)


#: What a child's environment does not hold: it is this process that the service manager hears.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
