"""The facts that a gateway registers from its settings; clients choose gateways and write files by them."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence

from peerlane.config.hosts import parse_endpoint
from peerlane.config.settings import Settings
from peerlane.tasks.errors import SettingsError
from peerlane.tasks.status.alarms import raise_alarm
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.store.store import Store

VERSION = "0.1.0"
#: The alarm of a gateway that was started with another key.
KEY_CHANGED = "key_changed"


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
    """The labels by which clients choose this gateway."""
    pairs = [text.partition("=") for text in settings.labels]
    return {name.strip(): value.strip() for name, _, value in pairs}


def own_endpoint(settings: Settings) -> str:
    """The endpoint that clients dial: the setting, or this host's name with the device's port.

    Raises:
        SettingsError: there is no setting, and this host's name makes no endpoint.
    """
    if settings.endpoint is not None:
        return settings.endpoint
    default = f"{own_name()}:{settings.listen_port}"
    try:
        return parse_endpoint(default)
    except ValueError as error:
        raise SettingsError(
            f"PEERLANE_ENDPOINT is not set, and this host's name makes none ({default}): {error}"
        ) from None


def registered_key(store: Store) -> str | None:
    """The public key that clients have; None while the gateway has no peers. Raises redis.RedisError."""
    return store.facts().get("public_key") if store.has_peers() else None


def tell_of_new_key(store: Store, before: str, now: str) -> None:
    """Raise an alarm that a person must clear, because no program knows when each client has its new configuration.

    Raises redis.RedisError.
    """
    message = (
        f"the public key has changed from {before} to {now}: configurations that clients were given before do not"
        f" connect. Give them new ones, then `peerlane gateway clear-alarm {store.gateway} {KEY_CHANGED}`"
    )
    raise_alarm(store.redis, store.gateway, KEY_CHANGED, message, now=store.clock.now_ms() // 1000)


def tell_of_kept(store: Store, count: int) -> None:
    """Raise an alarm if a start has left peers on the device that Redis does not know. Raises redis.RedisError."""
    if count:
        message = (
            f"{count} peers on the device are unknown to Redis and were kept: import them "
            f"(peerlane gateway import {store.gateway} --live), or delete them"
        )
        raise_alarm(store.redis, store.gateway, "unknown_peers", message, now=store.clock.now_ms() // 1000)


def own_name() -> str:
    """The host name for clients, as this host knows it."""
    full = socket.getfqdn()
    return full if not full.startswith("localhost") else socket.gethostname()
