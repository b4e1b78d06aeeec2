"""Tables on terminals of any width: what is shown is whole, and what has no room is named."""

from __future__ import annotations

from typing import Any

import pytest
from keys import key_number
from rich.console import Console, RenderableType

from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.cli.tables import facts, gateway_table, peer_facts, peer_table
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wire.stored_peer import Peer

LONG_NAME = "frankfurt-am-main-a-long-name-of-a-gateway"
LONG_LABEL = "a-label-of-a-rather-long-name=and-a-value-that-is-longer-than-most-of-them-are"
WIDTHS = [36, 60, 72, 80, 100, 120, 200]


def drawn(renderable: RenderableType, width: int) -> list[str]:
    console = Console(width=width, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get().splitlines()


def unfolded(lines: list[str], column: int, end: int | None = None) -> str:
    """The text of a column, its folded lines put together."""
    return "".join(line[column:end].strip() for line in lines)


def peer(**fields: Any) -> Peer:
    return Peer.model_validate(
        {"public_key": key_number(1), "allowed_ips": ("10.8.200.0/24", "fd00:8::1:0/112"), **fields}
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_peer_is_shown_whole_and_columns_without_room_are_named(width: int) -> None:
    name, _, value = LONG_LABEL.partition("=")
    table, left_out = peer_table([(peer(labels={name: value}), None), (peer(), None)], width)
    lines = drawn(table, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    head, *rows = lines
    shown = [
        title
        for title in ("public key", "allowed IPs", "expires", "seen", "received", "sent", "labels")
        if title in head
    ]
    assert {*shown, *left_out} == {"public key", "allowed IPs", "expires", "seen", "received", "sent", "labels"}
    assert set(shown) & set(left_out) == set()
    addresses = head.index("allowed IPs")
    assert key_number(1) in unfolded(rows, 0, addresses)
    text = "".join(rows).replace(" ", "")
    assert "fd00:8::1:0/112" in text
    assert "never" in text or "seen" in left_out
    if "labels" in shown:
        assert LONG_LABEL in unfolded(rows, head.index("labels"))


def test_eighty_columns_have_room_for_expiry_and_sight() -> None:
    _, left_out = peer_table([(peer(), None)], 80)
    assert left_out == ["labels", "received", "sent"]


@pytest.mark.parametrize("width", [40, *WIDTHS[1:]])
def test_a_gateways_name_and_endpoint_are_folded_and_never_cut(width: int) -> None:
    endpoint = "gateway-with-a-long-name.frankfurt.example.com:51820"
    facts = {b"endpoint": endpoint.encode(), b"region": b"eu-central-1", b"dataplane": b"kernel", b"peers": b"1200"}
    info = GatewayInfo.from_state(LaneState.of(LONG_NAME, facts, 7, 0, now=1))
    head, *rows = drawn(gateway_table([info], width), width)
    assert unfolded(rows, 0, head.index("state")) == LONG_NAME
    assert unfolded(rows, head.index("endpoint")) == endpoint
    assert "1,200" in rows[0]
    assert max(map(len, [head, *rows])) <= width


def test_a_key_stays_on_one_line_of_sixty_columns() -> None:
    shown = facts({"clients route": "10.8.0.0/16", **peer_facts(peer(preshared_key=key_number(2)))})
    assert any(line.endswith(key_number(1)) for line in drawn(shown, 60))
