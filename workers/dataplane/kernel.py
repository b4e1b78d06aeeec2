"""The data plane ``kernel``: WireGuard in the Linux kernel, by netlink.

Only this module imports pyroute2, when it creates a device or sets its addresses. Importing the module needs neither
pyroute2 nor rights. Changes and dumps use Peerlane's own codec and sockets (``netlink``).
"""

from __future__ import annotations

import errno
import hmac
import importlib.util
import itertools
import logging
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from peerlane.tasks.errors import KernelError, SettingsError
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import (
    AddRoute,
    Change,
    DeviceFacts,
    DevicePeer,
    DeviceSpec,
    RemovePeer,
    RemoveRoute,
    SetPeer,
    keyfile,
)
from peerlane.workers.dataplane.errors import translated
from peerlane.workers.dataplane.host_checks import refuse_overlaps, refuse_without_ipv6
from peerlane.workers.dataplane.netlink import routes
from peerlane.workers.dataplane.netlink.channel import NETLINK_GENERIC, NETLINK_ROUTE, Channel, uninterrupted
from peerlane.workers.dataplane.netlink.framing import (
    GENL_ID_CTRL,
    Malformed,
    family_id,
    family_request,
)
from peerlane.workers.dataplane.netlink.wireguard_decode import DeviceState, read_device, read_peers
from peerlane.workers.dataplane.netlink.wireguard_encode import encode_changes, encode_device, encode_get
from peerlane.workers.dataplane.netlink.wireguard_uapi import FAMILY

_log = logging.getLogger(__name__)

_IFF_UP = 1
_CAP_NET_ADMIN = 12


