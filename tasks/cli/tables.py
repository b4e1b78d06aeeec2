"""Renders peers and gateways as tables for people, also in 80 columns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.activity import PeerActivity
from peerlane.tasks.wire.model import Peer, PeerResult

_STATES = {"active": "green", "draining": "yellow", "recovering": "yellow"} | dict.fromkeys(
    ("stopped", "stuck", "down"), "red"
)


def facts(pairs: Mapping[str, object]) -> Table:
    """A table of names and values, without those that are None."""
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
    """One peer's properties, without secrets."""
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


def activity_facts(activity: PeerActivity | None, *, created: bool = True) -> dict[str, object]:
    """A peer's activity; ``created``: whether the peer may have been seen at all."""
    if activity is None:
        return {"last seen": "never, as far as the gateway's observer knows" if created else None}
    return {
        "last seen": "never" if activity.last_seen is None else f"{seen(activity)} ago",
        "endpoint": activity.endpoint,
        "received": size(activity.rx_bytes),
        "sent": size(activity.tx_bytes),
    }


def seen(activity: PeerActivity | None) -> str:
    """How long ago a peer was last seen, by this host's clock; ``never`` if it was not."""
    if activity is None or activity.last_seen is None:
        return "never"
    return span(max(0.0, time.time() - activity.last_seen))


def size(count: int) -> str:
    """Bytes, in units of 1,000."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.1f} {unit}" if unit != "B" and amount < 10 else f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def peer_table(peers: Iterable[tuple[Peer, PeerActivity | None]], *, with_activity: bool = True) -> Table:
    """A table of peers; without their activity if this Redis user may not read it."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("public key", no_wrap=True, min_width=44)
    table.add_column("allowed IPs", no_wrap=True)
    table.add_column("expires", no_wrap=True)
    if with_activity:
        table.add_column("seen", no_wrap=True)
        table.add_column("received", no_wrap=True, justify="right")
        table.add_column("sent", no_wrap=True, justify="right")
    table.add_column("labels", overflow="fold")
    for peer, activity in peers:
        moved = (activity.rx_bytes, activity.tx_bytes) if activity is not None else (0, 0)
        table.add_row(
            peer.public_key,
            "\n".join(str(prefix) for prefix in peer.allowed_ips),
            (expiry(peer.expires_at) or "").removeprefix("in "),
            *((seen(activity), *map(size, moved)) if with_activity else ()),
            "\n".join(f"{name}={value}" for name, value in peer.labels.items()),
        )
    return table


def peer_row(peer: Peer, activity: PeerActivity | None) -> str:
    """One peer as a tab-separated line; unset values are written as by ``wg show dump``. New fields come last."""
    return "\t".join(
        (
            peer.public_key,
            "(hidden)" if peer.preshared_key else "(none)",
            ",".join(str(prefix) for prefix in peer.allowed_ips) or "(none)",
            str(peer.keepalive or "off"),
            str(peer.expires_at or 0),
            ",".join(f"{name}={value}" for name, value in peer.labels.items()) or "(none)",
            str((activity.last_seen if activity is not None else None) or 0),
            str(activity.rx_bytes if activity is not None else 0),
            str(activity.tx_bytes if activity is not None else 0),
            (activity.endpoint if activity is not None else None) or "(none)",
        )
    )


def state(name: str, *, stopped: bool = False) -> Text:
    """A gateway's state in its colour; ``stopped`` if its writer was stopped properly."""
    name = "stopped" if stopped else name
    return Text(name, _STATES.get(name, ""))


def gateway_table(gateways: Iterable[GatewayInfo]) -> Table:
    """A table of gateways."""
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
        table.add_row(
            one.name, state(one.state, stopped=one.stopped), region, peers, waiting, one.dataplane, one.endpoint
        )
    return table


def gateway_facts(one: GatewayInfo, *, now: float) -> dict[str, object]:
    """The facts of one gateway; ``now`` is on Redis' clock."""
    if one.stopped:
        silent = f"{span(max(0.0, now - one.stopped_at))} ago" if one.stopped_at else "in good order"
    elif one.state == "stuck":
        silent = f"has served nothing for {span(one.idle_for or 0)}"
    else:
        silent = "never heard of" if one.silent_for is None else f"last sign of life {span(one.silent_for)} ago"
    colour = state(one.state, stopped=one.stopped)
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
