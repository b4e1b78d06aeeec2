"""A real device: what only a kernel can show, with ``wg``, ``ip`` and ``ping`` as witnesses."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from devices import Rig, delete, kernel_rig, prefix, prefixes, run, wg_dump
from keys import key_number, some_key

from peerlane.tasks.errors import KernelError, SettingsError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import StoredPeer, text_key
from peerlane.workers.dataplane import AddRoute, DevicePeer, RemovePeer, RemoveRoute, SetPeer, keyfile
from peerlane.workers.dataplane.kernel import KernelDataPlane, kernel_available
from peerlane.workers.dataplane.netlink.channel import NETLINK_GENERIC, NETLINK_ROUTE, Channel
from peerlane.workers.dataplane.netlink.framing import (
    GENL_ID_CTRL,
    NLM_F_REQUEST,
    NLMSG_NOOP,
    Interrupted,
    family_id,
    family_request,
    frame,
)
from peerlane.workers.dataplane.netlink.routes import PER_PEER, RTM_DELROUTE, Route, encode_route
from peerlane.workers.dataplane.netlink.wireguard_encode import encode_get
from peerlane.workers.peers.table import Loaded, Policy
from peerlane.workers.start.recovery import recover

pytestmark = pytest.mark.kernel

ALICE, BOB = some_key(), some_key()


@pytest.fixture
def rig(tmp_path: Path) -> Generator[Rig]:
    with kernel_rig(tmp_path) as rig:
        rig.plane.open(rig.spec)
        yield rig


def ip_routes(rig: Rig, version: int = 4) -> list[str]:
    """``ip route`` to the device, without its name and trailing spaces."""
    return [line.strip() for line in run("ip", f"-{version}", "route", "show", "dev", rig.spec.interface).splitlines()]


def in_the_words_of_wg(peers: Mapping[str, DevicePeer]) -> dict[str, list[object]]:
    """Peers as ``wg_dump`` has them, allowed IPs as a set."""
    return {
        key: [
            peer.preshared_key or "(none)",
            f"{peer.endpoint[0]}:{peer.endpoint[1]}" if peer.endpoint else "(none)",
            peer.allowed_ips,
            str(int(peer.latest_handshake)),
            str(peer.rx_bytes),
            str(peer.tx_bytes),
            str(peer.keepalive) if peer.keepalive else "off",
        ]
        for key, peer in peers.items()
    }


def as_wg_shows_them(rig: Rig) -> dict[str, list[object]]:
    rows = wg_dump(rig.spec.interface)
    return {
        key: [*row[:2], prefixes(*row[2].split(",")) if row[2] != "(none)" else frozenset(), *row[3:]]
        for key, row in rows.items()
    }


# Reading back


def test_peers_are_as_wg_shows_them(rig: Rig) -> None:
    rig.plane.apply(
        [
            SetPeer(some_key(), prefixes("10.8.0.2"), some_key(), 25),
            SetPeer(some_key(), prefixes("fd08::2", "10.8.0.3", "10.8.16.0/20", "2001:db8::/32")),
            SetPeer(some_key(), frozenset(), keepalive=65535),
        ]
    )
    assert in_the_words_of_wg(rig.plane.peers()) == as_wg_shows_them(rig)


def test_twenty_thousand_peers_and_one_cut_over_messages_are_as_wg_shows_them(rig: Rig) -> None:
    many = frozenset(Prefix.host(4, (10 << 24 | 200 << 16) + number) for number in range(2000))
    crowd = [
        SetPeer(key_number(number), prefixes(f"10.{8 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"))
        for number in range(2, 20_002)
    ]
    wide = SetPeer(some_key(), many, some_key())
    rig.plane.apply([*crowd[:10_000], wide, *crowd[10_000:]])
    peers = rig.plane.peers()
    assert len(peers) == 20_001
    assert peers[wide.public_key] == DevicePeer(wide.public_key, wide.preshared_key, 0, many)
    assert in_the_words_of_wg(peers) == as_wg_shows_them(rig)
    counted = [counters.public_key for batch in rig.counters.counters() for counters in batch]
    assert sorted(counted) == sorted(peers)


def test_an_allowed_ip_of_a_wide_peer_can_be_taken_away_again(rig: Rig) -> None:
    key = some_key()
    wide = [Prefix.host(4, (10 << 24) + number) for number in range(2500)]
    rig.plane.apply([SetPeer(key, frozenset(wide))])
    rig.plane.apply([SetPeer(key, frozenset(wide[1:]))])
    assert rig.plane.peers()[key].allowed_ips == frozenset(wide[1:])


def test_a_change_in_the_middle_of_a_dump_is_noticed(rig: Rig) -> None:
    rig.plane.apply([SetPeer(key_number(number), frozenset()) for number in range(2, 1002)])
    with Channel(NETLINK_GENERIC) as channel:
        family = family_id(channel.ask(GENL_ID_CTRL, family_request("wireguard")))
        dump = channel.dump(family, family, encode_get(rig.spec.interface))
        next(dump)
        rig.plane.apply([RemovePeer(key_number(1001))])
        with pytest.raises(Interrupted):
            list(dump)
    assert len(rig.plane.peers()) == 999


def test_counters_read_during_a_change_are_known_to_be_incomplete(rig: Rig) -> None:
    rig.plane.apply([SetPeer(key_number(number), frozenset()) for number in range(2, 1002)])
    batches = rig.counters.counters()
    next(batches)
    rig.plane.apply([RemovePeer(key_number(1001))])
    assert sum(map(len, batches)) > 0
    assert not rig.counters.complete
    assert sum(map(len, rig.counters.counters())) == 999
    assert rig.counters.complete


def test_a_dump_given_up_early_does_not_spoil_the_next(rig: Rig) -> None:
    rig.plane.apply([SetPeer(key_number(number), frozenset()) for number in range(2, 1002)])
    batches = rig.counters.counters()
    next(batches)
    del batches
    assert sum(map(len, rig.counters.counters())) == 1000


# Sessions


@contextmanager
def far_side(rig: Rig, tmp_path: Path) -> Generator[str]:
    """Another device that is a peer of ours and has spoken with it; yields its public key and removes it after.

    It lives in a namespace of its own, but its socket stays in ours: there it was made.
    """
    name = f"wgf{os.urandom(4).hex()}"
    own = keyfile.public_key(keyfile.load_or_make(rig.spec.private_key_file))
    port = rig.plane.open(rig.spec).listen_port
    key = tmp_path / "far.key"
    public = keyfile.public_key(keyfile.load_or_make(key))
    rig.plane.apply([SetPeer(public, prefixes("10.8.0.2"))])
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "wireguard")
        run("wg", "set", name, "private-key", str(key), "peer", own, "allowed-ips", "10.8.0.0/16", "endpoint",
            f"127.0.0.1:{port}")  # fmt: skip
        run("ip", "link", "set", name, "netns", name)
        run("ip", "-n", name, "address", "add", "10.8.0.2/16", "dev", name)
        run("ip", "-n", name, "link", "set", name, "up")
        ping(name)
        yield public
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        delete(name)


def ping(namespace: str) -> None:
    """One packet to the gateway's address and back."""
    run("ip", "netns", "exec", namespace, "ping", "-c", "1", "-W", "10", "10.8.0.1")