class KernelDataPlane:
    """A WireGuard device in this network namespace, for one thread. See ``DataPlane`` for its promises.

    ``apply`` puts consecutive peer changes into messages of up to 64 peers, and consecutive routes of one kind into
    one send of up to 100: after a KernelError over a route, later ones of the same run may have been made too.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        """``timeout``: seconds to wait for the kernel's answer to one message, then KernelError."""
        self._generic = Channel(NETLINK_GENERIC, timeout=timeout)
        self._routes = routes.RouteTable(Channel(NETLINK_ROUTE, timeout=timeout))
        self._interface = ""
        self._index = 0
        self._family = 0
        #: The key this plane has opened the device with.
        self._own: bytes | None = None
        self._threads_unsettled = False

    def open(self, spec: DeviceSpec) -> DeviceFacts:
        """See ``DataPlane.open``. Opening a device that is right already changes nothing: sessions continue.

        Addresses and covering routes of an earlier spec go away where they carry our protocol number; anything
        else found on the device stays. A device that has a key keeps it: it is written to the file if there is none.
        A key that was changed since this plane first opened the device is changed back.

        Raises:
            SettingsError: the private key file cannot be used, or holds another key than the device or ``spec`` asks
                for; IPv6 is off; at the first time, another device has addresses of the pools.
        """
        self._interface, self._index = spec.interface, 0
        with translated(f"set up {spec.interface}"), _links() as links:
            self._family = family_id(self._generic.ask(GENL_ID_CTRL, family_request(FAMILY)))
            refuse_without_ipv6(spec)
            private = self._private_key(links, spec)
            if self._own is None:  # a device that comes later does not keep ours from being made again
                refuse_overlaps(links, self._routes, spec)
            index, made = _ensure_link(links, spec.interface)
            device = self._device()
            changed_key = device.private_key is None or not hmac.compare_digest(device.private_key, private)
            changed_port = spec.listen_port not in (0, device.listen_port)
            if changed_key or changed_port:
                payload = encode_device(
                    index, private if changed_key else None, spec.listen_port if changed_port else None
                )
                self._generic.execute(self._family, 0, [payload])
            _configure_link(links, index, spec)
            self._index = index
            self._routes.cover(index, spec.routes)
            self._threads_unsettled = not _forbid_threads(spec.interface, index)
            self._own = private
            return DeviceFacts(keyfile.public_key(private), self._device().listen_port, made)

    def _private_key(self, links: Any, spec: DeviceSpec) -> bytes:
        """The key to use. It is read before a device is made, so that a bad file leaves no device behind."""
        key, port = None, 0
        if links.link_lookup(ifname=spec.interface):
            _ensure_link(links, spec.interface)
            device = self._device()
            key, port = device.private_key, device.listen_port
        lacking = key is not None and not spec.private_key_file.exists()
        if lacking and spec.listen_port not in (0, port):
            # Somebody else's device: its peers know it by its port.
            raise SettingsError(
                f"{spec.interface} listens on port {port}, PEERLANE_LISTEN_PORT is {spec.listen_port}: set that to"
                f" {port}, or move the device: `wg set {spec.interface} listen-port {spec.listen_port}`"
            )
        private = keyfile.load_or_make(spec.private_key_file, key, spec.public_key)
        if lacking:
            _log.warning("%s: its private key is in %s from now on", spec.interface, spec.private_key_file)
        if key is not None and private != self._own:
            keyfile.refuse_other(spec.private_key_file, spec.interface, key, private)
        return private

    def peers(self) -> Mapping[str, DevicePeer]:
        """See ``DataPlane.peers``. A dump interrupted by a change is read again, a few times."""
        self._require_open()

        def read() -> Mapping[str, DevicePeer]:
            dump = self._generic.dump(self._family, self._family, encode_get(self._interface))
            return read_peers(dump)

        with translated(f"read the peers of {self._interface}"):
            return uninterrupted(read)

    def routes(self) -> frozenset[Prefix]:
        """See ``DataPlane.routes``: those with the protocol number ``routes.PER_PEER``."""
        self._require_open()
        with translated(f"read the routes to {self._interface}"):
            device_routes = self._routes.read(self._index)
            return frozenset(route.prefix for route in device_routes if route.protocol == routes.PER_PEER)

    def apply(self, changes: Sequence[Change]) -> None:
        """See ``DataPlane.apply``."""
        self._require_open()
        for kind, run in itertools.groupby(changes, _kind):
            if kind is AddRoute:
                prefixes = [route.prefix for route in run if isinstance(route, AddRoute)]
                with translated(f"add routes to {self._interface}"):
                    self._routes.add(self._index, prefixes, routes.PER_PEER)
            elif kind is RemoveRoute:
                prefixes = [route.prefix for route in run if isinstance(route, RemoveRoute)]
                with translated(f"remove routes to {self._interface}"):
                    self._routes.remove(self._index, prefixes, routes.PER_PEER)
            else:
                peers = [change for change in run if isinstance(change, (SetPeer, RemovePeer))]
                with translated(f"change peers of {self._interface}"):
                    # One message after the other: after a refusal nothing later has been made.
                    for payload in encode_changes(self._index, peers):
                        self._generic.execute(self._family, 0, [payload])
                if self._threads_unsettled:
                    self._threads_unsettled = not _forbid_threads(self._interface, self._index)

    def alive(self) -> bool:
        """See ``DataPlane.alive``. A device that was created again under the same name has another index."""
        try:
            return self._index != 0 and socket.if_nametoindex(self._interface) == self._index
        except OSError:
            return False

    def close(self) -> None:
        """See ``DataPlane.close``."""
        self._generic.close()
        self._routes.close()
        self._index = 0

    def _require_open(self) -> None:
        if not self._index:
            raise KernelError("no device is open")

    def _device(self) -> DeviceState:
        """The device's own attributes. The peers that follow them in a dump are not read."""
        with closing(self._generic.dump(self._family, self._family, encode_get(self._interface))) as dump:
            first = next(dump, None)
        if first is None:
            raise Malformed("the dump holds no device")
        return read_device(first)


