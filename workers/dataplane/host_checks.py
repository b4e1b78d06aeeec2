"""Checks that this host lets a device serve its pools: IPv6 is on, no other device has the same addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peerlane.tasks.errors import SettingsError
from peerlane.tasks.values.prefix import Prefix
from peerlane.workers.dataplane import DeviceSpec
from peerlane.workers.dataplane.netlink.routes import COVERING, RouteTable

_CONF = Path("/proc/sys/net/ipv6/conf")  # those of this process' network namespace


def refuse_without_ipv6(spec: DeviceSpec) -> None:
    """Refuse IPv6 pools if IPv6 is off; the kernel would answer their addresses with "Permission denied".

    Raises:
        SettingsError: names the switch, and the pools that work.
    """
    pools = _pools(spec)
    off = [pool for pool in pools if pool.version == 6]
    if not off or (switch := _switched_off(spec.interface)) is None:
        return
    working = ", ".join(str(pool) for pool in pools if pool.version == 4)
    alone = f", or serve IPv4 alone: PEERLANE_POOLS={working}" if working else ""
    raise SettingsError(
        f"IPv6 is switched off here ({switch}), so {spec.interface} cannot serve {', '.join(map(str, off))}: switch it"
        f" on (sysctl -w net.ipv6.conf.all.disable_ipv6=0; docker run --sysctl net.ipv6.conf.all.disable_ipv6=0){alone}"
    )


def refuse_overlaps(links: Any, table: RouteTable, spec: DeviceSpec) -> None:
    """Refuse pools that overlap another device's routes in this network namespace: replies to peers would go there.

    A wider network of another device is none, as a pool's route is the more specific one; it is where that device is
    WireGuard's or its route another gateway's: its peers would lose theirs.

    Raises:
        SettingsError: names the device, its network and the pool.
    """
    own = set(links.link_lookup(ifname=spec.interface))
    pools = _pools(spec)
    for index, network, ours in [*_addresses(links), *_routes(table, pools)]:
        if index in own or not index or not network.length:
            continue
        for pool in pools:
            if not network.overlaps(pool):
                continue
            name, wireguard = _described(links, index)
            if pool.contains(network) or wireguard or ours:
                kind = ", a WireGuard device," if wireguard else ""
                raise SettingsError(
                    f"PEERLANE_POOLS: {pool} overlaps {network}, which leads to {name}{kind} on this host: replies to"
                    f" peers would go there. Take other pools, or remove {network} from {name}"
                )


def _pools(spec: DeviceSpec) -> list[Prefix]:
    return sorted({*spec.routes, *(pool for _, pool in spec.addresses)})


def _switched_off(interface: str) -> str | None:
    """What says that IPv6 is off for this device, or will be once it is made; None if it is on."""
    for name in (interface, "default"):
        try:
            state = (_CONF / name / "disable_ipv6").read_text(encoding="ascii").strip()
        except OSError:
            continue
        return f"net.ipv6.conf.{name}.disable_ipv6 is {state}" if state != "0" else None
    return "the kernel runs without it"


def _addresses(links: Any) -> list[tuple[int, Prefix, bool]]:
    """Every address as (device, its network, whether a gateway of ours set it)."""
    networks: list[tuple[int, Prefix, bool]] = []
    for address in links.get_addr():
        local = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
        _, network = Prefix.parse_interface(f"{local}/{address['prefixlen']}")
        networks.append((int(address["index"]), network, address.get_attr("IFA_PROTO") == COVERING))
    return networks


def _routes(table: RouteTable, pools: list[Prefix]) -> list[tuple[int, Prefix, bool]]:
    return [(index, route.prefix, route.protocol == COVERING) for index, route in table.overlapping(pools)]


def _described(links: Any, index: int) -> tuple[str, bool]:
    """A device's name, and whether it is WireGuard's."""
    (link,) = links.link("get", index=index)
    return str(link.get_attr("IFLA_IFNAME")), link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "wireguard"