@pytest.fixture
def far(rig: Rig, tmp_path: Path) -> Generator[str]:
    with far_side(rig, tmp_path) as public:
        yield public


def namespace() -> str:
    """The far side's."""
    (name,) = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.startswith("wgf")]
    return name


def test_a_peer_that_has_spoken_is_as_wg_shows_it(rig: Rig, far: str) -> None:
    peer = rig.plane.peers()[far]
    assert peer.endpoint is not None
    assert peer.endpoint[0] == "127.0.0.1"
    assert min(peer.latest_handshake, peer.rx_bytes, peer.tx_bytes) > 0
    assert in_the_words_of_wg({far: peer}) == as_wg_shows_them(rig)
    ((counted,),) = rig.counters.counters()
    assert counted == (far, peer.latest_handshake, peer.rx_bytes, peer.tx_bytes, peer.endpoint)


def test_a_device_that_is_taken_over_is_not_moved_to_another_port(rig: Rig, tmp_path: Path) -> None:
    port = rig.plane.open(rig.spec).listen_port
    adopting = replace(rig.spec, private_key_file=tmp_path / "new.key", listen_port=port ^ 1)
    with pytest.raises(SettingsError, match=f"listens on port {port}"):
        rig.plane.open(adopting)
    assert not adopting.private_key_file.exists()
    assert rig.plane.open(replace(adopting, listen_port=port)).listen_port == port


