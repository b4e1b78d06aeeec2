"""Compares the device with Redis: the differences, and the smallest changes that repair them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, Protocol

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import StoredPeer, raw_key, text_key
from peerlane.workers.dataplane import AddRoute, Change, DevicePeer, RemovePeer, RemoveRoute
from peerlane.workers.peers.plan import as_set_peer
from peerlane.workers.peers.table import PeerTable

Kind = Literal["missing", "unknown", "allowed_ips", "preshared_key", "keepalive", "missing_route", "unknown_route"]
#: What becomes of peers that only the device knows.
Unknown = Literal["remove", "keep", "adopt"]

#: So many unknown peers, and more than half of what the device holds, are never removed without being asked:
#: it is likelier that Redis has lost its data than that a person added them by hand.
MANY_UNKNOWN = 10


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference, and the change that repairs it. ``subject`` is a public key or a prefix."""

    kind: Kind
    subject: str
    change: Change


@dataclass(frozen=True, slots=True)
class Differences:
    """The differing peers in a safe order of repair: removals and reductions first, then additions."""

    first: list[Drift]
    #: Keys, of 32 bytes, of peers that the device lacks.
    missing: list[bytes]


def differences(
    table: PeerTable, device: Iterable[DevicePeer], untouchable: frozenset[str] = frozenset()
) -> Differences:
    """The peers that differ between device and table.

    A peer that holds another's addresses is mended before that other, so removals and shrinking come first: adding
    an allowed IP moves it silently, and the later removal of the thief would not give it back. ``untouchable`` are
    keys whose records do not parse: their peers stay as they are.
    """
    gone: list[Drift] = []
    shrunk: list[Drift] = []
    wrong: list[Drift] = []
    there: set[bytes | None] = {raw_key(key) for key in untouchable}
    for on_device in device:
        key = on_device.public_key
        there.add(raw_key(key))
        if key in untouchable:
            continue
        peer = table.peers.get(key)
        if peer is None:
            gone.append(Drift("unknown", key, RemovePeer(key)))
        elif kind := _differs(peer, on_device):
            extra = on_device.allowed_ips - frozenset(peer.allowed_ips)
            (shrunk if extra else wrong).append(Drift(kind, key, as_set_peer(peer)))
    missing = [raw for raw in table.peers.raw_keys() if raw not in there]
    return Differences(gone + shrunk + wrong, missing)


def route_drifts(wanted: AbstractSet[Prefix], present: AbstractSet[Prefix]) -> list[Drift]:
    """The routes of single peers that differ, those to remove first."""
    stray = [Drift("unknown_route", str(p), RemoveRoute(p)) for p in sorted(present - wanted)]
    lacking = [Drift("missing_route", str(p), AddRoute(p)) for p in sorted(wanted - present)]
    return stray + lacking


def drifts(
    table: PeerTable,
    device: Iterable[DevicePeer],
    routes: AbstractSet[Prefix],
    untouchable: frozenset[str] = frozenset(),
) -> list[Drift]:
    """All differences, of peers and of routes."""
    differing = differences(table, device, untouchable)
    lacking = [Drift("missing", key, as_set_peer(table.peers[key])) for key in map(text_key, differing.missing)]
    return [*differing.first, *lacking, *route_drifts(table.routed(), routes)]


def _differs(peer: StoredPeer, on_device: DevicePeer) -> Kind | None:
    if on_device.allowed_ips != frozenset(peer.allowed_ips):
        return "allowed_ips"
    if on_device.preshared_key != peer.preshared_key:
        return "preshared_key"
    if on_device.keepalive != peer.keepalive:
        return "keepalive"
    return None


class Differs(Protocol):
    """A difference of some kind."""

    @property
    def kind(self) -> Kind: ...


def counted(drifts: Iterable[Differs]) -> dict[str, int]:
    """The number of differences of each kind."""
    return dict(Counter(drift.kind for drift in drifts))
