"""Compares a device with Redis, in two steps.

The first step holds a digest of each record and reads the device's peers one at a time: there may be a million. It
finds what may differ. The second step looks at that in full, some time later: what a request has changed meanwhile, on
one side and then on the other, is no difference any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple, cast

from peerlane.config import names
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import raw_key, text_key
from peerlane.workers.dataplane import DeviceIdentity, DevicePeer, DeviceView
from peerlane.workers.peers.digests import LoadedDigests
from peerlane.workers.peers.drift import Differences, Kind, differences, route_drifts
from peerlane.workers.peers.table import PeerTable, Policy, build_table
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep.writer_requests import GoOn

#: Readings of the device tried until one is complete, where peers seem to be missing: each change interrupts one.
TRIES = 3
#: Peers compared between two heartbeats.
BREATH = 1_000


class Difference(NamedTuple):
    """One difference. ``subject`` is a public key or a prefix."""

    kind: Kind
    subject: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison."""

    #: In a safe order of repair.
    differences: Sequence[Difference]
    #: Peers on the device.
    peers: int
    #: What is wrong with the device itself: down, a covering route that is not there, another key, port or MTU.
    device: tuple[str, ...]
    #: Peers that the writer still adds after a start: those that are missing may be among them.
    coming: int = 0


@dataclass(frozen=True, slots=True)
class Suspects:
    """The result of the first step."""

    #: Keys, of 32 bytes, of peers that differ.
    keys: AbstractSet[bytes]
    #: Routes of single peers that differ.
    routes: AbstractSet[Prefix]
    #: Keys whose records cannot be used: their peers are left alone.
    untouchable: frozenset[str]
    #: Its ``differences`` are still empty.
    comparison: Comparison

    def __bool__(self) -> bool:
        return bool(self.keys or self.routes or self.comparison.device)


class BothSides:
    """One gateway's device and Redis. Raises redis.RedisError if Redis is away, KernelError without a device."""

    def __init__(self, store: Store, policy: Policy, view: DeviceView, go_on: GoOn, mtu: int | None) -> None:
        """``go_on`` is called now and then; its answer does not matter here. ``mtu``: None for the kernel's choice."""
        self._store, self._policy, self._view, self._mtu = store, policy, view, mtu
        self._go_on = go_on

    def suspects(self) -> Suspects:
        """Take the first step."""
        # Redis first, as in a sweep.
        coming = self._store.coming()
        redis = LoadedDigests()
        self._store.load(self._loading, into=redis)
        untouchable, wanted = frozenset(redis.broken), redis.routed(self._policy.pools)
        if redis.overlapping:  # another program wrote that; which record is right, only the whole table shows
            table = build_table(self._policy, self._store.load(self._loading))
            untouchable, wanted = frozenset(table.broken), table.routed()
            del table
        device = Reading(self._view, self._go_on)
        keys = set(redis.suspects(device, untouchable, missing=not coming))
        routes, others = self._view.routes()
        wrong = tuple(self._wrong(routes | others))
        return Suspects(keys, wanted ^ routes, untouchable, Comparison((), device.peers, wrong, coming))

    def in_full(self, suspects: Suspects) -> Comparison:
        """Take the second step."""
        first = suspects.comparison
        coming = max(first.coming, self._store.coming())
        loaded = self._store.load(self._loading, only=[text_key(raw) for raw in suspects.keys])
        table = build_table(self._policy, loaded)
        differing, peers = self._differing(table, suspects)
        missing = () if coming else differing.missing
        wanted = {prefix for prefix in self._store.assigned(suspects.routes) if table.needs_route(prefix)}
        routes, others = self._view.routes()
        ordered = [Difference(drift.kind, drift.subject) for drift in differing.first]
        ordered += [Difference("missing", text_key(raw)) for raw in missing]
        ordered += [Difference(drift.kind, drift.subject) for drift in route_drifts(wanted, routes & suspects.routes)]
        wrong = tuple(fault for fault in self._wrong(routes | others) if fault in first.device)
        return Comparison(ordered, peers, wrong, coming)

    def _differing(self, table: PeerTable, suspects: Suspects) -> tuple[Differences, int]:
        """The differences among the suspects, and how many peers the device has."""
        untouchable = suspects.untouchable | table.broken.keys()
        missing: set[bytes] | None = None
        tries = 0
        while True:
            tries += 1
            device = Reading(self._view, self._go_on)
            suspected = (peer for peer in device if raw_key(peer.public_key) in suspects.keys)
            differing = differences(table, suspected, untouchable)
            # A reading that a change has interrupted may lack peers that are there.
            missing = set(differing.missing) if missing is None else missing.intersection(differing.missing)
            if self._view.complete or not missing or tries == TRIES:
                return Differences(differing.first, list(missing)), device.peers

    def _wrong(self, routes: AbstractSet[Prefix]) -> Iterator[str]:
        """What is wrong with the device itself."""
        if not self._view.up():
            yield "the device is down"
        yield from (f"no route for {pool}" for pool in self._policy.pools if pool not in routes)
        yield from self._changed(self._view.identity())

    def _changed(self, device: DeviceIdentity) -> Iterator[str]:
        """The differences between the device's key, port and MTU and the registered ones."""
        key = names.gateway_key(self._policy.gateway)
        stored = cast("list[bytes | None]", self._store.redis.hmget(key, "public_key", "listen_port"))
        public_key, port = ((value or b"").decode(errors="replace") for value in stored)
        if public_key and device.public_key != public_key:
            instead = f"that of {device.public_key}" if device.public_key else "gone"
            yield f"the device's key is {instead}, clients were given {public_key}"
        if port.isdecimal() and device.listen_port != int(port):
            yield f"the device listens on UDP port {device.listen_port}, and was registered with {port}"
        if self._mtu is not None and device.mtu != self._mtu:
            yield f"the device's MTU is {device.mtu}, PEERLANE_MTU is {self._mtu}"

    def _loading(self, _done: int, _total: int) -> None:
        self._go_on({})


class Reading:
    """The peers of a device, one at a time; counts them."""

    def __init__(self, view: DeviceView, go_on: GoOn) -> None:
        self._view, self._go_on = view, go_on
        self.peers = 0

    def __iter__(self) -> Iterator[DevicePeer]:
        for peer in self._view.peers():
            self.peers += 1
            if self.peers % BREATH == 0:
                self._go_on({})
            yield peer