def test_a_key_that_somebody_changed_under_the_gateway_is_changed_back(rig: Rig, tmp_path: Path) -> None:
    facts, other = rig.plane.open(rig.spec), tmp_path / "other.key"
    keyfile.load_or_make(other)
    run("wg", "set", rig.spec.interface, "private-key", str(other))
    assert rig.plane.open(rig.spec) == facts
    assert run("wg", "show", rig.spec.interface, "public-key").strip() == facts.public_key


@contextmanager
def session_goes_on(rig: Rig, public_key: str) -> Generator[None]:
    """Check that a peer's session outlives what is done within: the same handshake, and bytes still arrive."""
    before = rig.plane.peers()[public_key]
    yield
    ping(namespace())
    after = rig.plane.peers()[public_key]
    assert after.latest_handshake == before.latest_handshake
    assert after.rx_bytes > before.rx_bytes


def test_opening_again_lets_sessions_live_on_even_if_the_key_file_is_not_clamped(rig: Rig, tmp_path: Path) -> None:
    rig.spec.private_key_file.write_text(text_key(b"\xff" + os.urandom(30) + b"\xff"))
    run("wg", "set", rig.spec.interface, "private-key", str(rig.spec.private_key_file))
    rig.plane.open(rig.spec)
    with far_side(rig, tmp_path) as public, session_goes_on(rig, public):
        rig.plane.open(rig.spec)


def test_opening_again_lets_sessions_live_on(rig: Rig, far: str) -> None:
    with session_goes_on(rig, far):
        rig.plane.open(rig.spec)
        with closing(KernelDataPlane()) as another:
            another.open(rig.spec)


def test_setting_a_peer_again_leaves_its_session_endpoint_and_counters_alone(rig: Rig, far: str) -> None:
    before = rig.plane.peers()[far]
    rig.plane.apply([SetPeer(far, prefixes("10.8.0.2", "10.8.0.3"))])
    assert rig.plane.peers()[far] == replace(before, allowed_ips=prefixes("10.8.0.2", "10.8.0.3"))
    ping(namespace())
    assert rig.plane.peers()[far].latest_handshake == before.latest_handshake


def test_counters_begin_again_when_a_peer_is_removed_and_set(rig: Rig, far: str) -> None:
    rig.plane.apply([RemovePeer(far), SetPeer(far, prefixes("10.8.0.2"))])
    assert rig.plane.peers()[far] == DevicePeer(far, None, 0, prefixes("10.8.0.2"))


# Opening


def test_this_kernel_is_available() -> None:
    assert kernel_available() is None


def test_what_open_makes_is_as_ip_shows_it(rig: Rig) -> None:
    facts = rig.plane.open(replace(rig.spec, mtu=1380))
    link = run("ip", "address", "show", "dev", rig.spec.interface)
    assert "mtu 1380" in link
    assert "inet 10.8.0.1/16" in link
    assert "inet6 fd08::1/64" in link
    assert "UP" in link.splitlines()[0]
    assert "10.9.0.0/16 proto 156 scope link" in ip_routes(rig)
    private, public = (run("wg", "show", rig.spec.interface, kind).strip() for kind in ("private-key", "public-key"))
    assert private == rig.spec.private_key_file.read_text().strip()
    assert public == facts.public_key


def test_addresses_and_covering_routes_of_an_earlier_spec_go_and_others_stay(rig: Rig) -> None:
    interface = rig.spec.interface
    run("ip", "address", "add", "192.0.2.1/24", "dev", interface)
    run("ip", "route", "add", "198.51.100.0/24", "dev", interface)
    pool = prefix("10.8.0.0/16")
    # The new address lies in the old one's network: the kernel would take it away together with the old one.
    rig.plane.open(replace(rig.spec, addresses=((pool.network + 2, pool),), routes=(pool, prefix("10.10.0.0/16"))))
    addresses = run("ip", "-o", "address", "show", "dev", interface)
    assert sorted(line.split()[3] for line in addresses.splitlines()) == ["10.8.0.2/16", "192.0.2.1/24"]
    assert sorted(line.split()[0] for line in ip_routes(rig)) == [
        "10.10.0.0/16",
        "10.8.0.0/16",
        "192.0.2.0/24",
        "198.51.100.0/24",
    ]


