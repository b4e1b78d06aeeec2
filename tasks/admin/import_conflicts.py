"""Finds conflicts between a file's peers and the gateway's peers, pools and prefixes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.overlaps import overlaps
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wgfile.parser import ConfPeer
from peerlane.tasks.wire.stored_peer import Peer

Kind = Literal["own_key", "another_wish", "broken_record", "not_served", "own_address", "overlap"]

#: Fields in which WireGuard itself would behave differently; the others count only where the file names them.
_ALWAYS = ("allowed_ips", "preshared_key", "keepalive")
_NAMED = ("ttl", "expires_at", "labels", "pinned")


@dataclass(frozen=True, slots=True)
class Clash:
    """One reason why a file cannot be imported."""

    line: int
    public_key: str
    kind: Kind
    sentence: str


def is_there(in_file: ConfPeer, peer: Peer | None) -> bool:
    """Whether ``peer`` is the peer that the file asks for."""
    return peer is not None and not _differences(in_file, peer)


def clashes(
    in_file: Iterable[ConfPeer], gateway: GatewayInfo, present: Mapping[str, Peer], addresses: Mapping[Prefix, str]
) -> Iterator[Clash]:
    """All conflicts, in no order.

    ``present`` are the peers that Redis holds, ``addresses`` who holds which prefix, also those whose records do not
    parse.
    """
    owners = set(addresses.values())
    served = [Prefix.parse(text) for text in (*gateway.pools, *gateway.serves)]
    own = [Prefix.parse(text) for text in gateway.addresses]
    fresh: list[ConfPeer] = []
    for peer in in_file:
        key = peer.peer.public_key
        there = present.get(key)
        if key == gateway.public_key:
            yield Clash(peer.line, key, "own_key", f"that is the gateway {gateway.name}'s own key")
        elif there is not None:
            if differs := _differences(peer, there):
                sentence = f"the peer is there already with another {', '.join(differs)}"
                yield Clash(peer.line, key, "another_wish", sentence)
        elif key in owners:
            sentence = "the peer is there already, with a record that does not parse; delete it or mend the record"
            yield Clash(peer.line, key, "broken_record", sentence)
        else:
            fresh.append(peer)
            yield from _out_of_place(peer, gateway, served, own)
    yield from _overlapping(fresh, addresses)


def _differences(in_file: ConfPeer, peer: Peer) -> list[str]:
    names = [*_ALWAYS, *(name for name in _NAMED if name in in_file.named)]
    return [name for name in names if getattr(in_file.peer, name) != getattr(peer, name)]


def _out_of_place(peer: ConfPeer, gateway: GatewayInfo, served: list[Prefix], own: list[Prefix]) -> Iterator[Clash]:
    key = peer.peer.public_key
    for prefix in peer.peer.allowed_ips:
        if not any(area.contains(prefix) for area in served):
            listed = ", ".join(str(area) for area in served) or "nothing"
            sentence = (
                f"{prefix} is outside what the gateway {gateway.name} serves ({listed}): start it with"
                " PEERLANE_SERVES or PEERLANE_POOLS that hold it"
            )
            yield Clash(peer.line, key, "not_served", sentence)
        for address in own:
            if prefix.contains(address):
                sentence = f"{prefix} holds the gateway's own address {address.address}"
                yield Clash(peer.line, key, "own_address", sentence)


def _overlapping(fresh: list[ConfPeer], addresses: Mapping[Prefix, str]) -> Iterator[Clash]:
    owned: list[tuple[Prefix, ConfPeer | str]] = list(addresses.items())
    owned += [(prefix, peer) for peer in fresh for prefix in peer.peer.allowed_ips]
    for pair in overlaps(owned):
        # Overlaps within the file are reported elsewhere; those within Redis do not matter here.
        (mine, peer), (theirs, other) = pair if isinstance(pair[0][1], ConfPeer) else pair[::-1]
        if isinstance(peer, ConfPeer) and isinstance(other, str):
            sentence = f"{mine} overlaps {theirs}, which the peer {other} holds"
            yield Clash(peer.line, peer.peer.public_key, "overlap", sentence)
