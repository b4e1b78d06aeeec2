"""The real device: WireGuard in the Linux kernel, spoken to over netlink.

The only module that imports pyroute2, and only where a device is made or its addresses are set: importing this module
needs neither pyroute2 nor rights. Changes and dumps go through our own codec (``wire``, ``routes``) and sockets.
"""

from __future__ import annotations

import errno
import hmac
import itertools
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.errors import KernelError
from tasks.prefix import Prefix
from workers.dataplane import (
    AddRoute,
    Change,
    DeviceFacts,
    DevicePeer,
    DeviceSpec,
    RemovePeer,
    RemoveRoute,
    SetPeer,
)
from workers.dataplane import keyfile, routes, wire
from workers.dataplane.channel import Channel
from workers.dataplane.counters import PeerCounters
from workers.dataplane.netlink import (
    GENL_ID_CTRL,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Interrupted,
    KernelRefused,
    Malformed,
    family_id,
    family_request,
)

if TYPE_CHECKING:
    from workers.dataplane import DataPlane

_log = logging.getLogger(__name__)

_NETLINK_ROUTE = 0
_NETLINK_GENERIC = 16
_IFF_UP = 1
_SCOPE_LINK = 253
_CAP_NET_ADMIN = 12

#: Route messages sent at once; their answers must fit the socket's buffer even if every one is an error.
_ROUTES_AT_ONCE = 100
#: Whole dumps tried before giving up on one that keeps being interrupted, and the first pause in between.
_DUMP_TRIES = 6
_DUMP_PAUSE = 0.01

_T = TypeVar("_T")


