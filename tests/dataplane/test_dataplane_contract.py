"""What every data plane promises (workers/dataplane/__init__.py), asked of the one in memory and of a real kernel."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from devices import Rig, kernel_rig, memory_rig, prefix, prefixes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keys import key_number, some_key

from peerlane.tasks.errors import KernelError, SettingsError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import decoded_key, text_key
from peerlane.workers.dataplane import AddRoute, Change, DevicePeer, RemovePeer, RemoveRoute, SetPeer, keyfile

ALICE, BOB, CAROL = some_key(), some_key(), some_key()
SECRET = text_key(bytes(range(7, 39)))


@pytest.fixture(params=["memory", pytest.param("kernel", marks=pytest.mark.kernel)])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with (kernel_rig if request.param == "kernel" else memory_rig)(tmp_path) as rig:
        yield rig


@pytest.fixture
def opened(rig: Rig) -> Rig:
    rig.plane.open(rig.spec)
    return rig


# Opening


def test_a_device_that_was_not_there_is_made(rig: Rig) -> None:
    assert rig.plane.open(rig.spec).made
    assert not rig.plane.peers()
    assert not rig.plane.routes()


def test_opening_again_changes_nothing(rig: Rig) -> None:
    first = rig.plane.open(rig.spec)
    rig.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2"), SECRET, 25), AddRoute(prefix("192.0.2.0/24"))])
    peers, routes = rig.plane.peers(), rig.plane.routes()
    assert rig.plane.open(rig.spec) == replace(first, made=False)
    assert (rig.plane.peers(), rig.plane.routes()) == (peers, routes)


def test_closing_leaves_the_device_as_it_is(opened: Rig) -> None:
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2"))])
    opened.plane.close()
    opened.plane.open(opened.spec)
    assert set(opened.plane.peers()) == {ALICE}


def test_a_plane_that_is_not_open_says_so(opened: Rig) -> None:
    opened.plane.close()
    for ask in (opened.plane.peers, opened.plane.routes, lambda: opened.plane.apply([RemovePeer(ALICE)])):
        with pytest.raises(KernelError, match="open"):
            ask()


def test_the_port_is_the_one_asked_for(rig: Rig) -> None:
    assert rig.plane.open(replace(rig.spec, listen_port=45678)).listen_port == 45678
    assert rig.plane.open(replace(rig.spec, listen_port=45679)).listen_port == 45679


def test_a_port_of_zero_picks_one_and_keeps_it(rig: Rig) -> None:
    port = rig.plane.open(rig.spec).listen_port
    assert port != 0
    assert rig.plane.open(rig.spec).listen_port == port


# The key file


def test_a_key_file_is_made_for_its_owner_alone_and_used_ever_after(rig: Rig) -> None:
    facts = rig.plane.open(rig.spec)
    made = rig.spec.private_key_file
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert facts.public_key == keyfile.public_key(decoded_key(made.read_text().strip()))
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert rig.plane.open(rig.spec).public_key == facts.public_key


def test_a_key_that_is_not_clamped_is_the_same_key_as_clamped(rig: Rig) -> None:
    _write_key(rig, text_key(b"\xff" * 32))
    expected = keyfile.public_key(b"\xff" * 32)
    assert rig.plane.open(rig.spec).public_key == expected


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666], ids=oct)
def test_a_key_file_that_others_may_use_is_refused(rig: Rig, mode: int) -> None:
    _write_key(rig, SECRET)
    rig.spec.private_key_file.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600") as caught:
        rig.plane.open(rig.spec)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("no key", id="words"),
        pytest.param(SECRET[:-2], id="cut short"),
        pytest.param(SECRET + "=", id="too long"),
        pytest.param(SECRET * 2, id="two keys"),
        pytest.param("\xff" * 44, id="not ASCII"),
        pytest.param("A" * 43 + "=", id="zeros"),
    ],
)
def test_a_malformed_key_file_is_refused_without_quoting_it(rig: Rig, content: str) -> None:
    _write_key(rig, content)
    with pytest.raises(SettingsError, match=str(rig.spec.private_key_file)) as caught:
        rig.plane.open(rig.spec)
    error: BaseException | None = caught.value
    while error is not None:
        assert not content or content not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert rig.spec.private_key_file.read_text(encoding="utf-8") == content


def test_a_key_file_where_none_can_be_is_refused(rig: Rig) -> None:
    rig.spec.private_key_file.mkdir()
    with pytest.raises(SettingsError, match=str(rig.spec.private_key_file)):
        rig.plane.open(rig.spec)


def test_a_device_with_a_key_has_it_written_to_a_file_that_is_not_there(opened: Rig, tmp_path: Path) -> None:
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2"))])
    before, other = opened.plane.open(opened.spec), tmp_path / "deeper" / "other.key"
    assert opened.plane.open(replace(opened.spec, private_key_file=other)).public_key == before.public_key
    assert other.read_text() == opened.spec.private_key_file.read_text()
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert set(opened.plane.peers()) == {ALICE}


def test_a_device_with_another_key_than_the_file_is_refused_with_both_public_keys(opened: Rig, tmp_path: Path) -> None:
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2"))])
    own, other = opened.plane.open(opened.spec).public_key, tmp_path / "other.key"
    private = keyfile.load_or_make(other)
    with pytest.raises(SettingsError) as caught:
        opened.plane.open(replace(opened.spec, private_key_file=other))
    assert own in str(caught.value)
    assert keyfile.public_key(private) in str(caught.value)
    assert text_key(private) not in str(caught.value)
    assert opened.plane.open(opened.spec).public_key == own
    assert set(opened.plane.peers()) == {ALICE}


# Peers


def test_a_peer_reads_back_as_it_was_set(opened: Rig) -> None:
    wished = prefixes("10.8.0.2", "10.8.4.0/22", "fd08::2", "2001:db8::/32", "192.0.2.128/25")
    opened.plane.apply([SetPeer(ALICE, wished, SECRET, 25)])
    assert opened.plane.peers() == {ALICE: DevicePeer(ALICE, SECRET, 25, wished)}


def test_setting_a_peer_again_leaves_it_with_exactly_what_was_asked_last(opened: Rig) -> None:
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2", "fd08::2"), SECRET, 25)])
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.3", "fd08::2"))])
    assert opened.plane.peers() == {ALICE: DevicePeer(ALICE, None, 0, prefixes("10.8.0.3", "fd08::2"))}


def test_a_peer_may_allow_nothing_or_everything(opened: Rig) -> None:
    opened.plane.apply([SetPeer(ALICE, frozenset()), SetPeer(BOB, prefixes("0.0.0.0/0", "::/0"), keepalive=65535)])
    assert opened.plane.peers() == {
        ALICE: DevicePeer(ALICE, None, 0, frozenset()),
        BOB: DevicePeer(BOB, None, 65535, prefixes("0.0.0.0/0", "::/0")),
    }


def test_many_peers_at_once_all_arrive(opened: Rig) -> None:
    wished = {
        key_number(number): prefixes(f"10.8.{number >> 8}.{number & 255}", f"fd08::{number:x}")
        for number in range(2, 1200)
    }
    opened.plane.apply([SetPeer(key, allowed_ips, SECRET) for key, allowed_ips in wished.items()])
    assert {key: peer.allowed_ips for key, peer in opened.plane.peers().items()} == wished
    opened.plane.apply([RemovePeer(key) for key in wished])
    assert not opened.plane.peers()


def test_changes_are_made_in_order(opened: Rig) -> None:
    opened.plane.apply(
        [
            SetPeer(ALICE, prefixes("10.8.0.2"), SECRET),
            RemovePeer(ALICE),
            SetPeer(BOB, prefixes("10.8.0.2")),
            AddRoute(prefix("192.0.2.0/24")),
            SetPeer(ALICE, prefixes("10.8.0.3")),
            RemoveRoute(prefix("192.0.2.0/24")),
            RemovePeer(CAROL),
            SetPeer(CAROL, prefixes("10.8.0.4")),
        ]
    )
    installed = {key: (peer.preshared_key, peer.allowed_ips) for key, peer in opened.plane.peers().items()}
    assert installed == {
        ALICE: (None, prefixes("10.8.0.3")),
        BOB: (None, prefixes("10.8.0.2")),
        CAROL: (None, prefixes("10.8.0.4")),
    }
    assert not opened.plane.routes()


def test_removing_a_peer_that_is_not_there_is_no_error(opened: Rig) -> None:
    opened.plane.apply([RemovePeer(ALICE)])
    assert not opened.plane.peers()


def test_changing_nothing_is_no_error(opened: Rig) -> None:
    opened.plane.apply([])
    assert not opened.plane.peers()


# The kernel's quirks, which callers plan around


def test_an_allowed_ip_moves_silently_to_whoever_asked_last(opened: Rig) -> None:
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2", "10.8.0.3"))])
    opened.plane.apply([SetPeer(BOB, prefixes("10.8.0.3", "10.8.0.4"))])
    peers = opened.plane.peers()
    assert peers[ALICE].allowed_ips == prefixes("10.8.0.2")
    assert peers[BOB].allowed_ips == prefixes("10.8.0.3", "10.8.0.4")


def test_removing_the_thief_does_not_give_it_back(opened: Rig) -> None:
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2")), SetPeer(BOB, prefixes("10.8.0.2")), RemovePeer(BOB)])
    assert opened.plane.peers()[ALICE].allowed_ips == frozenset()


def test_prefixes_that_merely_overlap_stay_with_both(opened: Rig) -> None:
    opened.plane.apply([SetPeer(ALICE, prefixes("10.8.0.0/24")), SetPeer(BOB, prefixes("10.8.0.2"))])
    peers = opened.plane.peers()
    assert (peers[ALICE].allowed_ips, peers[BOB].allowed_ips) == (prefixes("10.8.0.0/24"), prefixes("10.8.0.2"))


def test_the_devices_own_key_is_ignored_silently(rig: Rig) -> None:
    own = rig.plane.open(rig.spec).public_key
    rig.plane.apply([SetPeer(ALICE, prefixes("10.8.0.2")), SetPeer(own, prefixes("10.8.0.2")), RemovePeer(own)])
    assert rig.plane.peers() == {ALICE: DevicePeer(ALICE, None, 0, prefixes("10.8.0.2"))}


def test_after_an_error_a_first_part_stays_and_nothing_later_is_made(opened: Rig) -> None:
    route = prefix("192.0.2.0/24")
    with pytest.raises(KernelError):
        opened.plane.apply(
            [
                SetPeer(ALICE, prefixes("10.8.0.2")),
                AddRoute(route),
                SetPeer("no key", prefixes("10.8.0.3")),
                RemovePeer(ALICE),
                RemoveRoute(route),
            ]
        )
    assert set(opened.plane.peers()) == {ALICE}
    assert opened.plane.routes() == {route}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(SetPeer(SECRET[:-1], frozenset()), id="key cut short"),
        pytest.param(SetPeer(SECRET[:-2] + "/=", frozenset()), id="key in another spelling"),
        pytest.param(SetPeer(ALICE, frozenset(), preshared_key=SECRET + "="), id="preshared key too long"),
        pytest.param(SetPeer(ALICE, frozenset(), preshared_key="\N{SNOWMAN}" * 44), id="preshared key not ASCII"),
        pytest.param(SetPeer(ALICE, frozenset(), keepalive=65536), id="keepalive too long"),
        pytest.param(SetPeer(ALICE, frozenset(), keepalive=-1), id="keepalive negative"),
    ],
)
def test_a_malformed_change_is_refused_without_quoting_keys(opened: Rig, change: SetPeer) -> None:
    with pytest.raises(KernelError) as caught:
        opened.plane.apply([change])
    assert SECRET[:-2] not in repr(caught.value)
    assert not opened.plane.peers()


# Routes


def test_routes_come_and_go(opened: Rig) -> None:
    wished = prefixes("192.0.2.0/24", "198.51.100.7", "2001:db8::/48", "2001:db8:1::1")
    opened.plane.apply([AddRoute(route) for route in wished])
    assert opened.plane.routes() == wished
    opened.plane.apply([RemoveRoute(prefix("198.51.100.7")), RemoveRoute(prefix("2001:db8::/48"))])
    assert opened.plane.routes() == prefixes("192.0.2.0/24", "2001:db8:1::1")


def test_adding_a_route_twice_and_removing_it_twice_is_no_error(opened: Rig) -> None:
    for route in prefixes("192.0.2.0/24", "2001:db8::/48"):
        opened.plane.apply([AddRoute(route), AddRoute(route)])
        assert opened.plane.routes() == {route}
        opened.plane.apply([RemoveRoute(route), RemoveRoute(route)])
        assert not opened.plane.routes()


def test_covering_routes_are_not_counted_among_the_peers_and_not_removed_as_theirs(opened: Rig) -> None:
    pools = list(opened.spec.routes)
    opened.plane.apply([AddRoute(pool) for pool in pools])
    assert not opened.plane.routes()
    opened.plane.apply([RemoveRoute(pool) for pool in pools])
    opened.plane.apply([AddRoute(pool) for pool in pools])
    assert not opened.plane.routes()


def test_many_routes_at_once_all_arrive(opened: Rig) -> None:
    wished = [Prefix.host(4, (11 << 24) + number) for number in range(1050)]
    opened.plane.apply([AddRoute(route) for route in wished])
    assert opened.plane.routes() == set(wished)
    opened.plane.apply([RemoveRoute(route) for route in wished])
    assert not opened.plane.routes()


# Counters


def test_counters_name_each_peer_once(opened: Rig) -> None:
    wished = {key_number(number) for number in range(2, 600)}
    opened.plane.apply([SetPeer(key, frozenset()) for key in wished])
    counted = [counters for batch in opened.counters.counters() for counters in batch]
    assert len(counted) == len(wished)
    assert {counters.public_key for counters in counted} == wished
    assert {counters[1:] for counters in counted} == {(0.0, 0, 0, None)}
    assert opened.counters.complete


# Both planes, whatever they are told


_KEYS = st.sampled_from([key_number(number) for number in range(2, 7)])
_PREFIXES = st.sampled_from(sorted(prefixes("10.8.0.0/30", "10.8.0.1", "10.8.0.2", "fd08::/126", "fd08::1")))
_ROUTES = st.sampled_from(sorted(prefixes("192.0.2.0/24", "192.0.2.1", "2001:db8::/48", "10.8.0.0/16", "10.9.0.0/16")))
_CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(SetPeer, _KEYS, st.frozensets(_PREFIXES), st.none() | _KEYS, st.sampled_from([0, 25])),
    st.builds(RemovePeer, _KEYS),
    st.builds(AddRoute, _ROUTES),
    st.builds(RemoveRoute, _ROUTES),
)


@pytest.mark.kernel
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.lists(_CHANGES, max_size=12), min_size=1, max_size=4))
def test_memory_and_kernel_agree_after_any_changes(
    runs: list[list[Change]], memory_and_kernel: tuple[Rig, Rig]
) -> None:
    memory, kernel = memory_and_kernel
    for rig in memory_and_kernel:
        rig.plane.apply([RemovePeer(key) for key in rig.plane.peers()])
        rig.plane.apply([RemoveRoute(route) for route in rig.plane.routes()])
    for changes in runs:
        for rig in memory_and_kernel:
            rig.plane.apply(changes)
        assert memory.plane.peers() == kernel.plane.peers()
        assert memory.plane.routes() == kernel.plane.routes()


@pytest.fixture
def memory_and_kernel(tmp_path: Path) -> Iterator[tuple[Rig, Rig]]:
    """Both planes with the same key, so that they share an own key too."""
    with memory_rig(tmp_path) as memory, kernel_rig(tmp_path) as kernel:
        memory.plane.open(memory.spec)
        kernel.plane.open(kernel.spec)
        yield memory, kernel


def _write_key(rig: Rig, content: str) -> None:
    rig.spec.private_key_file.write_text(content, encoding="utf-8")
    rig.spec.private_key_file.chmod(0o600)
