"""Reads or makes the file of the device's private key: mode 0600, refused if others could read it.

Private keys are 32 raw bytes inside the process and never appear in an error, a log or a repr.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from peerlane.tasks.errors import SettingsError
from peerlane.tasks.values.private_file import NotPrivate, read_private
from peerlane.tasks.wire.stored_peer import decoded_key, text_key

#: Longest key file that is read at all; a well-formed one has 44 characters and a newline.
_LIMIT = 256


def public_key(private: bytes) -> str:
    """The public key, base64, of a private key of 32 bytes."""
    return text_key(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def load_or_make(path: Path, current: bytes | None = None, expected: str | None = None) -> bytes:
    """The private key in ``path``, clamped as in the kernel. If there is none, write ``current`` or a new key.

    The file appears with its whole content, mode 0600, or not at all; of two processes making it one wins and both
    get the winner's key. ``expected`` is the public key that clients were given, where there is one.

    Raises:
        SettingsError: cannot be read or made, is malformed, or others than its owner may read or change it; or it is
            not the private key of ``expected``. Nothing was made then.
    """
    try:
        try:
            private = _load(path)
        except FileNotFoundError:
            if expected is not None and current is None:
                raise SettingsError(f"private key file {path} is not there, {_way_out(path, expected)}") from None
            if current is not None:
                _refuse_unexpected(path, current, expected)
            _make(path, current or secrets.token_bytes(32))
            private = _load(path)
    except OSError as error:
        raise SettingsError(f"private key file {path}: {error.strerror or error}") from error
    _refuse_unexpected(path, private, expected)
    return private


def public_key_in(path: Path) -> str:
    """The public key of a private key file. Does not change the file.

    Raises:
        OSError: it is not there, or cannot be read.
        SettingsError: as ``load_or_make`` does.
    """
    return public_key(_load(path))


def _refuse_unexpected(path: Path, private: bytes, expected: str | None) -> None:
    if expected is not None and (ours := public_key(private)) != expected:
        raise SettingsError(f"the key here has the public key {ours}, {_way_out(path, expected)}")


def _way_out(path: Path, expected: str) -> str:
    return (
        f"and clients were given {expected}: put the private key of that back into {path}, or start once with"
        " --accept-new-key (PEERLANE_ACCEPT_NEW_KEY=true) and give every client a new configuration"
    )


def refuse_other(path: Path, interface: str, current: bytes, private: bytes) -> None:
    """Refuse a device whose key is not the file's, because replacing it would end every session.

    Raises:
        SettingsError: names both public keys, and what can be done.
    """
    if not hmac.compare_digest(current, private):
        raise SettingsError(
            f"{interface} has the public key {public_key(current)}, the private key file {path} is that of"
            f" {public_key(private)}; move the file away to go on with the device's key, or run"
            f" `wg set {interface} private-key {path}` to give it the file's and end every session"
        )


def clamp(private: bytes) -> bytes:
    """Clamp a private key to the scalar that X25519 uses (RFC 7748, 5).

    The kernel keeps keys in this form (curve25519_clamp_secret in drivers/net/wireguard/noise.c): comparing
    anything else with what it answers would see a change at every start, and setting a key expires all sessions.
    """
    value = bytearray(private)
    value[0] &= 248
    value[31] = value[31] & 127 | 64
    return bytes(value)


def _load(path: Path) -> bytes:
    try:
        content = read_private(path, _LIMIT)
    except NotPrivate as refusal:
        raise SettingsError(f"private key file {path}: {refusal}") from None
    try:
        private = decoded_key(content.decode("ascii").strip())
    except ValueError:
        # Not chained: the decoding error of a binary file quotes its bytes.
        raise SettingsError(f"private key file {path}: does not hold a WireGuard key, 32 bytes in base64") from None
    if not any(private):
        raise SettingsError(f"private key file {path}: the key is all zeros")
    return clamp(private)


def _make_directory(path: Path) -> None:
    """Make it and those above, 0755 whatever the umask: others may have settings there. The key itself is closed."""
    for directory in [*reversed(path.parents), path]:
        if directory.is_dir():
            continue
        try:
            directory.mkdir()
        except FileExistsError:  # by another process just now, which sees to its mode
            continue
        directory.chmod(0o755)


def _make(path: Path, private: bytes) -> None:
    _make_directory(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text_key(clamp(private)).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link appears whole or not at all and never replaces: O_EXCL without a half-written file after a crash.
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
