"""Makes key pairs and preshared keys on the caller's side. Only the caller gets a private key."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair in base64, as ``wg genkey`` and ``wg pubkey`` print it. Its repr hides the private half."""

    private_key: str = field(repr=False)
    public_key: str


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def make_key_pair() -> KeyPair:
    """A new key pair. Only the caller keeps it."""
    private = X25519PrivateKey.generate()
    return KeyPair(_base64(private.private_bytes_raw()), _base64(private.public_key().public_bytes_raw()))


def make_preshared_key() -> str:
    """A new preshared key, 32 random bytes in base64, as ``wg genpsk`` prints it."""
    return _base64(secrets.token_bytes(32))
