"""Renders peers and gateways as tables for people, also in 80 columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.activity import PeerActivity
from peerlane.tasks.wire.model import PeerResult
from peerlane.tasks.wire.stored_peer import Peer

#: Columns of a terminal from which on the fleet's table has all of its own.
WIDE = 100
#: Columns that labels take at least, if they have so many.
LABELS = 24
#: Columns of a folded key.
SHORTEST_KEY = 12

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
            table.add_row(f" {name}", value if isinstance(value, Text) else str(value))
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


@dataclass(frozen=True, slots=True)
class _PeerColumn:
    title: str
    cell: Callable[[Peer, PeerActivity | None], str]
    #: Columns with the lowest of these are left out first where there is no room; None for those that never are.
    rank: int | None = None
    right: bool = False
    activity: bool = False

    def width(self, cells: Iterable[str]) -> int:
        """The least width of a column: labels may be folded, nothing else."""
        widest = max(cell_len(line) for cell in (self.title, *cells) for line in cell.split("\n"))
        return min(widest, LABELS) if self.title == "labels" else widest


_PEER_COLUMNS = (
    _PeerColumn("public key", lambda peer, _: peer.public_key),
    _PeerColumn("allowed IPs", lambda peer, _: "\n".join(str(prefix) for prefix in peer.allowed_ips)),
    _PeerColumn("expires", lambda peer, _: (expiry(peer.expires_at) or "").removeprefix("in "), rank=4),
    _PeerColumn("seen", lambda _, activity: seen(activity), rank=3, activity=True),
    _PeerColumn(
        "received", lambda _, activity: size(activity.rx_bytes if activity else 0), rank=1, right=True, activity=True
    ),
    _PeerColumn(
        "sent", lambda _, activity: size(activity.tx_bytes if activity else 0), rank=0, right=True, activity=True
    ),
    _PeerColumn("labels", lambda peer, _: "\n".join(f"{name}={value}" for name, value in peer.labels.items()), rank=2),
)


def peer_table(
    peers: Iterable[tuple[Peer, PeerActivity | None]], width: int, *, with_activity: bool = True
) -> tuple[Table, list[str]]:
    """A table of peers, and the titles of the columns for which there is no room.

    Without their activity if this Redis user may not read it.
    """
    rows = list(peers)
    columns = {
        column: [column.cell(*row) for row in rows] for column in _PEER_COLUMNS if with_activity or not column.activity
    }
    left_out: list[str] = []
    while sum(column.width(cells) + 1 for column, cells in columns.items()) > width:
        optional = {column.rank: column for column in columns if column.rank is not None}
        if not optional:
            break
        column = optional[min(optional)]
        left_out.append(column.title)
        del columns[column]
    widths = {column: column.width(cells) for column, cells in columns.items()}
    key, prefixes, *_, last = _PEER_COLUMNS
    room = width - sum(widths.values()) - len(widths)
    if room < 0:  # with two columns left: keys are folded, so that nothing is cut
        widths[key] = max(SHORTEST_KEY, widths[key] + room)
        widths[prefixes] = max(1, min(widths[prefixes], width - widths[key] - 2))
    if last in widths:
        widths[last] += max(0, room)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column, columns_wide in widths.items():
        justify = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, overflow="fold", width=columns_wide)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table, left_out[::-1]


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


def gateway_table(gateways: Iterable[GatewayInfo], width: int) -> Table:
    """The fleet. In a narrow table names and endpoints are folded; nothing is cut."""
    rows = list(gateways)
    narrow = width < WIDE
    cells: dict[str, list[str | Text]] = {
        "gateway": [row.name for row in rows],
        "state": [state(row.state, stopped=row.stopped) for row in rows],
        "region": [row.region or "" for row in rows],
        "peers": [f"{row.peers:,}" for row in rows],
        "waiting": [f"{row.waiting + row.waiting_bulk:,}" for row in rows],
        "data plane": [row.dataplane for row in rows],
        "endpoint": [row.endpoint for row in rows],
    }
    if narrow:
        del cells["region"], cells["data plane"]
    gap = 1 if narrow else 2
    widths = {title: _widest(title, map(str, column)) for title, column in cells.items()}
    room = width - sum(widths.values()) - gap * len(widths) + widths["gateway"] + widths["endpoint"]
    if widths["gateway"] + widths["endpoint"] > room:
        widths["gateway"] = max(7, min(widths["gateway"], room // 2), room - widths["endpoint"])
        widths["endpoint"] = max(8, room - widths["gateway"])
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold")
    for title, size in widths.items():
        justify = "right" if title in ("peers", "waiting") else "left"
        table.add_column(title, justify=justify, overflow="fold", width=size)
    for line in zip(*cells.values(), strict=True):
        table.add_row(*line)
    return table


def _widest(title: str, cells: Iterable[str]) -> int:
    return max([len(title), *map(len, cells)])


def gateway_facts(info: GatewayInfo, *, now: float) -> dict[str, object]:
    """The facts of one gateway; ``now`` is on Redis' clock."""
    if info.stopped:
        silent = f"{span(max(0.0, now - info.stopped_at))} ago" if info.stopped_at else "in good order"
    elif info.state == "stuck":
        silent = f"has served nothing for {span(info.idle_for or 0)}"
    else:
        silent = "never heard of" if info.silent_for is None else f"last sign of life {span(info.silent_for)} ago"
    colour = state(info.state, stopped=info.stopped)
    return {
        "state": colour if info.state == "active" else Text.assemble(colour, f", {silent}"),
        "public key": info.public_key,
        "endpoint": info.endpoint,
        "region": info.region,
        "labels": ", ".join(f"{name}={value}" for name, value in info.labels.items()) or None,
        "pools": ", ".join(info.pools) or None,
        "serves": ", ".join(info.serves) or None,
        "clients route": ", ".join(info.client_allowed_ips) or None,
        "DNS": ", ".join(info.dns) or None,
        "MTU": info.mtu,
        "peers": f"{info.peers:,} of at most {info.max_peers:,}",
        "waiting": f"{info.waiting:,}, and {info.waiting_bulk:,} in bulk",
        "device": f"{info.interface}, {info.dataplane} data plane, UDP port {info.listen_port}",
        "writer": _writer(info, now),
    }


def _writer(info: GatewayInfo, now: float) -> str:
    if not info.epoch:  # as after a restore on another Redis
        return "none has started yet"
    return f"{info.holder}, {_since(info, now)}epoch {info.epoch}, version {info.version}"


def _since(info: GatewayInfo, now: float) -> str:
    if info.began_at is None or info.state == "down":
        return ""
    return f"started {span(max(0.0, now - info.began_at))} ago, "
