"""Sorts the peers of a live device that Redis does not know: which can be imported, which cannot, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peerlane.tasks.errors import Invalid, PeerlaneError
from peerlane.tasks.wire.bulk import LISTED
from peerlane.tasks.wire.model import CreatePeer, parse
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.dataplane import DevicePeer
from peerlane.workers.peers.plan import Plan
from peerlane.workers.peers.table import PeerTable

#: Why a peer cannot be one of ours. On the device it costs nothing: no packet can go to it, and none comes from it.
NO_ALLOWED_IPS = "it has no allowed IPs"


@dataclass(frozen=True, slots=True)
class Strangers:
    """The peers of a device that are not in the table."""

    wishes: Sequence[CreatePeer]
    #: Public keys of peers without allowed IPs: people switch a peer off that way.
    left_out: Sequence[str]
    #: What cannot be taken over for another reason, by public key.
    refused: Mapping[str, PeerlaneError]


def strangers(table: PeerTable, device: Mapping[str, DevicePeer]) -> Strangers:
    """Sort a device's unknown peers."""
    wishes: list[CreatePeer] = []
    left_out: list[str] = []
    refused: dict[str, PeerlaneError] = {}
    for key, on_device in device.items():
        if key in table.peers and key not in table.foreign:
            continue
        try:
            wishes.append(adoptable(table.policy.gateway, on_device))
        except Invalid as error:
            if on_device.allowed_ips:
                refused[key] = error
            else:
                left_out.append(key)
    return Strangers(wishes, sorted(left_out), refused)


def adoptable(gateway: str, peer: DevicePeer) -> CreatePeer:
    """The wish that would create the device's peer.

    Raises:
        Invalid: no wish makes such a peer, for example one without allowed IPs.
    """
    if not peer.allowed_ips:
        raise Invalid(NO_ALLOWED_IPS)
    return parse(
        CreatePeer,
        {
            "gateway": gateway,
            "public_key": peer.public_key,
            "allowed_ips": tuple(peer.allowed_ips),
            "preshared_key": peer.preshared_key,
            "keepalive": peer.keepalive,
        },
    )


def as_stored(on_device: DevicePeer) -> StoredPeer:
    """The device's peer as it would be stored, without what a device does not know."""
    addresses = tuple(sorted(on_device.allowed_ips))
    return StoredPeer(on_device.public_key, addresses, on_device.preshared_key, on_device.keepalive)


def summary(
    outcome: str, gateway: str, plans: Iterable[Plan], unlisted: Strangers, refused: Mapping[str, PeerlaneError]
) -> dict[str, Any]:
    """The result of an import of a live device; at most ``LISTED`` peers of each kind, the rest counted."""
    outcomes = [plan.outcome for plan in plans]
    conflicts = [{"public_key": key, "kind": error.code, "message": str(error)} for key, error in refused.items()]
    left_out = [{"public_key": key, "kind": "no_allowed_ips", "message": NO_ALLOWED_IPS} for key in unlisted.left_out]
    return {
        "outcome": outcome,
        "gateway": gateway,
        "created": outcomes.count("created"),
        "existing": outcomes.count("existing"),
        "left_out": left_out[:LISTED],
        "conflicts": conflicts[:LISTED],
        "unlisted": max(0, len(left_out) - LISTED) + max(0, len(conflicts) - LISTED),
    }
