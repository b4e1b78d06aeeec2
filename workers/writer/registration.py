"""What a gateway tells the fleet of itself, as its settings have it: clients choose gateways and make files by it."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence

from peerlane.config.settings import Settings
from peerlane.tasks.wire.prefix import Prefix

VERSION = "0.1.0"


def registration(
    settings: Settings,
    labels: Mapping[str, str],
    pools: Sequence[Prefix],
    serves: Sequence[Prefix],
    own_addresses: Sequence[Prefix],
) -> dict[str, str | float]:
    """The fields of the gateway's hash that its settings decide."""
    return {
        "interface": settings.interface,
        "pools": json.dumps([str(p) for p in pools]),
        "serves": json.dumps([str(p) for p in serves]),
        "addresses": json.dumps([address.address for address in own_addresses]),
        "region": settings.region or "",
        "labels": json.dumps(labels),
        "dns": json.dumps(list(settings.dns)),
        "client_allowed_ips": json.dumps(list(settings.client_allowed_ips) or [str(p) for p in (*pools, *serves)]),
        "mtu": settings.mtu or 0,
        "max_peers": settings.max_peers,
        "lane_cap": settings.lane_cap,
        "fair_label": settings.fair_label or "",
        "fair_share": settings.fair_share,
        "sweep_every": settings.sweep_every,
        "reconcile_every": settings.reconcile_every,
        "version": VERSION,
    }


def gateway_labels(settings: Settings) -> dict[str, str]:
    """What clients choose this gateway by."""
    pairs = [text.partition("=") for text in settings.labels]
    return {name.strip(): value.strip() for name, _, value in pairs}


def own_name() -> str:
    """The host name that clients can dial, as far as this host knows."""
    full = socket.getfqdn()
    return full if not full.startswith("localhost") else socket.gethostname()
