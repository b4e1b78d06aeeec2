"""Encodes WireGuard's netlink messages with an own codec: 1–2 µs a peer; pyroute2 takes about a hundred.

Checked byte by byte against pyroute2 (tests/dataplane/test_wireguard.py), and against ``wg show`` on a real kernel.
Sources: include/uapi/linux/wireguard.h (the attributes), drivers/net/wireguard/netlink.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import decoded_key
from peerlane.workers.dataplane import RemovePeer, SetPeer
from peerlane.workers.dataplane.netlink.framing import ATTRIBUTE, NLA_F_NESTED, attribute
from peerlane.workers.dataplane.netlink.wireguard_uapi import (
    GET_DEVICE,
    IFINDEX,
    IFNAME,
    LISTEN_PORT,
    NO_KEY,
    P_ALLOWED_IPS,
    P_FLAGS,
    P_KEEPALIVE,
    P_PRESHARED_KEY,
    P_PUBLIC_KEY,
    PEERS,
    PRIVATE_KEY,
    REMOVE_ME,
    REPLACE_ALLOWED_IPS,
    SET_DEVICE,
    U16,
    U32,
    UPDATE_ONLY,
)

#: A SET holds the rtnl lock from its first peer to its last (netlink.c, wg_set_device), 50–70 µs each: more peers
#: in a message make every `ip` command on the gateway wait longer, fewer gain little.
MAX_PEERS = 64
#: One peers attribute holds less than 64 KiB, as its length is a u16; a send fits the default socket buffer.
MAX_BYTES = 32 * 1024
#: Allowed IPs that a peer has at most to be encoded before it is known whether it fits into the message.
_FEW = 8

_GENL = struct.Struct("=BBH")
# A peer up to its allowed IPs: the nest's header, then whole attributes.
_HEAD_SET = struct.Struct("=HH HH32s HHI HH32s HHH2x")
_HEAD_SHORT = struct.Struct("=HH HH32s HHI")
# One allowed IP: the nest's header, family, address, length of the prefix.
_ALLOWED_IP4 = struct.Struct("=HH HHH2x HH4s HHB3x")
_ALLOWED_IP6 = struct.Struct("=HH HHH2x HH16s HHB3x")
_INET, _INET6 = int(socket.AF_INET), int(socket.AF_INET6)


def encode_get(interface: str) -> bytes:
    """Payload of a request to dump the device of that name."""
    return _GENL.pack(GET_DEVICE, 1, 0) + attribute(IFNAME, interface.encode() + b"\0")


def encode_device(index: int, private_key: bytes | None, listen_port: int | None) -> bytes:
    """Payload that sets the device's key and port; None leaves one alone. Setting a key expires every session."""
    payload = _GENL.pack(SET_DEVICE, 1, 0) + attribute(IFINDEX, U32.pack(index))
    if listen_port is not None:
        payload += attribute(LISTEN_PORT, U16.pack(listen_port))
    if private_key is not None:
        payload += attribute(PRIVATE_KEY, private_key)
    return payload


def encode_changes(
    index: int, changes: Sequence[SetPeer | RemovePeer], *, max_peers: int = MAX_PEERS, max_bytes: int = MAX_BYTES
) -> Iterator[bytes]:
    """Payloads that make the changes in order, each with at most ``max_peers`` peers and ``max_bytes`` bytes.

    A peer whose allowed IPs do not fit goes on in the next message: the first part replaces what the peer allows,
    the others add to it, and only to a peer that is still there. Endpoints are never set.

    Raises:
        ValueError: a key or a keepalive is malformed; nothing of that message was yielded.
    """
    message = _Message(index, max_bytes)
    for change in changes:
        key = decoded_key(change.public_key)
        prefixes = sorted(change.allowed_ips) if isinstance(change, SetPeer) else []
        if len(message.parts) == max_peers:
            yield message.take()
        if len(prefixes) > _FEW or not message.add_whole(change, key, prefixes):
            yield from _add_in_parts(message, change, key, prefixes)
    if message.parts:
        yield message.take()


