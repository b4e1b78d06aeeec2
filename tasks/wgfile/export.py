"""Writes a gateway's peers as a file for ``wg syncconf``, ``setconf``, ``addconf`` and ``gateway import``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peerlane.tasks.errors import SettingsError
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wgfile import comments
from peerlane.tasks.wire.model import SEALED, is_key
from peerlane.tasks.wire.stored_peer import Peer


def readable(peers: Iterable[Peer]) -> Iterator[Peer]:
    """Yield the peers; raise if a preshared key is sealed with a key that this host does not have.

    Raises:
        SettingsError: one is sealed, and this host does not have the key to it.
    """
    for peer in peers:
        if peer.preshared_key is not None and SEALED.fullmatch(peer.preshared_key):
            raise SettingsError(
                f"the preshared key of peer {peer.public_key} is sealed: set PEERLANE_PSK_KEY_FILE to what opens it"
            )
        yield peer


def render_in_order(gateway: GatewayInfo, peers: Iterable[Peer]) -> Iterator[str]:
    """The file's lines, peers in the order of their addresses. Holds preshared keys: treat it as a secret."""
    # A gateway's facts must not add lines to the file (peerlane.tasks.wgfile.client_config).
    key = f", public key {gateway.public_key}" if is_key(gateway.public_key) else ""
    yield f"# The peers of the gateway {gateway.name}{key}."
    yield "[Interface]"
    yield "# There is no PrivateKey here: it never leaves the gateway. `wg syncconf` and `wg setconf` clear what is not"
    yield "# named, so put the line `PrivateKey = …` here for them; `wg addconf` needs none."
    if gateway.listen_port:
        yield f"ListenPort = {gateway.listen_port}"
    for peer in readable(peers):
        yield ""
        yield from rendered_peer(peer)


def rendered_peer(peer: Peer) -> Iterator[str]:
    """The lines of a peer's section, as ``wg`` and ``parse_conf`` read them. Holds the preshared key."""
    yield "[Peer]"
    yield from comments.written(peer)
    yield f"PublicKey = {peer.public_key}"
    if peer.preshared_key is not None:
        yield f"PresharedKey = {peer.preshared_key}"
    if peer.allowed_ips:
        yield f"AllowedIPs = {', '.join(str(prefix) for prefix in peer.allowed_ips)}"
    if peer.keepalive:
        yield f"PersistentKeepalive = {peer.keepalive}"
