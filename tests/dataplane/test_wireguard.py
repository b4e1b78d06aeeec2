"""The WireGuard codec: against pyroute2's own encoder, against every way the kernel may cut a dump, against garbage."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from devices import prefix, prefixes
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number, some_key
from pyroute2.netlink.generic.wireguard import wgmsg

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import decoded_key, text_key
from peerlane.workers.dataplane import DevicePeer, RemovePeer, SetPeer
from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.dataplane.netlink.channel import uninterrupted
from peerlane.workers.dataplane.netlink.framing import (
    NLA_F_NESTED,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    DumpReader,
    Interrupted,
    KernelRefused,
    Malformed,
    Payload,
    attribute,
    attributes,
    frame,
    messages,
    refusal,
)
from peerlane.workers.dataplane.netlink.wireguard_decode import DeviceState, read_counters, read_device, read_peers
from peerlane.workers.dataplane.netlink.wireguard_encode import encode_changes

FAMILY = 21
SEQUENCE = 7

keys = st.binary(min_size=32, max_size=32).filter(any).map(text_key)


def some_prefix(version: int, address: int, length: int) -> Prefix:
    """A prefix of that length which holds the address."""
    bits = 32 if version == 4 else 128
    return Prefix(version, address >> (bits - length) << (bits - length), length)


some_prefixes = st.frozensets(
    st.one_of(
        st.builds(some_prefix, st.just(4), st.integers(0, 2**32 - 1), st.integers(0, 32)),
        st.builds(some_prefix, st.just(6), st.integers(0, 2**128 - 1), st.integers(0, 128)),
    ),
    max_size=8,
)
set_peers = st.builds(SetPeer, keys, some_prefixes, st.none() | keys, st.integers(0, 65535))
changes = st.lists(st.one_of(set_peers, st.builds(RemovePeer, keys)), min_size=1, max_size=20)


# Encoding


def by_pyroute2(index: int, wished: Sequence[SetPeer | RemovePeer]) -> bytes:
    """The same message as pyroute2 packs it, without its header."""
    peers: list[dict[str, list[Any]]] = []
    for change in wished:
        attrs: list[Any] = [["WGPEER_A_PUBLIC_KEY", change.public_key.encode()]]
        if isinstance(change, RemovePeer):
            attrs += [["WGPEER_A_FLAGS", 1]]
        else:
            preshared = change.preshared_key or text_key(bytes(32))
            attrs += [
                ["WGPEER_A_FLAGS", 2],
                ["WGPEER_A_PRESHARED_KEY", preshared.encode()],
                ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", change.keepalive],
            ]
            if change.allowed_ips:
                attrs += [["WGPEER_A_ALLOWEDIPS", [_allowed_ip(prefix) for prefix in sorted(change.allowed_ips)]]]
        peers.append({"attrs": attrs})
    message: Any = wgmsg()
    message["cmd"], message["version"] = 1, 1
    message["attrs"] = [["WGDEVICE_A_IFINDEX", index], ["WGDEVICE_A_PEERS", peers]]
    message.encode()
    return bytes(message.data[16:])


def _allowed_ip(prefix: Prefix) -> dict[str, list[Any]]:
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    return {
        "attrs": [
            ["WGALLOWEDIP_A_FAMILY", int(family)],
            ["WGALLOWEDIP_A_IPADDR", prefix.packed],
            ["WGALLOWEDIP_A_CIDR_MASK", prefix.length],
        ]
    }


@given(wished=changes, index=st.integers(1, 2**31 - 1))
def test_a_message_is_byte_for_byte_what_pyroute2_would_send(wished: list[SetPeer | RemovePeer], index: int) -> None:
    assert list(encode_changes(index, wished)) == [by_pyroute2(index, wished)]


@given(wished=changes, max_peers=st.integers(1, 7), max_bytes=st.integers(200, 1000))
def test_messages_stay_within_their_bounds_and_mean_the_same_however_they_are_cut(
    wished: list[SetPeer | RemovePeer], max_peers: int, max_bytes: int
) -> None:
    payloads = list(encode_changes(3, wished, max_peers=max_peers, max_bytes=max_bytes))
    assert all(len(payload) <= max_bytes for payload in payloads)
    assert all(0 < len(list(peers_in(payload))) <= max_peers for payload in payloads)
    device: dict[bytes, set[Prefix]] = {}
    expected: dict[bytes, set[Prefix]] = {}
    for payload in payloads:
        for peer in peers_in(payload):
            obey(device, peer)
    for change in wished:
        if isinstance(change, RemovePeer):
            expected.pop(decoded_key(change.public_key), None)
        else:
            expected[decoded_key(change.public_key)] = set(change.allowed_ips)
    assert device == expected


def test_no_message_holds_the_kernels_lock_for_more_than_64_peers() -> None:
    wished = [RemovePeer(key_number(number)) for number in range(1, 201)]
    assert [len(list(peers_in(payload))) for payload in encode_changes(3, wished)] == [64, 64, 64, 8]


def test_a_peer_that_fits_a_message_is_never_cut() -> None:
    wished = [SetPeer(some_key(), prefixes(*(f"10.0.{n}.{m}" for m in range(300)[:250]))) for n in range(20)]
    cut = [len(list(peers_in(payload))) for payload in encode_changes(3, wished)]
    assert sum(cut) == len(wished)


def test_a_peer_of_many_prefixes_goes_on_in_further_messages() -> None:
    wished = SetPeer(some_key(), frozenset(Prefix.host(4, number) for number in range(5000)), some_key(), 25)
    payloads = list(encode_changes(3, [wished]))
    device: dict[bytes, set[Prefix]] = {decoded_key(wished.public_key): {prefix("192.0.2.1")}}
    for payload in payloads:
        (peer,) = peers_in(payload)
        obey(device, peer)
    assert len(payloads) == 5
    assert device == {decoded_key(wished.public_key): set(wished.allowed_ips)}


def peers_in(payload: bytes) -> Iterator[dict[int, bytes]]:
    """Each peer of a SET message as its attributes. Checks that every nest says that it is one."""
    assert payload[:4] == b"\1\1\0\0"
    parts = {kind: payload[at:end] for kind, at, end in attributes(payload, 4, len(payload))}
    assert parts[1] == struct.pack("=I", 3)
    assert struct.unpack_from("=HH", payload, 12)[1] & NLA_F_NESTED
    yield from nested(parts[8])


def nested(value: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of each nest in a list of nests."""
    for _, at, end in attributes(value, 0, len(value)):
        assert struct.unpack_from("=HH", value, at - 4)[1] & NLA_F_NESTED
        yield {kind: value[start:stop] for kind, start, stop in attributes(value, at, end)}


