"""Decodes WireGuard's netlink messages with an own codec: 1–2 µs a peer; pyroute2 takes about a hundred.

Checked byte by byte against pyroute2 (tests/dataplane/test_wireguard.py), and against ``wg show`` on a real kernel.
Sources: include/uapi/linux/wireguard.h (the attributes, and how dumps are split), drivers/net/wireguard/netlink.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import text_key
from peerlane.workers.dataplane import DevicePeer
from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.dataplane.netlink.framing import ATTRIBUTE, NLA_TYPE_MASK, Malformed, Payload, attributes
from peerlane.workers.dataplane.netlink.wireguard_uapi import (
    IFINDEX,
    LISTEN_PORT,
    NO_KEY,
    P_ALLOWED_IPS,
    P_ENDPOINT,
    P_HANDSHAKE,
    P_KEEPALIVE,
    P_PRESHARED_KEY,
    P_PUBLIC_KEY,
    P_RX,
    P_TX,
    PEERS,
    PRIVATE_KEY,
    PUBLIC_KEY,
    U16,
    U32,
)

_U64 = struct.Struct("=Q")
_TIME = struct.Struct("=qq")
_PORT = struct.Struct(">H")

#: Size of the value by attribute of a peer, where it is fixed.
_PEER_SIZES = (0, 32, 32, 4, 0, 2, 16, 8, 8, 0, 4)
_ALLOWED_IP_SIZES = (0, 2, 0, 1)
_DEVICE_SIZES = (0, 4, 0, 32, 32, 4, 2, 4, 0)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The device's own attributes; the first message of a dump holds them."""

    index: int
    private_key: bytes | None = field(repr=False)
    public_key: bytes | None
    listen_port: int


def read_device(payload: Payload) -> DeviceState:
    """The device's attributes from the first message of a dump.

    Raises:
        Malformed: they are not there.
    """
    buffer, at, end = payload
    try:
        places = _locate(buffer, at + 4, end, _DEVICE_SIZES)
        if not places[IFINDEX] or not places[LISTEN_PORT]:
            raise Malformed("the first message of a dump holds no device")
        return DeviceState(
            index=U32.unpack_from(buffer, places[IFINDEX] + 4)[0],
            private_key=_key(buffer, places[PRIVATE_KEY]),
            public_key=_key(buffer, places[PUBLIC_KEY]),
            listen_port=U16.unpack_from(buffer, places[LISTEN_PORT] + 4)[0],
        )
    except struct.error:
        raise Malformed("an attribute is cut short") from None


def each_peer(payloads: Iterable[Payload]) -> Iterator[DevicePeer]:
    """The peers of a dump, in its order.

    The kernel splits a peer over messages where its allowed IPs do not fit (wireguard.h): the parts that follow at once
    hold the key and more allowed IPs, nothing else.

    Raises:
        Malformed: a message makes no sense.
    """
    whole: DevicePeer | None = None
    more: list[Prefix] = []
    for part in _parts(payloads):
        if whole is not None and part.public_key == whole.public_key:
            more += part.allowed_ips
            continue
        if whole is not None:
            yield _joined(whole, more)
        whole, more = part, []
    if whole is not None:
        yield _joined(whole, more)


def read_peers(payloads: Iterable[Payload]) -> dict[str, DevicePeer]:
    """``each_peer`` by public key."""
    return {peer.public_key: peer for peer in each_peer(payloads)}


def _parts(payloads: Iterable[Payload]) -> Iterator[DevicePeer]:
    for buffer, at, end in payloads:
        try:
            for start, stop in _peers(buffer, at, end):
                yield _read_peer(buffer, start, stop)
        except struct.error:
            raise Malformed("an attribute is cut short") from None


def _joined(peer: DevicePeer, more: Iterable[Prefix]) -> DevicePeer:
    return replace(peer, allowed_ips=peer.allowed_ips.union(more)) if more else peer


def read_counters(payload: Payload) -> list[PeerCounters]:
    """The counters of every peer that begins in this message; later parts of a split peer have none.

    Raises:
        Malformed: the message makes no sense.
    """
    buffer, at, end = payload
    counters: list[PeerCounters] = []
    try:
        for start, stop in _peers(buffer, at, end):
            where = _locate(buffer, start, stop, _PEER_SIZES)
            key, handshake, rx, tx = where[P_PUBLIC_KEY], where[P_HANDSHAKE], where[P_RX], where[P_TX]
            if not key:
                raise Malformed("a peer without a public key")
            if handshake and rx and tx:
                seconds, nanoseconds = _TIME.unpack_from(buffer, handshake + 4)
                counters.append(
                    PeerCounters(
                        text_key(buffer[key + 4 : key + 36]),
                        seconds + nanoseconds / 1e9,
                        _U64.unpack_from(buffer, rx + 4)[0],
                        _U64.unpack_from(buffer, tx + 4)[0],
                        _endpoint(buffer, where[P_ENDPOINT]),
                    )
                )
    except struct.error:
        raise Malformed("an attribute is cut short") from None
    return counters