class _Message:
    """The message that is being filled."""

    def __init__(self, index: int, max_bytes: int) -> None:
        self._start = _GENL.pack(SET_DEVICE, 1, 0) + attribute(IFINDEX, U32.pack(index))
        self.capacity = max_bytes - len(self._start) - ATTRIBUTE.size
        self.parts: list[bytes] = []
        self.size = 0

    def add_whole(self, change: SetPeer | RemovePeer, key: bytes, prefixes: Sequence[Prefix]) -> bool:
        """Add a peer if there is room for all of it; returns whether there was."""
        part = _encode_peer(len(self.parts) + 1, change, key, prefixes, first=True)
        if self.size + len(part) > self.capacity:
            return False
        self.parts.append(part)
        self.size += len(part)
        return True

    def take(self) -> bytes:
        """The payload; the next message begins."""
        payload = self._start + ATTRIBUTE.pack(ATTRIBUTE.size + self.size, PEERS | NLA_F_NESTED) + b"".join(self.parts)
        self.parts, self.size = [], 0
        return payload


def _add_in_parts(
    message: _Message, change: SetPeer | RemovePeer, key: bytes, prefixes: Sequence[Prefix]
) -> Iterator[bytes]:
    """Add a peer that may need several messages; yields those that are full."""
    head = _head_size(change)
    whole = head + (ATTRIBUTE.size + sum(map(_allowed_ip_size, prefixes)) if prefixes else 0)
    if message.parts and message.size + whole > message.capacity:
        yield message.take()
    done = 0
    while True:
        count, room = done, message.capacity - message.size - head - ATTRIBUTE.size
        while count < len(prefixes) and _allowed_ip_size(prefixes[count]) <= room:
            room -= _allowed_ip_size(prefixes[count])
            count += 1
        part = _encode_peer(len(message.parts) + 1, change, key, prefixes[done:count], first=done == 0)
        message.parts.append(part)
        message.size += len(part)
        if count == len(prefixes):
            return
        yield message.take()
        done, head = count, _HEAD_SHORT.size


def _head_size(change: SetPeer | RemovePeer) -> int:
    return _HEAD_SET.size if isinstance(change, SetPeer) else _HEAD_SHORT.size


def _allowed_ip_size(prefix: Prefix) -> int:
    return _ALLOWED_IP4.size if prefix.version == 4 else _ALLOWED_IP6.size


def _encode_peer(
    number: int, change: SetPeer | RemovePeer, key: bytes, prefixes: Sequence[Prefix], *, first: bool
) -> bytes:
    allowed_ips = b"".join([_encode_allowed_ip(n, prefix) for n, prefix in enumerate(prefixes, 1)])
    if allowed_ips:
        allowed_ips = ATTRIBUTE.pack(4 + len(allowed_ips), P_ALLOWED_IPS | NLA_F_NESTED) + allowed_ips
    nest = number | NLA_F_NESTED
    if isinstance(change, SetPeer) and first:
        preshared = NO_KEY if change.preshared_key is None else decoded_key(change.preshared_key)
        if not 0 <= change.keepalive <= 0xFFFF:
            raise ValueError("keepalive is 0 to 65535 seconds")
        return (
            _HEAD_SET.pack(
                *(_HEAD_SET.size + len(allowed_ips), nest),
                *(36, P_PUBLIC_KEY, key),
                *(8, P_FLAGS, REPLACE_ALLOWED_IPS),
                *(36, P_PRESHARED_KEY, preshared),
                *(6, P_KEEPALIVE, change.keepalive),
            )
            + allowed_ips
        )
    flags = UPDATE_ONLY if isinstance(change, SetPeer) else REMOVE_ME
    size = _HEAD_SHORT.size + len(allowed_ips)
    return _HEAD_SHORT.pack(size, nest, 36, P_PUBLIC_KEY, key, 8, P_FLAGS, flags) + allowed_ips


def _encode_allowed_ip(number: int, prefix: Prefix) -> bytes:
    nest, (version, network, length) = number | NLA_F_NESTED, prefix
    if version == 4:
        return _ALLOWED_IP4.pack(28, nest, 6, 1, _INET, 8, 2, network.to_bytes(4, "big"), 5, 3, length)
    return _ALLOWED_IP6.pack(40, nest, 6, 1, _INET6, 20, 2, network.to_bytes(16, "big"), 5, 3, length)