def test_an_interface_that_is_not_wireguards_is_refused_and_left_alone(rig: Rig) -> None:
    name = f"wgd{os.urandom(4).hex()}"
    run("ip", "link", "add", name, "type", "dummy")
    try:
        with closing(KernelDataPlane()) as plane, pytest.raises(KernelError, match="not WireGuard"):
            plane.open(replace(rig.spec, interface=name))
        assert "DOWN" in run("ip", "link", "show", name)
    finally:
        delete(name)


def test_a_port_that_is_taken_is_refused_with_a_sentence(rig: Rig) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 0))  # noqa: S104 - WireGuard too listens on every address
        with pytest.raises(KernelError, match="port is taken"):
            rig.plane.open(replace(rig.spec, listen_port=other.getsockname()[1]))


def test_threads_per_peer_are_turned_off(rig: Rig) -> None:
    rig.plane.apply([SetPeer(some_key(), frozenset())])
    switch = Path("/sys/class/net", rig.spec.interface, "threaded")
    switch.write_text("1")
    rig.plane.open(rig.spec)
    assert switch.read_text().strip() == "0"


def test_threads_per_peer_are_turned_off_with_the_first_peer_where_that_is_not_possible_before(rig: Rig) -> None:
    rig.plane.apply([SetPeer(ALICE, frozenset())])
    switch = Path("/sys/class/net", rig.spec.interface, "threaded")
    switch.write_text("1")
    rig.plane.apply([RemovePeer(ALICE)])
    rig.plane.open(rig.spec)
    assert switch.read_text().strip() == "1"
    rig.plane.apply([SetPeer(ALICE, frozenset())])
    assert switch.read_text().strip() == "0"


# Routes


def test_per_peer_routes_carry_a_number_of_their_own(rig: Rig) -> None:
    rig.plane.apply([AddRoute(prefix("192.0.2.0/24")), AddRoute(prefix("2001:db8::/48"))])
    assert "192.0.2.0/24 proto 157 scope link" in ip_routes(rig)
    assert any(line.startswith("2001:db8::/48 proto 157") for line in ip_routes(rig, 6))
    rig.plane.apply([RemoveRoute(prefix("192.0.2.0/24")), RemoveRoute(prefix("2001:db8::/48"))])
    assert not any("proto 157" in line for line in ip_routes(rig) + ip_routes(rig, 6))


