"""A peer as Redis holds it: the stored record, and the two forms in which it is read.

``Peer`` is checked by pydantic, as what callers send. ``StoredPeer`` is a named tuple for the memory of a gateway's
processes. A record was checked when it was made, so usual records are read by a fast parser that accepts only certainly
valid ones; ``Peer`` reads and judges all others.
"""

from __future__ import annotations

import binascii
import json
import socket
from itertools import pairwise
from typing import Any, NamedTuple, Self, cast

from pydantic import Field, TypeAdapter, ValidationError

from peerlane.tasks.errors import StorageError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import (
    MAX_PREFIXES,
    MAX_TTL,
    Keepalive,
    Labels,
    Prefixes,
    PresharedKey,
    PublicKey,
    Ttl,
    Wire,
    are_labels,
    is_key,
    is_preshared_key,
    sentence,
)

#: Version of the stored record; a writer refuses records of a version it does not know.
RECORD_VERSION = 1

_OPTIONAL = ("preshared_key", "keepalive", "ttl", "expires_at", "labels", "pinned", "created_at", "imported_at")

_encode = json.JSONEncoder(separators=(",", ":")).encode
_read_object = TypeAdapter(dict[str, Any]).validator.validate_json

_NO_LABELS: dict[str, str] = {}
_NOT_PINNED = False
#: No sound record has a time beyond this; the slower, full check decides about such a record.
_LARGE = 2**53


class DevicePeerFields(Wire):
    """The fields of a peer that the device has too."""

    public_key: PublicKey
    allowed_ips: Prefixes
    preshared_key: PresharedKey | None = Field(default=None, repr=False)
    keepalive: Keepalive = 0


class Peer(DevicePeerFields):
    """A peer as Redis holds it. Times are seconds since 1970 on Redis' clock."""

    ttl: Ttl | None = None
    expires_at: int | None = None
    labels: Labels = Field(default_factory=dict)
    pinned: bool = False
    created_at: int = 0
    #: When this gateway took the peer over, where an import has dated it back.
    imported_at: int | None = None

    def record(self) -> str:
        """The stored record (JSON)."""
        return record_of(self)

    @classmethod
    def from_record(cls, public_key: str, record: str | bytes) -> Self:
        """From a stored record.

        Raises:
            StorageError: it does not parse, or is of a version this program does not know.
        """
        try:
            stored = json.loads(record)
            if not isinstance(stored, dict):
                raise ValueError("not a JSON object")  # noqa: TRY004 - one way out for every fault
            fields = cast("dict[str, Any]", stored)
            version = fields.pop("v", None)
            if version != RECORD_VERSION:
                # Whatever else stands there may be anything, a secret too.
                shown = f"version {version}" if type(version) is int and 0 <= version < 10**6 else "no version"
                raise ValueError(f"{shown}, this program knows version {RECORD_VERSION}")
            return cls(public_key=public_key, **fields)
        except ValidationError as error:
            raise StorageError(f"the record of peer {public_key[:44]} does not parse: {sentence(error)}") from None
        except (ValueError, TypeError, RecursionError) as error:
            reason = "not JSON" if isinstance(error, json.JSONDecodeError | RecursionError) else str(error)
            raise StorageError(f"the record of peer {public_key[:44]} does not parse: {reason}") from None

    def public(self) -> dict[str, Any]:
        """The peer for programs: everything but the preshared key itself."""
        return public_fields(self)


class StoredPeer(NamedTuple):
    """A peer as Redis holds it; the fields of ``Peer``. Times are seconds since 1970 on Redis' clock."""

    public_key: str
    #: Sorted, disjoint.
    allowed_ips: tuple[Prefix, ...]
    preshared_key: str | None = None
    keepalive: int = 0
    ttl: int | None = None
    expires_at: int | None = None
    #: Shared between peers and copies: never changed in place.
    labels: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default is of each instance
    pinned: bool = False
    created_at: int = 0
    imported_at: int | None = None

    def __repr__(self) -> str:
        shown = {name: value for name, value in self._asdict().items() if name != "preshared_key"}
        return f"StoredPeer({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def record(self) -> str:
        """The stored record (JSON)."""
        return record_of(self)

    def public(self) -> dict[str, Any]:
        """The peer for programs: everything but the preshared key itself."""
        return public_fields(self)

    @classmethod
    def of(cls, peer: Peer) -> Self:
        """The same peer."""
        return cls(*(getattr(peer, name) for name in cls._fields))

    @classmethod
    def from_record(cls, public_key: str, record: bytes) -> Self:
        """From a stored record.

        Raises:
            StorageError: it does not parse, or is of a version this program does not know.
        """
        quick = _quick(public_key, record)
        return cls(*quick) if quick is not None else cls.of(Peer.from_record(public_key, record))


