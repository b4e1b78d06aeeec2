"""The interface to the device: ``DataPlane`` changes it, ``DeviceView`` and ``counters.CounterSource`` read it.

There are two implementations: ``kernel`` (WireGuard by netlink) and ``memory`` (keeps state, and behaves as the kernel
does). ``factory`` makes the parts of each. The contract suite tests/dataplane/test_dataplane_contract.py runs on both.
A data plane belongs to one thread of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peerlane.tasks.values.prefix import Prefix


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The wanted device, without peers."""

    interface: str
    #: Made with mode 0600 if it is not there; the key never leaves the gateway.
    private_key_file: Path
    listen_port: int
    #: The gateway's own addresses, (address as integer, the pool it lies in).
    addresses: tuple[tuple[int, Prefix], ...] = ()
    #: Covering routes, one per pool.
    routes: tuple[Prefix, ...] = ()
    mtu: int | None = None
    #: The public key that clients were given: ``open`` refuses any other. None: any will do.
    public_key: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The facts of an open device."""

    public_key: str
    listen_port: int
    #: Whether ``open`` had to make the device.
    made: bool


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """The device's properties that clients' configurations contain. ``public_key`` is empty if it has no key."""

    public_key: str
    listen_port: int
    mtu: int


@dataclass(frozen=True, slots=True)
class DevicePeer:
    """A peer on the device. Keys are base64. None: no preshared key; 0: no handshake."""

    public_key: str
    preshared_key: str | None
    keepalive: int
    allowed_ips: frozenset[Prefix]
    endpoint: tuple[str, int] | None = None
    #: Seconds since 1970 by the gateway's clock, 0 for never.
    latest_handshake: float = 0.0
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Set a peer to exactly these properties. Its endpoint, session and counters do not change."""

    public_key: str
    allowed_ips: frozenset[Prefix]
    preshared_key: str | None = None
    keepalive: int = 0


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """Remove a peer. No error if it is not there."""

    public_key: str


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Add a route for the prefix to the device."""

    prefix: Prefix


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove a per-peer route for the prefix. No error if it is not there."""

    prefix: Prefix


Change = SetPeer | RemovePeer | AddRoute | RemoveRoute


class DataPlane(Protocol):
    """The writing side of a WireGuard device. Every method raises KernelError if the device fails or refuses."""

    def open(self, spec: DeviceSpec) -> DeviceFacts:
        """Make the device as in ``spec``: key first, then port, addresses, covering routes, up. Changes no peer."""
        ...

    def peers(self) -> Mapping[str, DevicePeer]:
        """All peers by public key. Raises instead of returning an incomplete dump."""
        ...

    def routes(self) -> frozenset[Prefix]:
        """Peerlane's per-peer routes on the device, without the covering routes."""
        ...

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the changes in order. Not transactional: after a KernelError any first part may have been made.

        An allowed IP that another peer holds moves silently, the device's own key is ignored silently: like the
        kernel's. Callers keep from asking for either.
        """
        ...

    def alive(self) -> bool:
        """Whether the opened device still exists. Cheap, because it is asked once a second."""
        ...

    def close(self) -> None:
        """Close the sockets. The device stays as it is."""
        ...


class DeviceView(Protocol):
    """The reading side of a device, besides its counters. Raises KernelError if it cannot be read."""

    @property
    def complete(self) -> bool:
        """Whether the last ``peers`` that was read to its end certainly missed none: see ``CounterSource.complete``."""
        ...

    def peers(self) -> Iterator[DevicePeer]:
        """Every peer, one at a time, with constant memory."""
        ...

    def routes(self) -> tuple[frozenset[Prefix], frozenset[Prefix]]:
        """The routes of single peers, and all others that lead to the device."""
        ...

    def up(self) -> bool:
        """Whether the device is up."""
        ...

    def identity(self) -> DeviceIdentity:
        """Its key, port and MTU."""
        ...

    def index(self) -> int:
        """The device's index, which changes each time it is created; 0 if it does not exist."""
        ...

    def close(self) -> None:
        """Close the sockets."""
        ...