def obey(device: dict[bytes, set[Prefix]], peer: dict[int, bytes]) -> None:
    """What the kernel does with one peer of a message (drivers/net/wireguard/netlink.c, set_peer), but for theft."""
    key, (flags,) = peer[1], struct.unpack("=I", peer[3])
    if flags & 1:
        device.pop(key, None)
        return
    if flags & 4 and key not in device:
        return
    if flags & 2:
        device[key] = set()
    for entry in nested(peer.get(9, b"")):
        device.setdefault(key, set()).add(Prefix.from_packed(entry[2], entry[3][0]))


# Reading dumps


@st.composite
def device_peers(draw: st.DrawFn) -> list[DevicePeer]:
    drawn = draw(st.lists(keys, unique=True, max_size=8))
    endpoint = st.none() | st.tuples(st.sampled_from(["192.0.2.1", "2001:db8::1", "fe80::1%4"]), st.integers(1, 65535))
    return [
        DevicePeer(
            key,
            draw(st.none() | keys),
            draw(st.integers(0, 65535)),
            draw(some_prefixes),
            draw(endpoint),
            float(draw(st.integers(0, 2**40))),
            draw(st.integers(0, 2**64 - 1)),
            draw(st.integers(0, 2**64 - 1)),
        )
        for key in drawn
    ]


def sockaddr(endpoint: tuple[str, int]) -> bytes:
    address, _, scope = endpoint[0].partition("%")
    port = struct.pack(">H", endpoint[1])
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return struct.pack("=H", socket.AF_INET6) + port + bytes(4) + packed + struct.pack("=I", int(scope or 0))
    return struct.pack("=H", socket.AF_INET) + port + socket.inet_aton(address) + bytes(8)