def record_of(peer: Peer | StoredPeer) -> str:
    """The stored record (JSON). Without the key, which is the field's name in the hash, and without default values."""
    prefixes = '","'.join([str(prefix) for prefix in peer.allowed_ips])
    values = peer[2:] if isinstance(peer, StoredPeer) else [getattr(peer, name) for name in _OPTIONAL]
    optional = [
        f',"{name}":{value if type(value) is int else _encode(value)}'
        for name, value in zip(_OPTIONAL, values, strict=True)
        if value
    ]
    return f'{{"v":{RECORD_VERSION},"allowed_ips":["{prefixes}"]{"".join(optional)}}}'


def public_fields(peer: Peer | StoredPeer) -> dict[str, Any]:
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


def raw_key(public_key: str) -> bytes | None:
    """The 32 bytes of a canonical key in base64; None for any other text."""
    try:
        raw = binascii.a2b_base64(public_key)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == 32 and text_key(raw) == public_key else None


def decoded_key(key: str) -> bytes:
    """The 32 bytes of a canonical key in base64.

    Raises:
        ValueError: any other text. The sentence never contains the key.
    """
    raw = raw_key(key)
    if raw is None:
        raise ValueError("a key is 32 bytes in base64")
    return raw


def text_key(raw: bytes) -> str:
    """The key in base64."""
    return binascii.b2a_base64(raw, newline=False).decode("ascii")


def _quick(public_key: str, record: bytes) -> tuple[Any, ...] | None:  # noqa: C901 - one question for each field
    """The fields of a certainly valid record; None for every other."""
    try:
        fields = _read_object(record)
    except ValidationError:
        return None
    take = fields.pop
    version, prefixes = take("v", None), _prefixes(take("allowed_ips", None))
    if type(version) is not int or version != RECORD_VERSION or prefixes is None or not is_key(public_key):
        return None
    preshared_key, keepalive, ttl = take("preshared_key", None), take("keepalive", 0), take("ttl", None)
    if preshared_key is not None and not is_preshared_key(preshared_key):
        return None
    if type(keepalive) is not int or not 0 <= keepalive <= 65535:
        return None
    if ttl is not None and (type(ttl) is not int or not 1 <= ttl <= MAX_TTL):
        return None
    expires_at, created_at, imported_at = take("expires_at", None), take("created_at", 0), take("imported_at", None)
    for time in (expires_at, created_at, imported_at):
        if time is not None and (type(time) is not int or not -_LARGE < time < _LARGE):
            return None
    labels, pinned = take("labels", _NO_LABELS), take("pinned", _NOT_PINNED)
    if created_at is None or type(pinned) is not bool or fields:
        return None
    if labels is not _NO_LABELS:
        if not are_labels(labels):
            return None
        labels = dict(sorted(labels.items()))
    return public_key, prefixes, preshared_key, keepalive, ttl, expires_at, labels, pinned, created_at, imported_at


def _prefixes(texts: Any) -> tuple[Prefix, ...] | None:
    if type(texts) is not list or not 0 < len(texts) <= MAX_PREFIXES:  # pyright: ignore[reportUnknownArgumentType] - any list
        return None
    prefixes: list[Prefix] = []
    try:
        for text in texts:  # pyright: ignore[reportUnknownVariableType] - each is looked at
            if type(text) is not str or len(text) > 64:  # pyright: ignore[reportUnknownArgumentType] - as above
                return None
            prefixes.append(_prefix(text))
    except (OSError, ValueError):
        return None
    if len(prefixes) > 1:
        prefixes.sort()
        for prefix, other in pairwise(prefixes):
            if prefix[0] == other[0] and prefix.overlaps(other):
                return None
    return tuple(prefixes)


def _prefix(text: str) -> Prefix:
    """Parse a single host, as nearly all prefixes are; any other text is left to ``Prefix.parse``."""
    if text[-3:] == "/32" and ":" not in text:
        return Prefix(4, int.from_bytes(socket.inet_pton(socket.AF_INET, text[:-3]), "big"), 32)
    if text[-4:] == "/128":
        return Prefix(6, int.from_bytes(socket.inet_pton(socket.AF_INET6, text[:-4]), "big"), 128)
    return Prefix.parse(text)
