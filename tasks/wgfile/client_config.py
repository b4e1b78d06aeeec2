"""Renders a client's configuration for wg-quick, and writes it once, readable by its owner only.

wg-quick runs ``PostUp`` lines as root, so no value from Redis may add a line. Each value is therefore parsed before it
is rendered.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from peerlane.config.hosts import parse_dns, parse_endpoint
from peerlane.tasks.errors import PeerlaneError, StorageError
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import PeerResult, check_public_key


class FileExists(PeerlaneError):
    """A file of that name is there and was left as it is."""

    code = "file_exists"


class NotWritten(PeerlaneError):
    """A file could not be written."""

    code = "not_written"


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """One client's configuration. Made by ``client_config``, which checks every part."""

    #: None where the caller made the key pair: only the caller has it.
    private_key: str | None = field(repr=False)
    public_key: str
    addresses: tuple[str, ...]
    dns: tuple[str, ...]
    mtu: int | None
    gateway_public_key: str
    preshared_key: str | None = field(repr=False)
    endpoint: str
    allowed_ips: tuple[str, ...]
    keepalive: int

    def render(self) -> str:
        """The file's text."""
        lines = ["[Interface]"]
        if self.private_key is not None:
            lines.append(f"PrivateKey = {self.private_key}")
        else:
            lines.append(f"# PrivateKey = the private key of {self.public_key}")
        if self.addresses:
            lines.append(f"Address = {', '.join(self.addresses)}")
        if self.dns:
            lines.append(f"DNS = {', '.join(self.dns)}")
        if self.mtu is not None:
            lines.append(f"MTU = {self.mtu}")
        lines += ["", "[Peer]", f"PublicKey = {self.gateway_public_key}"]
        if self.preshared_key is not None:
            lines.append(f"PresharedKey = {self.preshared_key}")
        lines.append(f"Endpoint = {self.endpoint}")
        if self.allowed_ips:
            lines.append(f"AllowedIPs = {', '.join(self.allowed_ips)}")
        if self.keepalive:
            lines.append(f"PersistentKeepalive = {self.keepalive}")
        return "\n".join(lines) + "\n"


def client_config(
    result: PeerResult,
    gateway: GatewayInfo,
    *,
    private_key: str | None = None,
    preshared_key: str | None = None,
) -> ClientConfig:
    """The configuration of the client whose peer was created as ``result``.

    Of the peer's prefixes only single addresses become the client's own; networks are what lies behind it.

    Raises:
        StorageError: what the gateway says of itself does not parse; names the field and never runs as a line.
    """
    field_name = "peer's address"
    try:
        prefixes = [Prefix.parse(text) for text in result.allowed_ips]
        field_name = "public key"
        gateway_key = check_public_key(result.gateway_public_key or gateway.public_key)
        field_name = "endpoint"
        endpoint = parse_endpoint(result.endpoint or gateway.endpoint)
        field_name = "client_allowed_ips"
        routed = tuple(str(Prefix.parse(text)) for text in gateway.client_allowed_ips)
        field_name = "dns"
        dns = tuple(parse_dns(text) for text in gateway.dns)
    except ValueError as error:
        raise StorageError(
            f"the {field_name} that the gateway {gateway.name} tells does not parse: {error}; mend its settings"
        ) from None
    return ClientConfig(
        private_key=private_key,
        public_key=result.public_key,
        addresses=tuple(str(prefix) for prefix in prefixes if prefix.length == prefix.bits),
        dns=dns,
        mtu=gateway.mtu,
        gateway_public_key=gateway_key,
        preshared_key=preshared_key,
        endpoint=endpoint,
        allowed_ips=routed,
        keepalive=result.keepalive,
    )


def refuse_if_there(path: Path) -> None:
    """Raise FileExists or NotWritten if ``write_private`` could not make this file now.

    Raises:
        FileExists: something of that name is there.
        NotWritten: its directory is not there.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise NotWritten(f"{path} cannot be written: there is no directory {path.parent}") from None
        return
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror}") from None
    raise FileExists(f"{path} is there already and was left as it is; --force replaces it")


def write_private(path: Path, text: str | bytes, *, replace: bool = False) -> None:
    """Write a file that holds a secret. As ``private_file``."""
    with private_file(path, replace=replace) as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def _beside(path: Path) -> Path:
    """The path of a new file that then replaces ``path``, which is a file or a link, never a device or a pipe."""
    with suppress(OSError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise NotWritten(f"{path} was left as it is: it is no regular file")
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextmanager
def private_file(path: Path, *, replace: bool = False) -> Generator[BinaryIO]:
    """A file that holds a secret, to be written: mode 0600 from its first byte, whole or not at all.

    Raises:
        FileExists: it is there, and ``replace`` was not asked for.
        NotWritten: the system refuses; the sentence says why.
    """
    target = _beside(path) if replace else path
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise FileExists(f"{path} is there already and was left as it is; --force replaces it") from None
    except OSError as error:
        raise NotWritten(f"{path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            target.replace(path)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise NotWritten(f"{path} cannot be written: {error.strerror}") from None
        raise
