"""Routes as the kernel dumps them: only unicast ones of the main table to our device count."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from devices import prefix
from hypothesis import given
from hypothesis import strategies as st

from peerlane.workers.dataplane.netlink.framing import Malformed, attribute
from peerlane.workers.dataplane.netlink.routes import PER_PEER, Route, encode_route, read_route

DEVICE = 4


def read(message: bytes) -> Route | None:
    return read_route((message, 0, len(message)), DEVICE)


@pytest.mark.parametrize("text", ["192.0.2.0/24", "192.0.2.7", "0.0.0.0/0", "2001:db8::/48", "2001:db8::1", "::/0"])
def test_what_is_sent_reads_back(text: str) -> None:
    route = Route(prefix(text), PER_PEER)
    assert read(encode_route(DEVICE, route)) == route


def test_a_default_route_has_no_destination() -> None:
    message = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + attribute(4, struct.pack("=I", DEVICE))
    assert read(message) == Route(prefix("0.0.0.0/0"), 3)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(0, 7, id="neither IPv4 nor IPv6"),
        pytest.param(4, 255, id="table local"),
        pytest.param(7, 2, id="type local"),
    ],
)
def test_a_route_of_another_kind_is_none(at: int, value: int) -> None:
    message = bytearray(encode_route(DEVICE, Route(prefix("192.0.2.0/24"), PER_PEER)))
    message[at] = value
    assert read(bytes(message)) is None


def test_a_route_to_another_device_or_of_a_far_table_is_none() -> None:
    route = Route(prefix("192.0.2.0/24"), PER_PEER)
    assert read(encode_route(DEVICE + 1, route)) is None
    # Numbers of tables beyond 255 stand in an attribute.
    assert read(encode_route(DEVICE, route) + attribute(15, struct.pack("=I", 51820))) is None


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(struct.pack("=BBBBBBBBI", 2, 33, 0, 0, 254, 3, 0, 1, 0), id="33 bits of IPv4"),
        pytest.param(struct.pack("=BBBBBBBBI", 2, 8, 0, 0, 254, 3, 0, 1, 0) + attribute(1, bytes(16)), id="mixed"),
        pytest.param(struct.pack("=BBBBBBBBI", 2, 8, 0, 0, 254, 3, 0, 1, 0) + attribute(4, b"4"), id="short device"),
    ],
)
def test_a_malformed_route_is_refused(message: bytes) -> None:
    with pytest.raises(Malformed):
        read(message)


@given(garbage=st.binary(max_size=80))
def test_garbage_is_never_more_than_a_typed_error(garbage: bytes) -> None:
    for message in (garbage, struct.pack("=BBBBBBBBI", 10, 64, 0, 0, 254, 157, 0, 1, 0) + garbage):
        with suppress(Malformed):
            read(message)