def allowed_ips(some: Sequence[Prefix]) -> bytes:
    return attribute(
        9 | NLA_F_NESTED,
        b"".join(
            attribute(
                NLA_F_NESTED,
                attribute(1, struct.pack("=H", socket.AF_INET if prefix.version == 4 else socket.AF_INET6))
                + attribute(2, prefix.packed)
                + attribute(3, bytes([prefix.length])),
            )
            for prefix in some
        ),
    )


def fragments(peer: DevicePeer, size: int) -> Iterator[bytes]:
    """The peer as the kernel dumps it (get_peer), ``size`` allowed IPs in the first part and in each further one."""
    seconds = int(peer.latest_handshake)
    rest = sorted(peer.allowed_ips)
    key = attribute(1, decoded_key(peer.public_key))
    yield attribute(
        NLA_F_NESTED,
        key
        + attribute(2, decoded_key(peer.preshared_key) if peer.preshared_key else bytes(32))
        + attribute(6, struct.pack("=qq", seconds, 0))
        + attribute(5, struct.pack("=H", peer.keepalive))
        + attribute(8, struct.pack("=Q", peer.tx_bytes))
        + attribute(7, struct.pack("=Q", peer.rx_bytes))
        + attribute(10, struct.pack("=I", 1))
        + (attribute(4, sockaddr(peer.endpoint)) if peer.endpoint else b"")
        + (allowed_ips(rest[:size]) if rest else b""),
    )
    for start in range(size, len(rest), size):
        yield attribute(NLA_F_NESTED, key + allowed_ips(rest[start : start + size]))


def dump(peers: Sequence[DevicePeer], size: int, flags: Sequence[int] = (), code: int = 0) -> list[bytes]:
    """A whole dump: a message per fragment, one without peers in between, NLMSG_DONE at the end."""
    device = attribute(1, struct.pack("=I", 3)) + attribute(2, b"wg0\0") + attribute(6, struct.pack("=H", 51820))
    parts = [device, b""]
    for peer in peers:
        parts += [attribute(8 | NLA_F_NESTED, fragment) for fragment in fragments(peer, size)]
    frames = [
        frame(FAMILY, 2 | (flags[n] if n < len(flags) else 0), SEQUENCE, b"\0\1\0\0" + part)
        for n, part in enumerate(parts)
    ]
    return [*frames, frame(NLMSG_DONE, 2, SEQUENCE, struct.pack("=i", code))]


def read(datagrams: Sequence[bytes]) -> tuple[list[Payload], DumpReader]:
    reader = DumpReader(FAMILY, SEQUENCE)
    return [payload for datagram in datagrams for payload in reader.payloads(datagram)], reader


def joined(datagrams: Sequence[bytes], cuts: Sequence[int]) -> list[bytes]:
    """The same messages, several in a datagram."""
    edges = sorted({0, len(datagrams), *(cut % len(datagrams) for cut in cuts)})
    return [b"".join(datagrams[a:b]) for a, b in itertools.pairwise(edges)]


@given(peers=device_peers(), size=st.integers(1, 9), cuts=st.lists(st.integers(0, 50)))
def test_peers_read_back_whole_however_the_dump_is_cut(peers: list[DevicePeer], size: int, cuts: list[int]) -> None:
    payloads, reader = read(joined(dump(peers, size), cuts))
    assert read_peers(payloads) == {peer.public_key: peer for peer in peers}
    assert reader.done
    assert not reader.interrupted


@given(peers=device_peers(), size=st.integers(1, 9))
def test_counters_come_once_a_peer_however_it_is_cut(peers: list[DevicePeer], size: int) -> None:
    payloads, _ = read(dump(peers, size))
    assert [counters for payload in payloads for counters in read_counters(payload)] == [
        PeerCounters(peer.public_key, peer.latest_handshake, peer.rx_bytes, peer.tx_bytes, peer.endpoint)
        for peer in peers
    ]


def test_the_devices_own_attributes_come_with_the_first_message() -> None:
    payloads, _ = read(dump([], 1))
    assert read_device(payloads[0]) == DeviceState(3, None, None, 51820)
    with pytest.raises(Malformed):
        read_device(payloads[1])


def test_a_private_key_is_not_in_the_repr_of_what_was_read() -> None:
    assert "secret" not in repr(DeviceState(3, b"secret", None, 51820))


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_an_interruption_flagged_on_any_message_is_seen(position: int) -> None:
    peers = [DevicePeer(some_key(), None, 0, frozenset()) for _ in range(2)]
    datagrams = dump(peers, 1, flags=[0] * position + [NLM_F_DUMP_INTR])
    assert read(datagrams)[1].interrupted


