"""A peer as a gateway's programs hold it says what its record says, and takes and refuses what the model does."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keys import key_number, some_key

from peerlane.tasks.errors import StorageError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import MAX_PREFIXES, MAX_TTL
from peerlane.tasks.wire.psk_cipher import PskCipher
from peerlane.tasks.wire.stored_peer import Peer, StoredPeer, raw_key, text_key
from peerlane.workers.peers.peer_records import PeerRecords
from peerlane.workers.peers.table import PeerTable, Policy

KEY = key_number(7)

keys = st.integers(1, 2**256 - 1).map(key_number)
times = st.integers(1, 2**40)
names = st.from_regex(r"[a-z0-9](?:[a-z0-9._/-]{0,10}[a-z0-9])?", fullmatch=True)
texts = st.text(max_size=20).filter(str.isprintable)


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    version = draw(st.sampled_from((4, 6)))
    bits = 32 if version == 4 else 128
    host = draw(st.sampled_from((0, 0, 0, 1, 8, bits // 2, bits)))
    return Prefix(version, draw(st.integers(0, 2**bits - 1)) >> host << host, bits - host)


def _disjoint(prefixes: list[Prefix]) -> tuple[Prefix, ...]:
    kept: list[Prefix] = []
    for prefix in sorted(set(prefixes)):
        if not any(prefix.overlaps(other) for other in kept):
            kept.append(prefix)
    return tuple(kept)


peers = st.builds(
    StoredPeer,
    public_key=keys,
    allowed_ips=st.lists(prefixes(), min_size=1, max_size=6).map(_disjoint),
    preshared_key=st.none() | keys,
    keepalive=st.integers(0, 65535),
    ttl=st.none() | st.integers(1, MAX_TTL),
    expires_at=st.none() | times,
    labels=st.dictionaries(names, texts, max_size=4).map(lambda labels: dict(sorted(labels.items()))),
    pinned=st.booleans(),
    created_at=times,
    imported_at=st.none() | times,
)

ODD_PREFIXES = (
    *("10.8.0.7/32", "10.8.0.7", "10.8.0.0/24", "10.8.0.1/24", "10.8.0.7/128", "10.8.0.07/32", "10.8/32"),
    *(
        "fd00::7/128",
        "FD00::7/128",
        "::ffff:1.2.3.4/128",
        "fd00::/64",
        "fd00::7/32",
        "::1%1/128",
        "/32",
        "x",
        "",
        7,
        None,
    ),
)
#: Values that a field of a record may have, fit or not.
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 25, 65535, 65536, -1, MAX_TTL, MAX_TTL + 1, 2**53, 2**63, 10**30, 1.0, 2.5, float("nan")]),
    st.sampled_from(["", "x", KEY, key_number(1), "A" * 43 + "=", "enc:1:0123abcd:" + "A" * 80, "10.8.0.7/32"]),
    st.lists(st.sampled_from(ODD_PREFIXES), max_size=3),
    st.dictionaries(st.sampled_from(["a", "A", "", "a" * 64, "ci/cd"]), st.sampled_from(["x", "\n", "y" * 257, 7])),
)
fields = st.sampled_from([*StoredPeer._fields[1:], "v", "x", "public_key"])


@st.composite
def stored_forms(draw: st.DrawFn) -> bytes:
    """Records that are sound but for a field or a few bytes, and what is none at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=30))
    record: dict[str, Any] = {"v": 1, "allowed_ips": ["10.8.0.7/32"], "created_at": 5}
    record |= draw(st.dictionaries(fields, odd, max_size=3))
    whole = json.dumps(record).encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(whole)))
        parts = [b" ", b"\xff", b"\xc3\xa9", b'"', b",", b"0", b'"v":2,', b'"v":1,', b"\x00", b"\\ud800"]
        whole = whole[:at] + draw(st.sampled_from(parts)) + whole[at:]
    return whole


def by_the_model(record: bytes) -> StoredPeer | str:
    try:
        return StoredPeer.of(Peer.from_record(KEY, record))
    except StorageError as error:
        return str(error)


def by_the_short_way(record: bytes) -> StoredPeer | str:
    try:
        return StoredPeer.from_record(KEY, record)
    except StorageError as error:
        return str(error)


@given(peers)
def test_a_peer_comes_back_from_its_record_as_it_was(peer: StoredPeer) -> None:
    record = peer.record().encode()
    assert StoredPeer.from_record(peer.public_key, record) == peer
    model = Peer.from_record(peer.public_key, record)
    assert StoredPeer.of(model) == peer
    assert (model.record(), model.public()) == (peer.record(), peer.public())


