"""The data plane ``memory``: a device in the process, for the demo, tests and hosts without WireGuard.

It keeps state and behaves as the kernel does (test_dataplane_contract.py): allowed IPs move without an error to the
peer that asked last and do not come back, the device's own key is ignored, a failing ``apply`` leaves its first part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from peerlane.tasks.errors import KernelError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import decoded_key
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
from peerlane.workers.dataplane.counters import PeerCounters

#: What a port of 0 becomes: the kernel picks one, and so does this.
_PICKED_PORT = 51820

Method = Literal["open", "peers", "routes", "apply"]


class MemoryDataPlane:
    """The object is the device: it survives ``close`` and can be opened again."""

    #: See ``CounterSource.complete``: nothing changes while this is read.
    complete = True

    def __init__(self) -> None:
        self._facts: DeviceFacts | None = None
        self._private: bytes | None = None
        self._open = False
        self._covering: frozenset[Prefix] = frozenset()
        self._peers: dict[str, DevicePeer] = {}
        self._holders: dict[Prefix, str] = {}
        self._routes: set[Prefix] = set()
        self._failures: dict[Method, tuple[str, int]] = {}

    def open(self, spec: DeviceSpec) -> DeviceFacts:
        """See ``DataPlane.open``."""
        private = keyfile.load_or_make(spec.private_key_file, self._private, spec.public_key)
        if self._private is not None:
            keyfile.refuse_other(spec.private_key_file, spec.interface, self._private, private)
        public = keyfile.public_key(private)
        self._fail_if_scripted("open")
        self._private = private
        port = spec.listen_port or (self._facts.listen_port if self._facts else _PICKED_PORT)
        self._facts = DeviceFacts(public, port, made=self._facts is None)
        self._covering = frozenset(spec.routes) | {pool for _, pool in spec.addresses}
        self._open = True
        return self._facts

    def peers(self) -> Mapping[str, DevicePeer]:
        """See ``DataPlane.peers``. A copy."""
        self._require_open()
        self._fail_if_scripted("peers")
        return dict(self._peers)

    def routes(self) -> frozenset[Prefix]:
        """See ``DataPlane.routes``."""
        self._require_open()
        self._fail_if_scripted("routes")
        return frozenset(self._routes)

    def apply(self, changes: Sequence[Change]) -> None:
        """See ``DataPlane.apply``."""
        self._require_open()
        message, left = self._failures.pop("apply", ("", -1))
        for change in changes[:left] if message else changes:
            self._make(change)
        if message:
            raise KernelError(message)

    def alive(self) -> bool:
        """See ``DataPlane.alive``."""
        return self._open

    def close(self) -> None:
        """See ``DataPlane.close``."""
        self._open = False

    def counters(self) -> Iterator[list[PeerCounters]]:
        """See ``CounterSource.counters``."""
        yield [
            PeerCounters(peer.public_key, peer.latest_handshake, peer.rx_bytes, peer.tx_bytes, peer.endpoint)
            for peer in self._peers.values()
        ]

    def fail_next(self, method: Method = "apply", *, after: int = 0, message: str = "told to fail") -> None:
        """Make the next call of ``method`` raise KernelError; ``apply`` first makes ``after`` changes."""
        self._failures[method] = (message, after)

    def handshake(
        self, public_key: str, at: float, rx: int = 0, tx: int = 0, endpoint: tuple[str, int] | None = None
    ) -> None:
        """Set a peer's last handshake to ``at`` and add ``rx`` and ``tx`` bytes. KeyError if it is not there."""
        peer = self._peers[public_key]
        self._peers[public_key] = replace(
            peer,
            latest_handshake=at,
            rx_bytes=peer.rx_bytes + rx,
            tx_bytes=peer.tx_bytes + tx,
            endpoint=endpoint or peer.endpoint,
        )

    def _require_open(self) -> None:
        if not self._open:
            raise KernelError("no device is open")

    def _fail_if_scripted(self, method: Method) -> None:
        if method in self._failures:
            raise KernelError(self._failures.pop(method)[0])

    def _make(self, change: Change) -> None:
        match change:
            case SetPeer():
                self._set(change)
            case RemovePeer():
                self._remove(change.public_key)
            case AddRoute():
                # One of the covering routes leads there already; that one stays theirs.
                if change.prefix not in self._covering:
                    self._routes.add(change.prefix)
            case RemoveRoute():
                self._routes.discard(change.prefix)

    def _set(self, change: SetPeer) -> None:
        try:
            decoded_key(change.public_key)
            if change.preshared_key is not None:
                decoded_key(change.preshared_key)
            if not 0 <= change.keepalive <= 0xFFFF:
                raise ValueError("keepalive is 0 to 65535 seconds")
        except ValueError as error:
            raise KernelError(f"cannot change peers: {error}") from error
        if self._facts is not None and change.public_key == self._facts.public_key:
            return
        for prefix in change.allowed_ips:
            holder = self._holders.get(prefix)
            if holder is not None and holder != change.public_key:
                victim = self._peers[holder]
                self._peers[holder] = replace(victim, allowed_ips=victim.allowed_ips - {prefix})
        peer = self._peers.get(change.public_key) or DevicePeer(change.public_key, None, 0, frozenset())
        for prefix in peer.allowed_ips - change.allowed_ips:
            del self._holders[prefix]
        self._holders.update(dict.fromkeys(change.allowed_ips, change.public_key))
        self._peers[change.public_key] = replace(
            peer,
            preshared_key=change.preshared_key,
            keepalive=change.keepalive,
            allowed_ips=change.allowed_ips,
        )

    def _remove(self, public_key: str) -> None:
        peer = self._peers.pop(public_key, None)
        for prefix in peer.allowed_ips if peer else ():
            del self._holders[prefix]
