"""The stored form of a peer, and what programs are shown of one. One writer of either, whatever holds the fields."""

from __future__ import annotations

import json
from typing import Any, Protocol

from peerlane.tasks.values.prefix import Prefix

#: Version of the stored record; a writer refuses records of a version it does not know.
RECORD_VERSION = 1

_OPTIONAL = ("preshared_key", "keepalive", "ttl", "expires_at", "labels", "pinned", "created_at", "imported_at")

_encode = json.JSONEncoder(separators=(",", ":")).encode


class PeerFields(Protocol):
    """What ``model.Peer`` and ``stored_peer.StoredPeer`` have."""

    @property
    def public_key(self) -> str: ...
    @property
    def allowed_ips(self) -> tuple[Prefix, ...]: ...
    @property
    def preshared_key(self) -> str | None: ...
    @property
    def keepalive(self) -> int: ...
    @property
    def ttl(self) -> int | None: ...
    @property
    def expires_at(self) -> int | None: ...
    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def pinned(self) -> bool: ...
    @property
    def created_at(self) -> int: ...
    @property
    def imported_at(self) -> int | None: ...


def record_of(peer: PeerFields) -> str:
    """The stored record (JSON). The key is the field's name in the hash; what has its default is left out."""
    found: dict[str, Any] = {"v": RECORD_VERSION, "allowed_ips": [str(prefix) for prefix in peer.allowed_ips]}
    for name in _OPTIONAL:
        if value := getattr(peer, name):
            found[name] = value
    return _encode(found)


def public_fields(peer: PeerFields) -> dict[str, Any]:
    """The peer for programs: everything but the preshared key itself."""
    return {
        "public_key": peer.public_key,
        "allowed_ips": [str(prefix) for prefix in peer.allowed_ips],
        "has_preshared_key": peer.preshared_key is not None,
        "keepalive": peer.keepalive,
        "ttl": peer.ttl,
        "expires_at": peer.expires_at,
        "labels": peer.labels,
        "pinned": peer.pinned,
        "created_at": peer.created_at,
    }
