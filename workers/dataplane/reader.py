"""The reading side of the data plane ``kernel``, for the observer. Changes nothing."""

from __future__ import annotations

import base64
import fcntl
import socket
import struct
from collections.abc import Generator, Iterator
from contextlib import closing

from peerlane.tasks.errors import KernelError
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import DeviceIdentity, DevicePeer
from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.dataplane.errors import translated
from peerlane.workers.dataplane.netlink import routes
from peerlane.workers.dataplane.netlink.channel import NETLINK_GENERIC, NETLINK_ROUTE, Channel
from peerlane.workers.dataplane.netlink.framing import (
    GENL_ID_CTRL,
    Interrupted,
    Malformed,
    Payload,
    family_id,
    family_request,
)
from peerlane.workers.dataplane.netlink.wireguard_decode import each_peer, read_counters, read_device
from peerlane.workers.dataplane.netlink.wireguard_encode import encode_get
from peerlane.workers.dataplane.netlink.wireguard_uapi import FAMILY

_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_IFF_UP = 1


class KernelCounters:
    """Reads a device's counters on its own socket. Needs CAP_NET_ADMIN, as every WireGuard dump does."""

    def __init__(self, interface: str, *, timeout: float = 10.0) -> None:
        self._interface = interface
        self.complete = False
        self._generic = Channel(NETLINK_GENERIC, timeout=timeout)

    def counters(self) -> Iterator[list[PeerCounters]]:
        """See ``CounterSource.counters``: one batch per datagram of the dump, at most some 200 peers."""
        with translated(f"read the counters of {self._interface}"):
            family = family_id(self._generic.ask(GENL_ID_CTRL, family_request(FAMILY)))
            self.complete = False
            try:
                for payload in self._generic.dump(family, family, encode_get(self._interface)):
                    yield read_counters(payload)
            except Interrupted:
                return
            self.complete = True

    def close(self) -> None:
        """Close the socket."""
        self._generic.close()


class KernelView:
    """Reads a device's peers and routes on its own sockets. Raises KernelError if the device cannot be read."""

    def __init__(self, interface: str, *, timeout: float = 10.0) -> None:
        self._interface = interface
        self.complete = False
        self._generic = Channel(NETLINK_GENERIC, timeout=timeout)
        self._routes = routes.RouteTable(Channel(NETLINK_ROUTE, timeout=timeout))

    def peers(self) -> Iterator[DevicePeer]:
        """See ``DeviceView.peers``."""
        with translated(f"read the peers of {self._interface}"):
            self.complete = False
            yield from each_peer(self._payloads())

    def _payloads(self) -> Iterator[Payload]:
        try:
            yield from self._dump()
        except Interrupted:
            return
        self.complete = True

    def _dump(self) -> Generator[Payload]:
        family = family_id(self._generic.ask(GENL_ID_CTRL, family_request(FAMILY)))
        yield from self._generic.dump(family, family, encode_get(self._interface))

    def routes(self) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        """The routes of single peers, and all others that lead to the device."""
        index = self.index()
        if not index:
            raise KernelError(f"there is no device {self._interface}")
        with translated(f"read the routes to {self._interface}"):
            device_routes = self._routes.read(index)
        return (
            frozenset(route.prefix for route in device_routes if route.protocol == routes.PER_PEER),
            frozenset(route.prefix for route in device_routes if route.protocol != routes.PER_PEER),
        )

    def index(self) -> int:
        """See ``DeviceView.index``."""
        try:
            return socket.if_nametoindex(self._interface)
        except OSError:
            return 0

    def up(self) -> bool:
        """Whether the device is up."""
        (flags,) = struct.unpack_from("=H", self._asked(_SIOCGIFFLAGS), 16)
        return bool(flags & _IFF_UP)

    def identity(self) -> DeviceIdentity:
        """See ``DeviceView.identity``."""
        with translated(f"look at {self._interface}"), closing(self._dump()) as dump:
            first = next(dump, None)  # the peers follow, which are not needed here
            if first is None:
                raise Malformed("the dump holds no device")
            identity = read_device(first)
        (mtu,) = struct.unpack_from("=i", self._asked(_SIOCGIFMTU), 16)
        return DeviceIdentity(base64.b64encode(identity.public_key or b"").decode(), identity.listen_port, mtu)

    def _asked(self, command: int) -> bytes:
        """Struct ifreq, as the kernel fills it."""
        request = struct.pack("16s24x", self._interface.encode())
        with translated(f"look at {self._interface}"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            return fcntl.ioctl(any_socket, command, request)

    def close(self) -> None:
        """Close the sockets."""
        self._generic.close()
        self._routes.close()