class KernelDataPlane:
    """A WireGuard device in this network namespace. One thread only; see ``DataPlane`` for the promises.

    ``apply`` puts consecutive peer changes into messages of up to 64 peers, and consecutive routes of one kind into
    one send of up to 100: after a KernelError over a route, later ones of the same run may have been made too.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        """``timeout``: seconds to wait for the kernel's answer to one message, then KernelError."""
        self._generic = Channel(_NETLINK_GENERIC, timeout=timeout)
        self._routing = Channel(_NETLINK_ROUTE, timeout=timeout)
        self._interface = ""
        self._index = 0
        self._family = 0

    def open(self, spec: DeviceSpec) -> DeviceFacts:
        """See ``DataPlane.open``. Opening what is right already changes nothing: sessions live on.

        Addresses and covering routes of an earlier spec go away where they carry our protocol number; anything
        else found on the device stays.

        Raises:
            SettingsError: the private key file cannot be used.
        """
        private = keyfile.load_or_make(spec.private_key_file)
        self._interface, self._index = spec.interface, 0
        with _translated(f"set up {spec.interface}"), _links() as links:
            index, made = _ensure_link(links, spec.interface)
            self._family = family_id(self._generic.ask(GENL_ID_CTRL, family_request(wire.FAMILY)))
            device = self._device()
            changed_key = device.private_key is None or not hmac.compare_digest(device.private_key, private)
            changed_port = spec.listen_port not in (0, device.listen_port)
            if changed_key or changed_port:
                payload = wire.encode_device(
                    index, private if changed_key else None, spec.listen_port if changed_port else None
                )
                self._generic.execute(self._family, 0, [payload])
            _configure_link(links, index, spec)
            self._index = index
            self._cover(spec)
            _forbid_threads(spec.interface, index)
            return DeviceFacts(keyfile.public_key(private), self._device().listen_port, made)

    def peers(self) -> Mapping[str, DevicePeer]:
        """See ``DataPlane.peers``. A dump interrupted by a change is read again, a few times."""
        self._require_open()

        def read() -> Mapping[str, DevicePeer]:
            dump = self._generic.dump(self._family, self._family, wire.encode_get(self._interface))
            return wire.read_peers(dump)

        with _translated(f"read the peers of {self._interface}"):
            return _uninterrupted(read)

    def routes(self) -> frozenset[Prefix]:
        """See ``DataPlane.routes``: those with the protocol number ``routes.PER_PEER``."""
        self._require_open()
        with _translated(f"read the routes to {self._interface}"):
            return frozenset(route.prefix for route in self._routes() if route.protocol == routes.PER_PEER)

    def apply(self, changes: Sequence[Change]) -> None:
        """See ``DataPlane.apply``."""
        self._require_open()
        for kind, run in itertools.groupby(changes, _kind):
            if kind is AddRoute:
                with _translated(f"add routes to {self._interface}"):
                    self._add_routes([route.prefix for route in run if isinstance(route, AddRoute)], routes.PER_PEER)
            elif kind is RemoveRoute:
                with _translated(f"remove routes to {self._interface}"):
                    self._remove_routes(
                        [route.prefix for route in run if isinstance(route, RemoveRoute)], routes.PER_PEER
                    )
            else:
                with _translated(f"change peers of {self._interface}"):
                    peers = [change for change in run if isinstance(change, (SetPeer, RemovePeer))]
                    # One message after the other: after a refusal nothing later has been made.
                    for payload in wire.encode_changes(self._index, peers):
                        self._generic.execute(self._family, 0, [payload])

    def close(self) -> None:
        """See ``DataPlane.close``."""
        self._generic.close()
        self._routing.close()
        self._index = 0

    def _require_open(self) -> None:
        if not self._index:
            raise KernelError("no device is open")

    def _device(self) -> wire.DeviceState:
        """The device's own attributes. Reads the dump to its end, so that the socket stays in step."""

        def read() -> wire.DeviceState:
            found: wire.DeviceState | None = None
            for payload in self._generic.dump(self._family, self._family, wire.encode_get(self._interface)):
                found = found or wire.read_device(payload)
            if found is None:
                raise Malformed("the dump holds no device")
            return found

        return _uninterrupted(read)

    def _routes(self) -> list[routes.Route]:
        """Every unicast route of the main table to the device, ours or not."""

        def read() -> list[routes.Route]:
            found: list[routes.Route] = []
            for version in (4, 6):
                request = routes.encode_get_routes(version, self._index)
                try:
                    for payload in self._routing.dump(routes.RTM_GETROUTE, routes.RTM_NEWROUTE, request):
                        route = routes.read_route(payload, self._index)
                        if route is not None:
                            found.append(route)
                except KernelRefused as error:
                    # A fresh network namespace has no main table yet.
                    if error.errno != errno.ENOENT:
                        raise
            return found

        return _uninterrupted(read)

    def _cover(self, spec: DeviceSpec) -> None:
        """One route per pool, unless the device has one already: an address brings its own (wg-quick skips it too)."""
        present = self._routes()
        wanted = set(spec.routes)
        stale = [route.prefix for route in present if route.protocol == routes.COVERING and route.prefix not in wanted]
        self._remove_routes(stale, routes.COVERING)
        self._add_routes(sorted(wanted - {route.prefix for route in present}), routes.COVERING)

    def _add_routes(self, prefixes: Sequence[Prefix], protocol: int) -> None:
        taken: list[Prefix] = []
        for some in _slices(prefixes):
            payloads = [routes.encode_route(self._index, routes.Route(prefix, protocol)) for prefix in some]
            # EXCL: without it the kernel would replace, or stand beside, somebody else's route for the prefix.
            refused = self._routing.execute(
                routes.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, payloads, forgive=frozenset({errno.EEXIST})
            )
            taken.extend(some[position] for position in refused)
        if taken:
            present = {route.prefix for route in self._routes()}
            for prefix in taken:
                if prefix not in present:
                    raise KernelRefused(errno.EEXIST, f"{prefix} is routed elsewhere already")

    def _remove_routes(self, prefixes: Sequence[Prefix], protocol: int) -> None:
        for some in _slices(prefixes):
            payloads = [routes.encode_route(self._index, routes.Route(prefix, protocol)) for prefix in some]
            self._routing.execute(routes.RTM_DELROUTE, 0, payloads, forgive=frozenset({errno.ESRCH}))


class KernelCounters:
    """Reads counters of a device by name, on a socket of its own: another process than the writer's may."""

    def __init__(self, interface: str, *, timeout: float = 10.0) -> None:
        self._interface = interface
        self._generic = Channel(_NETLINK_GENERIC, timeout=timeout)

    def counters(self) -> Iterator[list[PeerCounters]]:
        """See ``CounterSource.counters``: one batch per datagram."""
        with _translated(f"read the counters of {self._interface}"):
            family = family_id(self._generic.ask(GENL_ID_CTRL, family_request(wire.FAMILY)))
            for payload in self._generic.dump(family, family, wire.encode_get(self._interface)):
                yield wire.read_counters(payload)

    def close(self) -> None:
        """Let go of the socket."""
        self._generic.close()


