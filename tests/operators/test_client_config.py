"""A client's configuration: what wg-quick takes, nothing that runs by itself, readable by its owner only."""

from __future__ import annotations

import configparser
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number

from peerlane.config.hosts import parse_endpoint
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.errors import PeerlaneError, StorageError
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.wgfile.client_config import (
    FileExists,
    NotWritten,
    client_config,
    refuse_if_there,
    write_private,
)
from peerlane.tasks.wire.model import PeerResult

PRIVATE, PUBLIC, GATEWAY, PRESHARED = (key_number(number) for number in (1, 2, 3, 4))


def info(**facts: str) -> GatewayInfo:
    """A gateway as clients see it; ``facts`` are what its hash says."""
    fields = {
        "public_key": GATEWAY,
        "endpoint": "vpn.example.com:51820",
        "client_allowed_ips": '["10.8.0.0/16", "fd00:8::/64"]',
        "dns": '["10.8.0.1", "corp.example"]',
        "mtu": "1380",
    }
    return GatewayInfo.from_state(LaneState("iad", {**fields, **facts}, 0, 0, 0))


def result(**changes: Any) -> PeerResult:
    plain = PeerResult(
        outcome="created",
        gateway="iad",
        public_key=PUBLIC,
        allowed_ips=("10.8.0.7/32", "192.168.7.0/24", "fd00:8::7/128"),
        keepalive=25,
        gateway_public_key=GATEWAY,
        endpoint="vpn.example.com:51820",
    )
    return plain.model_copy(update=changes)


def test_it_holds_all_that_a_client_needs() -> None:
    text = client_config(result(), info(), private_key=PRIVATE, preshared_key=PRESHARED).render()
    assert text == (
        "[Interface]\n"
        f"PrivateKey = {PRIVATE}\n"
        "Address = 10.8.0.7/32, fd00:8::7/128\n"
        "DNS = 10.8.0.1, corp.example\n"
        "MTU = 1380\n"
        "\n"
        "[Peer]\n"
        f"PublicKey = {GATEWAY}\n"
        f"PresharedKey = {PRESHARED}\n"
        "Endpoint = vpn.example.com:51820\n"
        "AllowedIPs = 10.8.0.0/16, fd00:8::/64\n"
        "PersistentKeepalive = 25\n"
    )


def test_what_was_not_asked_for_is_left_out() -> None:
    bare = client_config(result(keepalive=0), info(dns="[]", mtu="0"), private_key=PRIVATE).render()
    parsed = configparser.ConfigParser()
    parsed.read_string(bare)
    assert set(parsed["Interface"]) == {"privatekey", "address"}
    assert set(parsed["Peer"]) == {"publickey", "endpoint", "allowedips"}


def test_without_a_private_key_a_comment_says_whose_it_is() -> None:
    text = client_config(result(), info()).render()
    assert f"# PrivateKey = the private key of {PUBLIC}\n" in text
    assert "\nPrivateKey" not in text


def test_secrets_do_not_show_in_a_repr() -> None:
    shown = repr(client_config(result(), info(), private_key=PRIVATE, preshared_key=PRESHARED))
    assert PRIVATE not in shown
    assert PRESHARED not in shown


HOSTILE = [
    ("endpoint", "vpn.example.com:51820\nPostUp = rm -rf /"),
    ("endpoint", "vpn.example.com"),
    ("endpoint", "$(reboot):51820"),
    ("public_key", f"{GATEWAY}\nPostUp = true"),
    ("dns", '["1.1.1.1\\nPostUp = true"]'),
    ("dns", '["1.1.1.1; true"]'),
    ("client_allowed_ips", '["0.0.0.0/0\\nPostUp = true"]'),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_what_a_gateway_tells_is_refused_where_it_is_not_what_it_claims(name: str, value: str) -> None:
    unsaid = result(gateway_public_key=None, endpoint=None)
    with pytest.raises(StorageError, match=name.replace("_", ".")) as refused:
        client_config(unsaid, info(**{name: value}), private_key=PRIVATE)
    assert PRIVATE not in str(refused.value)


@given(text=st.text(max_size=60), name=st.sampled_from(["endpoint", "public_key"]))
def test_no_text_brings_a_line_of_its_own(text: str, name: str) -> None:
    unsaid = result(gateway_public_key=None, endpoint=None)
    plain = client_config(unsaid, info(), private_key=PRIVATE).render().count("\n")
    gateway = replace(info(), **{name: text})
    try:
        rendered = client_config(unsaid, gateway, private_key=PRIVATE).render()
    except PeerlaneError:
        return
    assert len(rendered.splitlines()) == plain


@pytest.mark.parametrize("text", ["fe80::1%\nPostUp = true", "fe80::1%eth0 \tx", "fe80::1%", "fe80::1%a%b"])
def test_the_zone_of_an_address_brings_no_line_either(text: str) -> None:
    for gateway in (replace(info(), dns=(text,)), replace(info(), endpoint=f"[{text}]:51820")):
        with pytest.raises(PeerlaneError, match="does not parse"):
            client_config(result(gateway_public_key=None, endpoint=None), gateway, private_key=PRIVATE)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("vpn.example.com:51820", "vpn.example.com:51820"),
        ("192.0.2.1:1", "192.0.2.1:1"),
        ("[2001:db8::1]:51820", "[2001:db8::1]:51820"),
        ("2001:db8::1:51820", "[2001:db8::1]:51820"),  # five digits can be no part of an address
        ("build_host:65535", "build_host:65535"),
    ],
)
def test_an_endpoint_is_read_as_wireguard_reads_it(text: str, endpoint: str) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", "host:0", "host:65536", "host:²", ":51820", "[::1", "[::1]", "[host]:1", "a b:1", "-:1"],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_endpoint(text)


def test_an_endpoint_that_may_be_an_address_alone_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match=r"\[2001:db8::5\]:1 or \[2001:db8::5:1\]:PORT"):
        parse_endpoint("2001:db8::5:1")


def test_a_written_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "laptop.conf"
    write_private(path, "secret\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "secret\n"


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "laptop.conf"
    path.write_text("mine")
    with pytest.raises(FileExists, match="--force"):
        write_private(path, "secret")
    with pytest.raises(FileExists, match="--force"):
        refuse_if_there(path)
    assert path.read_text() == "mine"


def test_a_file_is_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "laptop.conf"
    path.write_text("open to all")
    path.chmod(0o644)
    write_private(path, "secret", replace=True)
    assert path.read_text() == "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["laptop.conf"]


@pytest.mark.parametrize("how", [False, True])
def test_a_link_leads_nowhere(how: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    target, path = tmp_path / "target", tmp_path / "laptop.conf"
    target.write_text("theirs")
    path.symlink_to(target)
    if how:
        write_private(path, "secret", replace=True)
        assert not path.is_symlink()
    else:
        with pytest.raises(FileExists):
            write_private(path, "secret")
    assert target.read_text() == "theirs"


def test_where_nothing_can_be_written_the_sentence_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotWritten, match="no directory"):
        refuse_if_there(tmp_path / "nowhere" / "laptop.conf")
    with pytest.raises(NotWritten, match="No such file"):
        write_private(tmp_path / "nowhere" / "laptop.conf", "secret")
    with pytest.raises(NotWritten, match="too long"):
        refuse_if_there(tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["pipe", ".", "/"])
def test_only_a_file_or_a_link_is_ever_replaced(name: str, tmp_path: Path) -> None:
    """As root, --output /dev/null --force must not take the device's place."""
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name if name == "pipe" else Path(name)
    with pytest.raises(NotWritten, match="no regular file"):
        write_private(path, "secret", replace=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
