"""Encrypts preshared keys before they reach Redis, with a key that only gateways and API hosts have. Optional.

A sealed key is ``enc:1:ID:TEXT``: the version, the id of the key it was sealed with, and nonce, ciphertext and tag in
base64. The cipher is ChaCha20-Poly1305 with a derived key for each peer of each gateway, so a sealed key is invalid in
another peer's record, and random nonces cannot repeat.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from peerlane.config.settings import Settings
from peerlane.tasks.errors import SettingsError
from peerlane.tasks.values.private_file import NotPrivate, read_private
from peerlane.tasks.wire.bulk import StagedPeer
from peerlane.tasks.wire.model import SEALED, CreatePeer
from peerlane.tasks.wire.stored_peer import Peer, StoredPeer

_PREFIX = "enc:1:"
_NONCE = 12
_LIMIT = 64 * 1024

_Holder = TypeVar("_Holder", CreatePeer, StagedPeer, Peer, StoredPeer)


class Unsealable(ValueError):
    """None of our keys opens this sealed key. The message is for people."""


@dataclass(frozen=True, slots=True)
class _Key:
    raw: bytes

    @property
    def id(self) -> str:
        """The key's id, which reveals nothing of the key."""
        return hashlib.sha256(b"peerlane psk key id\0" + self.raw).hexdigest()[:8]

    def cipher(self, context: bytes) -> ChaCha20Poly1305:
        """The cipher for one peer of one gateway."""
        return ChaCha20Poly1305(hmac.digest(self.raw, b"peerlane psk 1\0" + context, "sha256"))


class PskCipher:
    """Seals with its first key, opens with any of them. Without keys it changes nothing."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = tuple(_Key(raw) for raw in keys)

    @property
    def seals(self) -> bool:
        """Whether it has a key to seal with."""
        return bool(self._keys)

    def encrypt(self, gateway: str, public_key: str, preshared_key: str | None) -> str | None:
        """The form in which a peer's preshared key is sent or stored."""
        if preshared_key is None or not self._keys or SEALED.fullmatch(preshared_key):
            return preshared_key
        context = _context(gateway, public_key)
        nonce = secrets.token_bytes(_NONCE)
        text = self._keys[0].cipher(context).encrypt(nonce, base64.b64decode(preshared_key), context)
        return f"{_PREFIX}{self._keys[0].id}:{base64.b64encode(nonce + text).decode()}"

    def decrypt(self, gateway: str, public_key: str, stored: str | None) -> str | None:
        """The preshared key in clear, from the form in which it was sent or stored.

        Raises:
            Unsealable: no key of ours opens it.
        """
        if stored is None or not SEALED.fullmatch(stored):
            return stored
        name, _, text = stored.removeprefix(_PREFIX).partition(":")
        key = next((key for key in self._keys if key.id == name), None)
        if key is None:
            instead = "PEERLANE_PSK_KEY_FILE holds another" if self._keys else "PEERLANE_PSK_KEY_FILE is not set"
            raise Unsealable(f"its preshared key is sealed with the key {name}, and {instead}")
        raw, context = base64.b64decode(text), _context(gateway, public_key)
        try:
            return base64.b64encode(key.cipher(context).decrypt(raw[:_NONCE], raw[_NONCE:], context)).decode()
        except InvalidTag:
            raise Unsealable("its preshared key was sealed for another peer, or changed since") from None

    def current(self, stored: str | None) -> bool:
        """Whether it is in the form that ``encrypt`` would write now."""
        return stored is None or not self._keys or stored.startswith(f"{_PREFIX}{self._keys[0].id}:")

    def sealed(self, gateway: str, holder: _Holder) -> _Holder:
        """A peer or a wish with its preshared key sealed."""
        return _with(holder, self.encrypt(gateway, holder.public_key, holder.preshared_key))

    def opened(self, gateway: str, holder: _Holder) -> _Holder:
        """A peer or a wish with its preshared key in clear. Raises Unsealable."""
        return _with(holder, self.decrypt(gateway, holder.public_key, holder.preshared_key))


def _with(holder: _Holder, preshared_key: str | None) -> _Holder:
    if preshared_key == holder.preshared_key:
        return holder
    if isinstance(holder, StoredPeer):
        return holder._replace(preshared_key=preshared_key)
    return holder.model_copy(update={"preshared_key": preshared_key})


def _context(gateway: str, public_key: str) -> bytes:
    return f"{gateway}|{public_key}".encode()


def cipher_of(settings: Settings) -> PskCipher:
    """The cipher of the settings; its key file is read once in the life of a process.

    Raises:
        SettingsError: the file cannot be used.
    """
    return _from_file(settings.psk_key_file) if settings.psk_key_file is not None else PskCipher()


@cache
def _from_file(path: Path) -> PskCipher:
    try:
        content = read_private(path, _LIMIT)
    except OSError as error:
        raise SettingsError(f"PEERLANE_PSK_KEY_FILE: {path}: {error.strerror or error}") from None
    except NotPrivate as refusal:
        raise SettingsError(f"PEERLANE_PSK_KEY_FILE: {path}: {refusal}") from None
    lines = [line.strip() for line in content.splitlines()]
    keys = [_decoded(path, line) for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise SettingsError(f"PEERLANE_PSK_KEY_FILE: {path} holds no key; `wg genpsk` makes one")
    return PskCipher(keys)


def _decoded(path: Path, line: bytes) -> bytes:
    try:
        raw = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or not any(raw):
        # Not shown: a line that is nearly a key is nearly a secret.
        raise SettingsError(f"PEERLANE_PSK_KEY_FILE: a line of {path} is no key: 32 bytes in base64, the newest first")
    return raw
