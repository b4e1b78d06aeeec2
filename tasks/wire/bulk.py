"""Requests to the writer for many peers at once: sweep slices, repairs, imports."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from peerlane.tasks.wire.model import (
    CreatePeer,
    Deadline,
    GatewayName,
    Labels,
    Prefixes,
    PublicKey,
    Ttl,
    Wire,
    parse,
)
from peerlane.tasks.wire.stored_peer import DevicePeerFields, Peer, StoredPeer

#: Peers in one slice: small enough that an interactive request never waits long behind one.
SLICE = 64
#: Peers in one import; it is one commit, so this bounds how long Redis and the writer are busy with it.
MAX_IMPORT = 20_000
#: Peers that an import of a live device lists of each kind; the rest is counted.
LISTED = 1_000

Reason = Literal["expired", "never", "idle"]


def _tupled(value: object) -> object:
    """JSON has lists where the model has tuples."""
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - checked by the model


class Victim(Wire):
    """A peer that a sweep found stale; ``created_at`` distinguishes it from a later peer with the same key."""

    public_key: PublicKey
    reason: Reason
    created_at: int


def _victims(value: object) -> object:
    if not isinstance(value, list):
        return value
    return tuple(Victim(**item) if isinstance(item, dict) else item for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - checked by the model


class RemovePeers(Wire):
    """Remove peers that a sweep found stale, if they still are."""

    gateway: GatewayName
    victims: Annotated[tuple[Victim, ...], BeforeValidator(_victims), Field(min_length=1, max_length=SLICE)]
    deadline: Deadline | None = None


class MendPeers(Wire):
    """Make the device hold these peers and routes as the writer's table has them."""

    gateway: GatewayName
    keys: Annotated[tuple[PublicKey, ...], BeforeValidator(_tupled), Field(max_length=SLICE)] = ()
    routes: Prefixes | None = None
    #: The device itself too: up, its addresses, its covering routes.
    device: bool = False
    deadline: Deadline | None = None


class ImportPeers(Wire):
    """Take staged peers, or with ``live`` those that the device has and Redis does not know."""

    gateway: GatewayName
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] | None = None
    count: Annotated[int, Field(ge=1, le=MAX_IMPORT)] | None = None
    #: SHA-256 of the staged entries, each followed by a newline, in hex.
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    live: bool = False
    #: Of the live device: leave peers without allowed IPs on it, unknown to Redis. Otherwise they refuse the import.
    leave_out: bool = False
    #: Of the live device: say what would be done, and do nothing.
    dry_run: bool = False
    deadline: Deadline | None = None

    def model_post_init(self, context: Any, /) -> None:
        """An import is either staged or live."""
        staged = (self.token, self.count, self.digest)
        if self.live == any(part is not None for part in staged) or (not self.live and None in staged):
            raise ValueError("an import names token, count and digest of what was staged, or is live")
        if not self.live and (self.leave_out or self.dry_run):
            raise ValueError("leave_out and dry_run are for an import of the live device")


class StagedPeer(DevicePeerFields):
    """One staged entry. A field is None if the source does not set it; an existing peer then keeps its value."""

    labels: Labels | None = None
    ttl: Ttl | None = None
    pinned: bool | None = None
    expires_at: Annotated[int, Field(ge=1, le=10**15)] | None = None
    created_at: Annotated[int, Field(ge=1, le=10**15)] | None = None

    @model_validator(mode="after")
    def _pinned_or_expiring(self) -> Self:
        if self.pinned and (self.ttl is not None or self.expires_at is not None):
            raise ValueError("a pinned peer never expires: give ttl or pinned, not both")
        return self

    def wish(self, gateway: str, existing: Peer | StoredPeer | None) -> CreatePeer:
        """The wish of this entry, if ``existing`` is the peer of its key.

        Raises:
            Invalid: no peer can be both what is named here and what exists.
        """
        fields = self.model_dump(exclude={"expires_at", "created_at"}, exclude_none=True)
        if existing is not None:
            fields = {"labels": existing.labels, "ttl": existing.ttl, "pinned": existing.pinned} | fields
        return parse(CreatePeer, {**fields, "allowed_ips": self.allowed_ips, "gateway": gateway})