def test_an_interruption_flagged_on_the_end_alone_is_seen() -> None:
    *rest, _ = dump([], 1)
    assert read([*rest, frame(NLMSG_DONE, NLM_F_DUMP_INTR, SEQUENCE, bytes(4))])[1].interrupted


def test_a_dump_that_was_cut_short_is_not_done() -> None:
    datagrams = dump([DevicePeer(some_key(), None, 0, frozenset())], 1)
    assert not read(datagrams[:-1])[1].done


def test_a_dump_that_failed_midway_says_so_at_its_end() -> None:
    with pytest.raises(KernelRefused, match="No such device"):
        read(dump([DevicePeer(some_key(), None, 0, frozenset())], 1, code=-19))


def test_answers_to_other_questions_are_passed_over() -> None:
    peer = DevicePeer(some_key(), None, 0, frozenset())
    stranger = replace(peer, public_key=some_key())
    late = [bytes(message[:8]) + struct.pack("=I", SEQUENCE - 1) + message[12:] for message in dump([stranger], 1)]
    payloads, reader = read([*late, *dump([peer], 1)])
    assert read_peers(payloads) == {peer.public_key: peer}
    assert reader.done


def test_a_dump_that_was_interrupted_is_read_again_but_not_forever() -> None:
    tries = itertools.count(1)

    def third_time_lucky() -> str:
        if next(tries) < 3:
            raise Interrupted
        return "whole"

    def never() -> str:
        raise Interrupted

    assert uninterrupted(third_time_lucky) == "whole"
    with pytest.raises(Interrupted):
        uninterrupted(never)


# Errors


def test_an_acknowledgement_is_no_error() -> None:
    datagram = frame(NLMSG_ERROR, 0, 1, struct.pack("=i", 0) + bytes(16))
    ((_, flags, _, at, end),) = messages(datagram)
    assert refusal(datagram, flags, at, end) is None


@pytest.mark.parametrize("capped", [True, False], ids=["capped", "with the request quoted"])
def test_an_error_brings_the_kernels_own_sentence(capped: bool) -> None:  # noqa: FBT001 - a parameter of the test
    request = frame(FAMILY, 5, 1, b"quoted, or not!!")
    body = struct.pack("=i", -22) + (request[:16] if capped else request) + attribute(1, b"wrong in this way\0")
    datagram = frame(NLMSG_ERROR, NLM_F_ACK_TLVS | (NLM_F_CAPPED if capped else 0), 1, body)
    ((_, flags, _, at, end),) = messages(datagram)
    error = refusal(datagram, flags, at, end)
    assert error is not None
    assert (error.errno, error.strerror) == (22, "Invalid argument (wrong in this way)")


# Hostile bytes


def read_everything(datagram: bytes) -> None:
    """Every reader on the same bytes; what they may raise is what their docstrings say."""
    reader = DumpReader(FAMILY, SEQUENCE)
    for payload in reader.payloads(datagram):
        with suppress(Malformed):
            read_counters(payload)
        with suppress(Malformed):
            read_device(payload)
        with suppress(Malformed):
            read_peers([payload])


@given(garbage=st.binary(max_size=400))
def test_garbage_is_never_more_than_a_typed_error(garbage: bytes) -> None:
    for datagram in (garbage, frame(FAMILY, 2, SEQUENCE, garbage), frame(NLMSG_ERROR, 0x300, SEQUENCE, garbage)):
        with suppress(Malformed, KernelRefused):
            read_everything(datagram)


@given(peers=device_peers(), data=st.data())
def test_a_dump_with_bytes_changed_or_cut_off_is_never_more_than_a_typed_error(
    peers: list[DevicePeer], data: st.DataObject
) -> None:
    datagram = bytearray(b"".join(dump(peers, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Malformed, KernelRefused):
        read_everything(bytes(datagram[: data.draw(st.integers(0, len(datagram)))]))


def test_a_whole_dump_cut_off_anywhere_is_malformed_or_not_done() -> None:
    datagram = b"".join(dump([DevicePeer(key_number(5), None, 25, prefixes("10.8.0.2", "fd08::2"))], 1))
    for size in range(len(datagram)):
        with suppress(Malformed):
            assert not read([datagram[:size]])[1].done
