"""Makes a peer's stored record and its public form, from whatever class has the fields."""

from __future__ import annotations

import json
from typing import Any, Protocol

from peerlane.tasks.values.prefix import Prefix

#: Version of the stored record; a writer refuses records of a version it does not know.
RECORD_VERSION = 1

_OPTIONAL = ("preshared_key", "keepalive", "ttl", "expires_at", "labels", "pinned", "created_at", "imported_at")

_encode = json.JSONEncoder(separators=(",", ":")).encode


class PeerFields(Protocol):
    """The fields that ``model.Peer`` and ``stored_peer.StoredPeer`` share."""

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
    """The stored record (JSON). Without the key, which is the field's name in the hash, and without default values."""
    fields: dict[str, Any] = {"v": RECORD_VERSION, "allowed_ips": [str(prefix) for prefix in peer.allowed_ips]}
    for name in _OPTIONAL:
        if value := getattr(peer, name):
            fields[name] = value
    return _encode(fields)


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
