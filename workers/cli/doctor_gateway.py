"""The checks of ``peerlane doctor NAME`` on a gateway's host: whether a client with its configuration can connect."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis import Redis

from peerlane.config.hosts import endpoint_doubt, endpoint_host
from peerlane.config.settings import Settings
from peerlane.tasks.admission.lane_state import number
from peerlane.tasks.errors import SettingsError
from peerlane.workers.cli.check import Check
from peerlane.workers.dataplane import keyfile
from peerlane.workers.dataplane.factory import device_spec, open_plane
from peerlane.workers.start.takeover import elsewhere

_SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def forwarding(settings: Settings) -> Iterator[Check]:
    """Whether the kernel forwards packets of peers, for each IP version that has pools."""
    _, pools, _ = device_spec(settings)
    for version in sorted({pool.version for pool in pools}):
        switch = Path("/proc/sys/net", _SWITCHES[version])
        name = f"net.{_SWITCHES[version].replace('/', '.')}"
        if not switch.exists():
            yield Check("forwarding", "warning", f"there is no {name}: the kernel runs without IPv{version}")
        elif switch.read_text(encoding="ascii").strip() == "0":
            yield Check("forwarding", "warning", f"{name} is 0: peers reach this host only (sysctl -w {name}=1)")
        else:
            yield Check("forwarding", "ok", f"{name} is on; what peers send out needs NAT or a route back, too")


def on_this_host(settings: Settings, facts: Mapping[str, str], redis: Redis) -> Iterator[Check]:
    """Check endpoint, port and key of the gateway that the settings name; ``facts`` are those of its hash.

    Raises redis.RedisError.
    """
    if not facts.get("public_key"):
        yield Check(f"gateway {settings.gateway}", "failed", "has not registered: peerlane gateway run NAME starts it")
        return
    yield from _endpoint(settings, facts.get("endpoint", ""))
    plane = open_plane(settings)
    seconds, _ = redis.time()
    if (host := elsewhere(facts, plane.lock_name, seconds * 1000)) is not None:
        place = host
        if host == socket.gethostname():
            place = "this host with another device or data plane than these settings name, or in another namespace"
        yield Check("host", "warning", f"its writer is on {place}: port and key are looked at there")
        return
    if plane.on_host:
        yield _port(number(facts.get("listen_port", "")))
    yield _key(settings.key_file, facts["public_key"])


def _endpoint(settings: Settings, endpoint: str) -> Iterator[Check]:
    if settings.endpoint not in (None, endpoint):
        restart = f"clients are given {endpoint}, PEERLANE_ENDPOINT is {settings.endpoint}: start the gateway anew"
        yield Check("endpoint", "warning", restart)
    if (doubt := endpoint_doubt(endpoint)) is not None:
        yield Check("endpoint", "warning", f"{endpoint}: {doubt}")
        return
    try:
        entries = socket.getaddrinfo(endpoint_host(endpoint), None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        yield Check("endpoint", "failed", f"{endpoint} cannot be looked up here: {error}")
        return
    addresses = ", ".join(sorted({str(entry[4][0]) for entry in entries}))
    yield Check("endpoint", "ok", f"{endpoint} is {addresses}; its UDP port has to be open from where clients are")


def _port(port: int) -> Check:
    if port in _bound_ports():
        return Check("UDP port", "ok", f"{port} is bound on this host")
    return Check("UDP port", "failed", f"nothing listens on UDP port {port} here: is the gateway running on this host?")


def _bound_ports() -> set[int]:
    ports: set[int] = set()
    for table in ("udp", "udp6"):
        path = Path("/proc/net", table)
        lines = path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else []
        ports |= {int(line.split()[1].rpartition(":")[2], 16) for line in lines}
    return ports


def _key(path: Path, registered: str) -> Check:
    try:
        ours = keyfile.public_key_in(path)
    except FileNotFoundError:
        lost = f"{path} is not there, and clients were given {registered}: put it back before the next start"
        return Check("key", "failed", lost)
    except OSError as error:
        return Check("key", "warning", f"{path} cannot be read by this user: {error.strerror}; look as root")
    except SettingsError as error:
        return Check("key", "failed", error.message)
    if ours != registered:
        return Check("key", "failed", f"{path} is the key of {ours}, and clients were given {registered}")
    return Check("key", "ok", f"{path} is the key that clients were given")