@pytest.mark.parametrize("text", ["192.0.2.0/24", "2001:db8::/48"])
def test_a_start_does_without_a_route_that_leads_elsewhere(
    rig: Rig, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    run("ip", "route", "add", text, "dev", "lo")
    try:
        loaded = Loaded()
        for key, allowed in ((ALICE, text), (BOB, "198.51.100.0/24")):
            loaded.take(StoredPeer(key, (prefix(allowed),)))
        recover(Policy("iad", "", ()), loaded, rig.plane)
        assert set(rig.plane.peers()) == {ALICE, BOB}
        assert rig.plane.routes() == prefixes("198.51.100.0/24")
        assert f"{text} could not be made" in caplog.text
    finally:
        run("ip", "route", "del", text, "dev", "lo")


@pytest.mark.parametrize("text", ["192.0.2.0/24", "2001:db8::/48"])
def test_a_route_that_leads_elsewhere_is_refused_and_stays(rig: Rig, text: str) -> None:
    run("ip", "route", "add", text, "dev", "lo")
    try:
        with pytest.raises(KernelError, match=f"{text} is routed elsewhere"):
            rig.plane.apply([AddRoute(prefix("198.51.100.0/24")), AddRoute(prefix(text))])
        rig.plane.apply([RemoveRoute(prefix(text))])
        assert "dev lo" in run("ip", "-6" if ":" in text else "-4", "route", "show", text)
        assert rig.plane.routes() == prefixes("198.51.100.0/24")
    finally:
        run("ip", "route", "delete", text, "dev", "lo")


def test_a_route_somebody_else_made_to_the_device_is_fine_and_stays_theirs(rig: Rig) -> None:
    run("ip", "route", "add", "192.0.2.0/24", "dev", rig.spec.interface)
    rig.plane.apply([AddRoute(prefix("192.0.2.0/24"))])
    assert not rig.plane.routes()
    rig.plane.apply([RemoveRoute(prefix("192.0.2.0/24"))])
    assert "192.0.2.0/24 scope link" in ip_routes(rig)


# When things go wrong


def test_what_pyroute2_cannot_do_is_a_sentence_too(rig: Rig) -> None:
    with closing(KernelDataPlane()) as plane, pytest.raises(KernelError, match="cannot set up wg/0: ") as caught:
        plane.open(replace(rig.spec, interface="wg/0", addresses=(), routes=()))
    assert isinstance(caught.value.__cause__, OSError)


def test_a_setting_the_kernel_cannot_hold_is_a_sentence_too(rig: Rig) -> None:
    for broken in (replace(rig.spec, listen_port=65536), replace(rig.spec, mtu=2**31 - 1)):
        with pytest.raises(KernelError, match=f"cannot set up {rig.spec.interface}: "):
            rig.plane.open(broken)


def test_a_device_deleted_under_us_is_a_sentence_and_can_be_opened_again(rig: Rig) -> None:
    delete(rig.spec.interface)
    route = prefix("192.0.2.0/24")
    for ask in (
        rig.plane.peers,
        lambda: rig.plane.apply([SetPeer(some_key(), frozenset())]),
        lambda: rig.plane.apply([AddRoute(route)]),
        lambda: list(rig.counters.counters()),
    ):
        with pytest.raises(KernelError, match=f"{rig.spec.interface}: the device is gone") as caught:
            ask()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENODEV
    assert rig.plane.open(rig.spec).made
    rig.plane.apply([SetPeer(some_key(), frozenset()), AddRoute(route)])
    assert len(rig.plane.peers()) == 1
    assert rig.plane.routes() == {route}


def test_a_device_made_anew_by_somebody_else_is_not_ours_until_opened(rig: Rig) -> None:
    delete(rig.spec.interface)
    run("ip", "link", "add", rig.spec.interface, "type", "wireguard")
    with pytest.raises(KernelError, match="the device is gone"):
        rig.plane.apply([SetPeer(some_key(), frozenset())])
    assert not wg_dump(rig.spec.interface)


def test_lost_answers_are_an_error_and_the_next_question_is_answered() -> None:
    absent = [encode_route(1, Route(Prefix.host(4, (11 << 24) + number), PER_PEER)) for number in range(100)]
    with Channel(NETLINK_ROUTE) as channel:
        channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.raises(OSError, match="No buffer space") as caught:
            channel.execute(RTM_DELROUTE, 0, absent, forgive=frozenset({errno.ESRCH}))
        assert caught.value.errno == errno.ENOBUFS
        assert channel.execute(RTM_DELROUTE, 0, absent, forgive=frozenset({errno.ESRCH})) == list(range(100))


def test_a_kernel_that_does_not_answer_is_not_waited_for_forever() -> None:
    with Channel(NETLINK_GENERIC, timeout=0.05) as channel:
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            channel.ask(NLMSG_NOOP, b"")
        assert family_id(channel.ask(GENL_ID_CTRL, family_request("wireguard"))) > GENL_ID_CTRL


def test_late_answers_and_other_processes_messages_are_passed_over() -> None:
    question = family_request("wireguard")
    with Channel(NETLINK_GENERIC, timeout=5) as channel, Channel(NETLINK_GENERIC) as stranger:
        expected = family_id(channel.ask(GENL_ID_CTRL, question))
        late = frame(GENL_ID_CTRL, NLM_F_REQUEST, 0, family_request("nlctrl"))
        channel.socket.send(late)
        stranger.socket.sendto(frame(GENL_ID_CTRL, 0, 2, b"not the kernel's"), channel.socket.getsockname())
        assert family_id(channel.ask(GENL_ID_CTRL, question)) == expected
