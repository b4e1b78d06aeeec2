"""WireGuard files and their peers for tests."""

from __future__ import annotations

import string

from hypothesis import strategies as st
from keys import key_number

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wgfile.export import rendered_peer
from peerlane.tasks.wire.model import MAX_TTL
from peerlane.tasks.wire.stored_peer import Peer

_VALUES = st.text(st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Zs"]), max_size=256).filter(
    str.isprintable
)
_NAMES = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8) | st.sampled_from(
    ["name", "friendly_name", "a.b/c-d", "client", "peerlane.ttl"]
)
_TIMES = st.integers(1, 10**15 - 1)


@st.composite
def peer_lists(draw: st.DrawFn) -> list[Peer]:
    """Peers that one gateway can hold."""
    peers: list[Peer] = []
    for number in range(draw(st.integers(0, 8))):
        pinned = draw(st.booleans())
        prefixes = [
            Prefix.host(4, (10 << 24) + number),
            Prefix(4, (192 << 24) + (168 << 16) + (number << 8), 24),
            Prefix(6, (0xFD << 120) + (number << 64), 64),
        ]
        peers.append(
            Peer(
                public_key=key_number(number + 1),
                allowed_ips=tuple(draw(st.sets(st.sampled_from(prefixes), min_size=1))),
                preshared_key=draw(st.none() | st.integers(1, 1 << 200).map(key_number)),
                keepalive=draw(st.integers(0, 65535)),
                ttl=None if pinned else draw(st.none() | st.integers(1, MAX_TTL)),
                expires_at=None if pinned else draw(st.none() | _TIMES),
                labels=draw(st.dictionaries(_NAMES, _VALUES, max_size=4)),
                pinned=pinned,
                created_at=draw(st.just(0) | _TIMES),
            )
        )
    return peers


def rendered(peers: list[Peer], head: str = "") -> bytes:
    """A file of these peers."""
    return "\n".join([head, *(line for peer in peers for line in ("", *rendered_peer(peer)))]).encode()