@given(peers)
def test_a_plan_sees_what_redis_holds(peer: StoredPeer) -> None:
    table = PeerTable(Policy("iad", key_number(9), ()))
    table.put(peer)
    assert table.peers.get(peer.public_key) == StoredPeer.of(Peer.from_record(peer.public_key, peer.record()))
    assert set(table.index) == set(peer.allowed_ips)


@given(stored_forms())
@example(b'{"v":1,"allowed_ips":["10.8.0.7/32","10.8.0.7/32"]}')
@example(b'{"v":1,"allowed_ips":["10.8.0.7/32"],"created_at":1e3}')
@example(b'{"v":1,"v":2,"allowed_ips":["10.8.0.7/32"]}')
@example(json.dumps({"v": 1, "allowed_ips": ["10.8.0.7/32"]}).encode("utf-16"))
def test_the_short_way_and_the_model_agree_on_any_record(record: bytes) -> None:
    assert by_the_short_way(record) == by_the_model(record)


@pytest.mark.parametrize("count", [MAX_PREFIXES, MAX_PREFIXES + 1])
def test_they_agree_on_how_many_prefixes_are_too_many(count: int) -> None:
    record = json.dumps({"v": 1, "allowed_ips": [f"10.8.{n >> 8}.{n & 255}/32" for n in range(count)]}).encode()
    assert by_the_short_way(record) == by_the_model(record)


@given(st.one_of(keys, st.text(max_size=50), keys.map(lambda key: key[:-1] + "\n"), keys.map(lambda key: key + "=")))
def test_only_a_canonical_key_has_32_bytes(text: str) -> None:
    raw = raw_key(text)
    if raw is not None:
        assert len(raw) == 32
        assert text_key(raw) == text


def test_its_preshared_key_stays_out_of_its_repr() -> None:
    assert key_number(5) not in repr(StoredPeer(KEY, (), key_number(5)))


def test_a_preshared_key_is_sealed_and_opened_as_the_models() -> None:
    cipher = PskCipher([bytes(range(32))])
    peer = StoredPeer(KEY, (Prefix.parse("10.8.0.7"),), key_number(5))
    sealed = cipher.sealed("iad", peer)
    assert sealed.preshared_key != peer.preshared_key
    assert cipher.opened("iad", sealed) == peer


class TestRecords:
    def test_are_a_mapping_by_key_in_base64(self) -> None:
        records = PeerRecords()
        peer = StoredPeer(KEY, (Prefix.parse("10.8.0.7"),))
        records.put(peer)
        records.keep(StoredPeer("no key", ()))
        assert dict(records) == {KEY: peer, "no key": StoredPeer("no key", ())}
        assert (len(records), KEY in records, key_number(8) in records, "x" in records) == (2, True, False, False)
        assert cast("Any", None) not in records
        other = records.copy()
        records.drop(KEY)
        records.drop("no key")
        assert (dict(records), len(other)) == ({}, 2)
        assert records.get(KEY) is None
        with pytest.raises(KeyError):
            records["no key"]

    def test_replace_what_they_hold(self) -> None:
        records = PeerRecords()
        peers = [StoredPeer(some_key(), (Prefix.parse(f"10.8.0.{n}"),)) for n in range(1, 6)]
        for peer in peers:
            records.put(peer)
            assert records.get(peer.public_key) == peer
        assert not records.add(peers[-1], b"another record")
        copied = records.copy()
        for peer in (peers[0], peers[-1]):
            records.drop(peer.public_key)
            assert peer.public_key not in records
            assert peer.public_key in copied
        changed = peers[1]._replace(keepalive=9)
        records.put(changed)
        assert records.record(raw_key(changed.public_key) or b"") == changed.record().encode()
        keys = [raw_key(peer.public_key) for peer in peers[1:-1]]
        assert sorted(records.raw_keys()) == sorted(raw for raw in keys if raw is not None)
        assert dict(records) == {peer.public_key: peer for peer in (changed, *peers[2:-1])}

    def test_hold_a_roomy_record_as_this_program_writes_it(self) -> None:
        records = PeerRecords()
        peer = StoredPeer(KEY, (Prefix.parse("10.8.0.7"),))
        raw = raw_key(KEY)
        assert raw is not None
        records.add(peer, peer.record().encode() + b" " * 10_000)
        assert records.record(raw) == peer.record().encode()
        assert records[KEY] == peer
