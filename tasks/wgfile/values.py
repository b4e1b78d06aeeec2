"""Parses the values of a WireGuard file, key by key. Pure; no error quotes a possible secret."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import check_public_key

_NO_KEY = "A" * 43 + "="
_OF_ADDRESSES = frozenset("0123456789abcdefABCDEF.:/")


def _private_key(value: str) -> str:
    """The public key of a private key; the private key is not kept."""
    try:
        private = X25519PrivateKey.from_private_bytes(base64.b64decode(check_public_key(value)))
    except ValueError:
        raise ValueError("PrivateKey is no key: expected 44 characters of base64, as `wg genkey` prints") from None
    return base64.b64encode(private.public_key().public_bytes_raw()).decode("ascii")


def _listen_port(value: str) -> int:
    if (port := _number(value)) is None:
        raise ValueError("ListenPort is a number from 0 to 65535")
    return port


def _address(value: str) -> tuple[str, ...]:
    addresses: list[str] = []
    for text in value.split(","):
        try:
            address, network = Prefix.parse_interface(text)
        except ValueError as error:
            raise ValueError(f"an Address {error}") from None
        addresses.append(f"{Prefix.host(network.version, address).address}/{network.length}")
    return tuple(addresses)


def _public_key(value: str) -> str:
    try:
        return check_public_key(value)
    except ValueError as error:
        raise ValueError(f"PublicKey is {error}") from None


def _preshared_key(value: str) -> str | None:
    if value == _NO_KEY:  # as the kernel has it: none
        return None
    try:
        return check_public_key(value)
    except ValueError:
        raise ValueError("PresharedKey is no key: expected 44 characters of base64, as `wg genpsk` prints") from None


def _allowed_ips(value: str) -> tuple[Prefix, ...]:
    prefixes: list[Prefix] = []
    for text in value.split(",") if value else ():
        try:
            prefixes.append(Prefix.parse(text))
        except ValueError as error:
            # Only what can be an address is quoted: a key may stand in the wrong place.
            shown = text if text and len(text) <= 49 and _OF_ADDRESSES.issuperset(text) else "an entry"
            raise ValueError(f"AllowedIPs: {shown} {error}") from None
    return tuple(prefixes)


def _keepalive(value: str) -> int:
    seconds = 0 if value.lower() == "off" else _number(value)
    if seconds is None:
        raise ValueError("PersistentKeepalive is off or a number of seconds from 0 to 65535")
    return seconds


def _endpoint(value: str) -> str:
    if len(value) > 300 or not value.isascii() or not value.isprintable() or ":" not in value:
        raise ValueError("Endpoint is host:port")
    return value


def _number(text: str) -> int | None:
    """A number from 0 to 65535."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535:
        return int(text)
    return None


#: Key → the field it fills, and what reads its value; ValueError holds a sentence for a person.
VALUES: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "PrivateKey": ("public_key", _private_key),
    "ListenPort": ("listen_port", _listen_port),
    "Address": ("addresses", _address),
    "PublicKey": ("public_key", _public_key),
    "PresharedKey": ("preshared_key", _preshared_key),
    "AllowedIPs": ("allowed_ips", _allowed_ips),
    "PersistentKeepalive": ("keepalive", _keepalive),
    "Endpoint": ("endpoint", _endpoint),
}