def kernel_available() -> str | None:
    """None where this process can make WireGuard devices; else a sentence saying why not."""
    status = Path("/proc/self/status")
    try:
        capabilities = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("CapEff:")]
    except OSError:
        return "this is not Linux"
    if not capabilities or not int(capabilities[0], 16) >> _CAP_NET_ADMIN & 1:
        return "this process may not change network devices (it lacks CAP_NET_ADMIN)"
    try:
        with Channel(_NETLINK_GENERIC, timeout=10.0) as channel:
            family_id(channel.ask(GENL_ID_CTRL, family_request(wire.FAMILY)))
    except (OSError, Malformed):
        return "the kernel has no WireGuard (Linux 5.6 or later, module wireguard)"
    try:
        import pyroute2  # noqa: F401, PLC0415 - asked for, not used: the extra "gateway" brings it
    except ImportError:
        return "pyroute2 is not installed (pip install 'peerlane[gateway]')"
    return None


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    """Turns whatever netlink can raise into KernelError: operation and reason in words, the cause chained."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENODEV, errno.ENXIO):
            reason = f"the device is gone ({reason})"
        elif error.errno in (errno.EPERM, errno.EACCES):
            reason = f"{reason}; CAP_NET_ADMIN is needed"
        elif error.errno == errno.ENOBUFS:
            reason = f"answers were lost ({reason}); what was done is unknown"
        raise KernelError(f"cannot {operation}: {reason}") from error
    except Interrupted as error:
        raise KernelError(f"cannot {operation}: it kept changing while it was read") from error
    except ValueError as error:  # Malformed too
        raise KernelError(f"cannot {operation}: {error}") from error


@contextmanager
def _links() -> Iterator[Any]:
    """pyroute2's IPRoute, its errors turned into OSError and Malformed."""
    try:
        from pyroute2 import IPRoute  # noqa: PLC0415 - 170 ms, and absent on hosts without a device
        from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise OSError(errno.ENOSYS, "pyroute2 is not installed (pip install 'peerlane[gateway]')") from error
    try:
        with IPRoute() as links:
            yield links
    except NetlinkError as error:
        raise OSError(error.code, str(error.args[-1])) from error
    except NetlinkDecodeError as error:
        raise Malformed("pyroute2 could not read the kernel's answer") from error


def _ensure_link(links: Any, interface: str) -> tuple[int, bool]:
    """The interface's index and whether it had to be made."""
    found = links.link_lookup(ifname=interface)
    if not found:
        links.link("add", ifname=interface, kind="wireguard")
        return int(links.link_lookup(ifname=interface)[0]), True
    (link,) = links.link("get", index=found[0])
    if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "wireguard":
        raise OSError(errno.EEXIST, "there is an interface of that name which is not WireGuard's")
    return int(found[0]), False


def _configure_link(links: Any, index: int, spec: DeviceSpec) -> None:
    """Size of packets, addresses, up: each only where it differs."""
    (link,) = links.link("get", index=index)
    if spec.mtu is not None and link.get_attr("IFLA_MTU") != spec.mtu:
        links.link("set", index=index, mtu=spec.mtu)
    wanted = {(Prefix.host(pool.version, address).address, pool.length) for address, pool in spec.addresses}
    present: set[tuple[str, int]] = set()
    for found in links.get_addr(index=index):
        address = (found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS"), found["prefixlen"])
        if address in wanted:
            present.add(address)
        elif found.get_attr("IFA_PROTO") == routes.COVERING:
            # Before any is added: the kernel takes secondary addresses away with the first one of their network.
            links.addr("del", index=index, address=address[0], prefixlen=address[1])
    for address, length in sorted(wanted - present):
        links.addr("add", index=index, address=address, prefixlen=length, proto=routes.COVERING)
    if not link["flags"] & _IFF_UP:
        try:
            links.link("set", index=index, state="up")
        except Exception as error:
            if getattr(error, "code", None) == errno.EADDRINUSE:
                raise OSError(errno.EADDRINUSE, f"UDP port {spec.listen_port} is in use") from error
            raise


def _forbid_threads(interface: str, index: int) -> None:
    """Turn threaded NAPI off: with it on, WireGuard runs one kernel thread per peer."""
    directory = Path("/sys/class/net", interface)
    try:
        # /sys shows the network namespace it was mounted in; make sure that this is our device.
        if int((directory / "ifindex").read_text()) != index or (directory / "threaded").read_text().strip() != "1":
            return
        (directory / "threaded").write_text("0")
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("%s: threaded NAPI is on and cannot be turned off: %s", interface, error.strerror)


def _uninterrupted(read: Callable[[], _T]) -> _T:
    pause = _DUMP_PAUSE
    for _ in range(_DUMP_TRIES - 1):
        try:
            return read()
        except Interrupted:
            time.sleep(pause)
            pause *= 2
    return read()


def _kind(change: Change) -> type:
    return type(change) if isinstance(change, (AddRoute, RemoveRoute)) else SetPeer


def _slices(prefixes: Sequence[Prefix]) -> Iterator[Sequence[Prefix]]:
    for start in range(0, len(prefixes), _ROUTES_AT_ONCE):
        yield prefixes[start : start + _ROUTES_AT_ONCE]
