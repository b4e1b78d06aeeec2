"""Parses texts that name hosts: endpoints that clients dial, DNS servers. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_-]+)*\.?")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{0,15}")


def parse_endpoint(text: str) -> str:
    """``host:port`` as WireGuard reads it; an IPv6 address gets its brackets.

    Raises:
        ValueError: with a sentence for a person.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or not 1 <= int(port) <= 65535:
        raise ValueError("an endpoint is host:port, such as vpn.example.com:51820 or [2001:db8::1]:51820")
    if host.startswith("[") and host.endswith("]"):
        address = host[1:-1]
    elif ":" in host:
        if _is_ipv6(text):
            raise ValueError(f"put the address of the endpoint in brackets: [{host}]:{port} or [{text}]:PORT")
        address = host
    else:
        if not host.isascii():
            raise ValueError("an endpoint's host is written in ASCII, an international name as xn--…")
        if not _HOST_NAME.fullmatch(host):
            raise ValueError("an endpoint's host is a name or an address, such as vpn.example.com:51820")
        return text
    if not _is_ipv6(address):
        raise ValueError("what stands in an endpoint's brackets is an IPv6 address")
    return f"[{address}]:{port}"


def parse_dns(text: str) -> str:
    """A DNS server's address, or a search domain, as a client's configuration names it. Raises ValueError."""
    address = _address(text)
    if address is None and not _HOST_NAME.fullmatch(text):
        raise ValueError("a DNS server is an address, a search domain is a name")
    return text if address is None else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    # ipaddress takes anything for a zone, a line break too, and wg-quick runs lines as root.
    if not _ZONE.fullmatch(text.partition("%")[2]):
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_ipv6(text: str) -> bool:
    return isinstance(_address(text), IPv6Address)


def is_host(text: str) -> bool:
    """Whether it is a host's name or address, an IPv6 address without brackets."""
    return bool(_HOST_NAME.fullmatch(text)) or _is_ipv6(text)


def endpoint_host(endpoint: str) -> str:
    """The host of an endpoint, an IPv6 address without brackets."""
    return endpoint.rpartition(":")[0].removeprefix("[").removesuffix("]")


def endpoint_doubt(endpoint: str) -> str | None:
    """A sentence that says why clients on other hosts may not reach an endpoint; None if no reason is known."""
    host = endpoint_host(endpoint)
    address, name = _address(host), host.rstrip(".").lower()
    if name.endswith("localhost") or (address is not None and (address.is_loopback or address.is_unspecified)):
        return f"{host} leads a client to itself: set PEERLANE_ENDPOINT to what clients dial"
    if address is None and "." not in name:
        return f"few clients can look up {host}, a name without a dot: set PEERLANE_ENDPOINT to what clients dial"
    return None
