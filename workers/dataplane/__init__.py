"""The interface to the device: ``DataPlane`` changes it, ``DeviceView`` and ``counters.CounterSource`` read it.

Implementations: ``kernel`` (WireGuard by netlink) and ``memory`` (keeps state and shares the kernel's quirks);
``factory`` puts together which parts each has. One contract suite, tests/dataplane/test_dataplane_contract.py, runs on
both. A data plane belongs to one thread of one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peerlane.tasks.values.prefix import Prefix


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What the device shall be. Peers are not part of it."""

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
    """What the device is, once open."""

    public_key: str
    listen_port: int
    #: Whether ``open`` had to make the device.
    made: bool


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What clients' configurations rest on, as the device has it. It has no key where ``public_key`` is empty."""

    public_key: str
    listen_port: int
    mtu: int


@dataclass(frozen=True, slots=True)
class DevicePeer:
    """One peer as the device holds it. Keys are base64; no preshared key is None; never handshaked is 0."""

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
    """Afterwards the peer is there with exactly these properties. Endpoint, session and counters are left alone."""

    public_key: str
    allowed_ips: frozenset[Prefix]
    preshared_key: str | None = None
    keepalive: int = 0


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """Afterwards the peer is not there. Removing what is not there is no error."""

    public_key: str


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Afterwards a route for the prefix leads to the device."""

    prefix: Prefix


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Afterwards no per-peer route for the prefix leads to the device. Removing what is not there is no error."""

    prefix: Prefix


Change = SetPeer | RemovePeer | AddRoute | RemoveRoute


class DataPlane(Protocol):
    """One WireGuard device. Every method raises KernelError where the device cannot be asked or refuses."""

    def open(self, spec: DeviceSpec) -> DeviceFacts:
        """Make the device what ``spec`` says: key first, then port, addresses, covering routes, up. Touches no peer."""
        ...

    def peers(self) -> Mapping[str, DevicePeer]:
        """Every peer by public key: a complete dump, fragments merged. Never a part of one: raises instead."""
        ...

    def routes(self) -> frozenset[Prefix]:
        """The per-peer routes on the device: ours, without the covering routes."""
        ...

    def apply(self, changes: Sequence[Change]) -> None:
        """Make the changes, in order. Not transactional: after a KernelError any first part may have been made.

        An allowed IP that another peer holds moves silently, the device's own key is ignored silently: like the
        kernel's. Callers keep from asking for either.
        """
        ...

    def alive(self) -> bool:
        """Whether the device that was opened is still there. Cheap: asked once a second."""
        ...

    def close(self) -> None:
        """Let go of sockets. The device stays as it is."""
        ...


class DeviceView(Protocol):
    """What the observer reads of a device beside its counters. Raises KernelError where it cannot be asked."""

    def peers(self) -> Mapping[str, DevicePeer]:
        """Every peer by public key."""
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
        """The number of the device, another one each time it is made; 0 if it is not there."""
        ...

    def close(self) -> None:
        """Let go of sockets."""
        ...
