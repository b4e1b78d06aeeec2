"""What is read of the environment that a service manager gives a service; what it is told: test_supervise.py."""

from __future__ import annotations

import os

import pytest

from peerlane.workers.host.service_manager import ServiceManager


@pytest.mark.parametrize("named", [None, "", "vsock:2:1234", "relative/path"])
def test_without_a_socket_nothing_is_said(named: str | None) -> None:
    manager = ServiceManager.of({} if named is None else {"NOTIFY_SOCKET": named, "WATCHDOG_USEC": "1000000"})
    assert manager == ServiceManager()
    manager.tell("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "every"),
    [
        ("30000000", None, 15.0),
        ("30000000", "ours", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_fed_at_twice_the_pace_it_asks_for(
    usec: str | None, pid: str | None, every: float | None
) -> None:
    environment = {"NOTIFY_SOCKET": "/run/systemd/notify"}
    environment |= {} if usec is None else {"WATCHDOG_USEC": usec}
    environment |= {} if pid is None else {"WATCHDOG_PID": str(os.getpid()) if pid == "ours" else pid}
    assert ServiceManager.of(environment) == ServiceManager("/run/systemd/notify", every)
