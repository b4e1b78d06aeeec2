"""Peers and gateways as people read them, on a terminal of 80 columns too."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from peerlane.tasks.lane.gateway_info import GatewayInfo
from peerlane.tasks.wire.model import Peer, PeerResult

_STATES = {"active": "green", "draining": "yellow", "recovering": "yellow", "down": "red"}


def facts(pairs: Mapping[str, object]) -> Table:
    """Names and values, one below the other; what is None is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            table.add_row(f"  {name}", value if isinstance(value, Text) else str(value))
    return table


def span(seconds: float) -> str:
    """A duration, roughly."""
    for size, unit in ((86_400 * 2, "d"), (3600 * 2, "h"), (60 * 2, "min")):
        if seconds >= size:
            return f"{seconds / (size / 2):.0f} {unit}"
    return f"{seconds:.0f} s"


def expiry(expires_at: int | None) -> str | None:
    """When a peer expires, by this host's clock."""
    if expires_at is None:
        return None
    left = expires_at - time.time()
    return f"in {span(left)}" if left > 0 else f"{span(-left)} ago"


def peer_facts(peer: Peer | PeerResult) -> dict[str, object]:
    """One peer's properties, without any secret."""
    has_preshared = peer.has_preshared_key if isinstance(peer, PeerResult) else peer.preshared_key is not None
    return {
        "public key": peer.public_key,
        "allowed IPs": ", ".join(str(prefix) for prefix in peer.allowed_ips) or None,
        "preshared key": "(hidden)" if has_preshared else None,
        "keepalive": f"{peer.keepalive} s" if peer.keepalive else None,
        "expires": expiry(peer.expires_at),
        "labels": ", ".join(f"{name}={value}" for name, value in peer.labels.items()) or None,
        "pinned": "yes" if peer.pinned else None,
    }


def peer_table(peers: Iterable[Peer]) -> Table:
    """Many peers."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("public key", no_wrap=True, min_width=44)
    table.add_column("allowed IPs", no_wrap=True)
    table.add_column("expires", no_wrap=True)
    table.add_column("labels", overflow="fold")
    for peer in peers:
        table.add_row(
            peer.public_key,
            "\n".join(str(prefix) for prefix in peer.allowed_ips),
            (expiry(peer.expires_at) or "").removeprefix("in "),
            "\n".join(f"{name}={value}" for name, value in peer.labels.items()),
        )
    return table


def peer_row(peer: Peer) -> str:
    """One peer on one line, tab-separated, in the order of ``wg show dump``; what is unset as ``wg`` writes it."""
    return "\t".join(
        (
            peer.public_key,
            "(hidden)" if peer.preshared_key else "(none)",
            ",".join(str(prefix) for prefix in peer.allowed_ips) or "(none)",
            str(peer.keepalive or "off"),
            str(peer.expires_at or 0),
            ",".join(f"{name}={value}" for name, value in peer.labels.items()) or "(none)",
        )
    )


def state(name: str) -> Text:
    """A gateway's state in its colour."""
    return Text(name, _STATES.get(name, ""))


def gateway_table(gateways: Iterable[GatewayInfo]) -> Table:
    """The fleet."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("gateway", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("region", no_wrap=True)
    table.add_column("peers", justify="right", no_wrap=True)
    table.add_column("waiting", justify="right", no_wrap=True)
    table.add_column("data plane", no_wrap=True)
    table.add_column("endpoint", overflow="fold")
    for one in gateways:
        waiting = str(one.waiting + one.waiting_bulk)
        region, peers = one.region or "", f"{one.peers:,}"
        table.add_row(one.name, state(one.state), region, peers, waiting, one.dataplane, one.endpoint)
    return table


def gateway_facts(one: GatewayInfo) -> dict[str, object]:
    """One gateway."""
    silent = "never heard of" if one.silent_for is None else f"last sign of life {span(one.silent_for)} ago"
    colour = state(one.state)
    return {
        "state": colour if one.state == "active" else Text.assemble(colour, f", {silent}"),
        "public key": one.public_key,
        "endpoint": one.endpoint,
        "region": one.region,
        "labels": ", ".join(f"{name}={value}" for name, value in one.labels.items()) or None,
        "pools": ", ".join(one.pools) or None,
        "serves": ", ".join(one.serves) or None,
        "clients route": ", ".join(one.client_allowed_ips) or None,
        "DNS": ", ".join(one.dns) or None,
        "MTU": one.mtu,
        "peers": f"{one.peers:,} of at most {one.max_peers:,}",
        "waiting": f"{one.waiting:,}, and {one.waiting_bulk:,} in bulk",
        "device": f"{one.interface}, {one.dataplane} data plane, UDP port {one.listen_port}",
        "writer": f"{one.holder}, epoch {one.epoch}, version {one.version}",
    }