def _locate(buffer: bytes, at: int, end: int, sizes: Sequence[int]) -> list[int]:
    """Where each attribute begins, by type; 0 for one that is not there. Raises struct.error past the buffer."""
    places = [0] * len(sizes)
    unpack = ATTRIBUTE.unpack_from
    while at < end:
        length, kind = unpack(buffer, at)
        if length < 4 or at + length > end:
            raise Malformed(f"an attribute says it has {length} bytes of the {end - at} there are")
        kind &= NLA_TYPE_MASK
        if kind < len(sizes):
            if sizes[kind] and length != sizes[kind] + 4:
                raise Malformed(f"attribute {kind} has {length - 4} bytes instead of {sizes[kind]}")
            places[kind] = at
        at += (length + 3) & ~3
    return places


def _peers(buffer: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """First byte and the byte after the last of each peer in a message; a message may hold none."""
    for kind, start, stop in attributes(buffer, at + 4, end):
        if kind == PEERS:
            for _, first, last in attributes(buffer, start, stop):
                yield first, last


def _read_peer(buffer: bytes, at: int, end: int) -> DevicePeer:
    where = _locate(buffer, at, end, _PEER_SIZES)
    key = _key(buffer, where[P_PUBLIC_KEY])
    if key is None:
        raise Malformed("a peer without a public key")
    preshared = _key(buffer, where[P_PRESHARED_KEY])
    handshake, rx, tx, keepalive = where[P_HANDSHAKE], where[P_RX], where[P_TX], where[P_KEEPALIVE]
    seconds, nanoseconds = _TIME.unpack_from(buffer, handshake + 4) if handshake else (0, 0)
    return DevicePeer(
        public_key=text_key(key),
        preshared_key=None if preshared is None or preshared == NO_KEY else text_key(preshared),
        keepalive=U16.unpack_from(buffer, keepalive + 4)[0] if keepalive else 0,
        allowed_ips=_allowed_ips(buffer, where[P_ALLOWED_IPS]),
        endpoint=_endpoint(buffer, where[P_ENDPOINT]),
        latest_handshake=seconds + nanoseconds / 1e9,
        rx_bytes=_U64.unpack_from(buffer, rx + 4)[0] if rx else 0,
        tx_bytes=_U64.unpack_from(buffer, tx + 4)[0] if tx else 0,
    )


def _key(buffer: bytes, at: int) -> bytes | None:
    return buffer[at + 4 : at + 36] if at else None


def _allowed_ips(buffer: bytes, at: int) -> frozenset[Prefix]:
    if not at:
        return frozenset()
    prefixes: list[Prefix] = []
    for _, start, stop in attributes(buffer, at + 4, at + ATTRIBUTE.unpack_from(buffer, at)[0]):
        _, family, address, length = _locate(buffer, start, stop, _ALLOWED_IP_SIZES)
        if not (family and address and length):
            raise Malformed("an allowed IP is not whole")
        packed = buffer[address + 4 : address + ATTRIBUTE.unpack_from(buffer, address)[0]]
        bits = {socket.AF_INET: 32, socket.AF_INET6: 128}.get(U16.unpack_from(buffer, family + 4)[0])
        if bits is None or len(packed) * 8 != bits or buffer[length + 4] > bits:
            raise Malformed("an allowed IP of no known family")
        prefixes.append(Prefix.from_packed(packed, buffer[length + 4]))
    return frozenset(prefixes)


def _endpoint(buffer: bytes, at: int) -> tuple[str, int] | None:
    """From a sockaddr_in or sockaddr_in6; a link-local address keeps its interface's number, as in ``fe80::1%3``."""
    if not at:
        return None
    size = ATTRIBUTE.unpack_from(buffer, at)[0] - 4
    family = U16.unpack_from(buffer, at + 4)[0] if size >= 2 else 0
    if family == socket.AF_INET and size == 16:
        return socket.inet_ntop(socket.AF_INET, buffer[at + 8 : at + 12]), _PORT.unpack_from(buffer, at + 6)[0]
    if family == socket.AF_INET6 and size == 28:
        address = socket.inet_ntop(socket.AF_INET6, buffer[at + 12 : at + 28])
        scope = U32.unpack_from(buffer, at + 28)[0]
        return f"{address}%{scope}" if scope else address, _PORT.unpack_from(buffer, at + 6)[0]
    raise Malformed("an endpoint of no known family")
