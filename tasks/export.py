"""A gateway's peers as a file that ``wg syncconf``, ``setconf`` and ``addconf`` read. For people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tasks.client import GatewayInfo
from tasks.model import Peer

#: Labels that become ``# friendly_name``, which exporters for WireGuard show as a peer's name.
NAMES = ("friendly_name", "name")


def render_export(gateway: GatewayInfo, peers: Iterable[Peer]) -> Iterator[str]:
    """The file's lines, peers in the order of their addresses. Holds preshared keys: treat it as a secret."""
    yield f"# The peers of the gateway {gateway.name}, public key {gateway.public_key}."
    yield "[Interface]"
    yield "# There is no PrivateKey here: it never leaves the gateway. `wg syncconf` and `wg setconf` clear what is not"
    yield "# named, so put the line `PrivateKey = …` here for them; `wg addconf` needs none."
    if gateway.listen_port:
        yield f"ListenPort = {gateway.listen_port}"
    for peer in sorted(peers, key=lambda peer: (peer.allowed_ips, peer.public_key)):
        yield ""
        yield "[Peer]"
        # A record's labels hold no line breaks: the model refuses them.
        for label, value in peer.labels.items():
            yield f"# {'friendly_name' if label in NAMES else label} = {value}"
        yield f"PublicKey = {peer.public_key}"
        if peer.preshared_key is not None:
            yield f"PresharedKey = {peer.preshared_key}"
        if peer.allowed_ips:
            yield f"AllowedIPs = {', '.join(str(prefix) for prefix in peer.allowed_ips)}"
        if peer.keepalive:
            yield f"PersistentKeepalive = {peer.keepalive}"