def kernel_available() -> str | None:
    """Why this process cannot make WireGuard devices; None if it can."""
    status = Path("/proc/self/status")
    try:
        capabilities = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("CapEff:")]
    except OSError:
        return "this is not Linux"
    if not capabilities or not int(capabilities[0], 16) >> _CAP_NET_ADMIN & 1:
        return "this process may not change network devices (it lacks CAP_NET_ADMIN)"
    try:
        with Channel(NETLINK_GENERIC, timeout=10.0) as channel:
            family_id(channel.ask(GENL_ID_CTRL, family_request(FAMILY)))
    except (OSError, Malformed):
        return "the kernel has no WireGuard (Linux 5.6 or later, module wireguard)"
    if importlib.util.find_spec("pyroute2") is None:
        return "pyroute2 is not installed: install the extra peerlane[gateway]"
    return None


@contextmanager
def _links() -> Generator[Any]:
    """pyroute2's IPRoute, its errors turned into OSError and Malformed."""
    try:
        from pyroute2 import IPRoute  # noqa: PLC0415 - 170 ms, and absent on hosts without a device
        from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise OSError(errno.ENOSYS, "pyroute2 is not installed: install the extra peerlane[gateway]") from error
    try:
        with IPRoute() as links:
            yield links
    except NetlinkError as error:
        code, text = error.args
        raise OSError(int(code), str(text)) from error
    except NetlinkDecodeError as error:
        raise Malformed("pyroute2 could not read the kernel's answer") from error


def _ensure_link(links: Any, interface: str) -> tuple[int, bool]:
    """The interface's index and whether it had to be made."""
    indexes = links.link_lookup(ifname=interface)
    if not indexes:
        links.link("add", ifname=interface, kind="wireguard")
        return int(links.link_lookup(ifname=interface)[0]), True
    (link,) = links.link("get", index=indexes[0])
    if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "wireguard":
        raise OSError(errno.EEXIST, "there is an interface of that name which is not WireGuard's")
    return int(indexes[0]), False


def _configure_link(links: Any, index: int, spec: DeviceSpec) -> None:
    """Size of packets, addresses, up: each only where it differs."""
    (link,) = links.link("get", index=index)
    if spec.mtu is not None and link.get_attr("IFLA_MTU") != spec.mtu:
        links.link("set", index=index, mtu=spec.mtu)
    wanted = {(Prefix.host(pool.version, address).address, pool.length) for address, pool in spec.addresses}
    present: set[tuple[str, int]] = set()
    for entry in links.get_addr(index=index):
        address = (entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"), entry["prefixlen"])
        if address in wanted:
            present.add(address)
        elif entry.get_attr("IFA_PROTO") == routes.COVERING:
            # Before any is added: the kernel takes secondary addresses away with the first one of their network.
            links.addr("del", index=index, address=address[0], prefixlen=address[1])
    for address, length in sorted(wanted - present):
        links.addr("add", index=index, address=address, prefixlen=length, proto=routes.COVERING)
    if not link["flags"] & _IFF_UP:
        links.link("set", index=index, state="up")


def _forbid_threads(interface: str, index: int) -> bool:
    """Turn threaded NAPI off: with it on, WireGuard runs one kernel thread per peer. False: to be tried again."""
    directory = Path("/sys/class/net", interface)
    try:
        # /sys shows the network namespace it was mounted in; make sure that this is our device.
        if int((directory / "ifindex").read_text()) == index and (directory / "threaded").read_text().strip() == "1":
            (directory / "threaded").write_text("0")
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            # The kernel has nothing to turn off before the first peer (net/core/net-sysfs.c, modify_napi_threaded).
            return False
        _log.warning("%s: threaded NAPI is on and cannot be turned off: %s", interface, error.strerror)
    return True


def _kind(change: Change) -> type:
    return type(change) if isinstance(change, (AddRoute, RemoveRoute)) else SetPeer
