"""The edge: what is let in, what is refused with a sentence, and what never shows in any of it."""

from __future__ import annotations

import base64
import json
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number, some_key
from pydantic import ValidationError

from peerlane.tasks.errors import Invalid, StorageError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import (
    MAX_LABELS,
    MAX_PREFIXES,
    MAX_TTL,
    CreatePeer,
    DeletePeer,
    PeerResult,
    parse,
    peer_result,
)
from peerlane.tasks.wire.stored_peer import Peer

KEY = key_number(1)
SECRET = "Zm9yIHRlc3RzIG9ubHksIG5vYm9keSdzIHNlY3JldCE="


def wish(**arguments: Any) -> CreatePeer:
    return parse(CreatePeer, {"gateway": "iad", "public_key": KEY, **arguments})


def refusal(**arguments: Any) -> str:
    with pytest.raises(Invalid) as caught:
        wish(**arguments)
    return str(caught.value)


class TestAPublicKey:
    @given(st.binary(min_size=32, max_size=32).filter(any))
    def test_is_any_32_bytes_in_base64(self, raw: bytes) -> None:
        text = base64.b64encode(raw).decode()
        assert wish(public_key=text).public_key == text

    @pytest.mark.parametrize(
        ("key", "says"),
        [
            ("", "0 bytes instead of 32"),
            ("hello", "expected 44 characters of base64"),
            (base64.b64encode(bytes([1] * 31)).decode(), "31 bytes instead of 32"),
            (base64.b64encode(bytes([1] * 33)).decode(), "33 bytes instead of 32"),
            (KEY.rstrip("="), "expected 44 characters"),
            (KEY + "\n", "expected 44 characters"),
            (" " + KEY, "expected 44 characters"),
            (KEY[:-2] + "F=", "stray bits"),
            (base64.urlsafe_b64encode(bytes([255] * 32)).decode(), "expected 44 characters"),
            (base64.b64encode(bytes(32)).decode(), "all-zero public key"),
            (bytes([1] * 32).hex(), "48 bytes instead of 32"),
            ("\ud800" * 44, "expected 44 characters"),
            ("Å" * 44, "expected 44 characters"),
            ("A" * 2**20, "bytes instead of 32"),
            (None, "is text"),
            (7, "is text"),
            (["x"], "is text"),
            (KEY.encode(), "is text"),
        ],
    )
    def test_is_refused_with_what_is_wrong_with_it(self, key: object, says: str) -> None:
        message = refusal(public_key=key)
        assert says in message
        assert message.startswith("public_key: ")
        assert len(message) < 300

    @given(st.text(max_size=60) | st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()))
    def test_is_canonical_or_invalid_and_nothing_else(self, text: str) -> None:
        try:
            key = wish(public_key=text).public_key
        except Invalid:
            return
        assert base64.b64encode(base64.b64decode(key, validate=True)).decode() == text


class TestAPresharedKey:
    @pytest.mark.parametrize(
        "bad",
        [SECRET[:-1], SECRET + "=", SECRET[:-2] + "F=", SECRET * 2, SECRET.lower() + "!", SECRET.encode(), [SECRET]],
    )
    def test_that_is_malformed_is_in_no_error(self, bad: object) -> None:
        message = refusal(preshared_key=bad)
        assert message.startswith("preshared_key: ")
        assert SECRET[:16] not in message
        assert SECRET[:16].lower() not in message

    def test_says_how_to_make_one(self) -> None:
        assert "`wg genpsk`" in refusal(preshared_key="hello")

    @pytest.mark.parametrize(
        "arguments",
        [
            {"public_key": SECRET[:-1]},
            {"allowed_ips": [SECRET]},
            {"allowed_ips": SECRET},
            {"keepalive": SECRET},
            {"ttl": SECRET},
            {"labels": {"psk": SECRET * 10}},
            {"labels": SECRET},
            {"labels": {SECRET: "x"}},
            {"pinned": SECRET},
            {"deadline": SECRET},
            {"gateway": SECRET},
            {"psk": SECRET},
            {"preshared_key": SECRET, "keepalive": -1},
        ],
    )
    def test_in_a_wrong_place_is_in_no_error_either(self, arguments: dict[str, Any]) -> None:
        assert SECRET[:16] not in refusal(**arguments)
        with pytest.raises(ValidationError) as caught:
            CreatePeer.model_validate({"gateway": "iad", "public_key": KEY, **arguments})
        assert SECRET[:16] not in str(caught.value) + repr(caught.value)

    def test_is_in_no_repr_and_no_public_view(self) -> None:
        peer = Peer(public_key=KEY, allowed_ips=(Prefix.parse("10.8.0.2"),), preshared_key=SECRET)
        for shown in (repr(peer), str(peer), repr(wish(preshared_key=SECRET)), json.dumps(peer.public())):
            assert SECRET not in shown
        assert peer.public()["has_preshared_key"] is True
        assert SECRET not in repr(PeerResult.model_validate({"outcome": "created", "gateway": "iad", **peer.public()}))


class TestPrefixes:
    def test_are_sorted_and_counted_once(self) -> None:
        prefixes = wish(allowed_ips=["fd00::1", "10.8.0.9/32", "10.8.0.9", "10.8.0.10"]).allowed_ips
        assert [str(prefix) for prefix in prefixes or ()] == ["10.8.0.9/32", "10.8.0.10/32", "fd00::1/128"]

    @pytest.mark.parametrize(
        ("prefixes", "says"),
        [
            ([], "leave it out"),
            ("10.8.0.9/32", "is a list"),
            ({"10.8.0.9": 1}, "is a list"),
            ([None], "a prefix is text"),
            ([10], "a prefix is text"),
            (["10.8.0.9/24"], "did you mean 10.8.0.0/24?"),
            (["10.8.0.0/24", "10.8.0.9"], "10.8.0.0/24 and 10.8.0.9/32 overlap"),
            (["hello"], "is not an IPv4 or IPv6 prefix"),
            (["1" * 65], "a prefix is text"),
            ([f"10.{n // 256}.{n % 256}.0/24" for n in range(MAX_PREFIXES + 1)], f"more than {MAX_PREFIXES}"),
        ],
    )
    def test_are_refused_with_what_is_wrong(self, prefixes: object, says: str) -> None:
        message = refusal(allowed_ips=prefixes)
        assert says in message
        assert "allowed_ips" in message


class TestLimits:
    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ({"keepalive": -1}, "keepalive"),
            ({"keepalive": 65536}, "keepalive"),
            ({"keepalive": 2.5}, "keepalive"),
            ({"keepalive": "25"}, "keepalive"),
            ({"keepalive": True}, "keepalive"),
            ({"ttl": 0}, "ttl"),
            ({"ttl": -5}, "ttl"),
            ({"ttl": MAX_TTL + 1}, "ttl"),
            ({"ttl": 1e300}, "ttl"),
            ({"ttl": float("nan")}, "ttl"),
            ({"ttl": float("inf")}, "ttl"),
            ({"ttl": "1h"}, "ttl"),
            ({"ttl": timedelta(0)}, "ttl"),
            ({"labels": {f"l{n}": "" for n in range(MAX_LABELS + 1)}}, "labels"),
            ({"labels": {"Upper": ""}}, "labels"),
            ({"labels": {"": ""}}, "labels"),
            ({"labels": {"x" * 64: ""}}, "labels"),
            ({"labels": {"x": "y" * 257}}, "labels"),
            ({"labels": {"x": "two\nlines"}}, "labels"),
            ({"labels": {"x": 1}}, "labels"),
            ({"labels": [["x", "y"]]}, "labels"),
            ({"pinned": "yes"}, "pinned"),
            ({"pinned": 1}, "pinned"),
            ({"deadline": -1}, "deadline"),
            ({"deadline": 2**53 + 1}, "deadline"),
            ({"gateway": "IAD"}, "gateway"),
            ({"gateway": "-iad"}, "gateway"),
            ({"gateway": "iad\n"}, "gateway"),
            ({"gateway": "a" * 64}, "gateway"),
            ({"gateway": "iad.bulk"}, "gateway"),
            ({"gateway": None}, "gateway"),
        ],
    )
    def test_beyond_them_the_argument_is_named(self, arguments: dict[str, Any], names: str) -> None:
        assert refusal(**arguments).startswith(names)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"keepalive": 65535},
            {"keepalive": 25.0},
            {"ttl": 1},
            {"ttl": MAX_TTL},
            {"ttl": timedelta(hours=1)},
            {"labels": {f"l{n}": "ü" * 256 for n in range(MAX_LABELS)}},
            {"labels": {"a.b_c/d-e": ""}},
            {"deadline": 2**53},
            {"gateway": "a" * 63},
        ],
    )
    def test_up_to_them_it_is_taken(self, arguments: dict[str, Any]) -> None:
        name, value = next(iter(arguments.items()))
        taken = getattr(wish(**arguments), name)
        assert taken == (value.total_seconds() if isinstance(value, timedelta) else value)

    def test_a_pinned_peer_does_not_expire(self) -> None:
        assert "give ttl or pinned, not both" in refusal(ttl=60, pinned=True)

    def test_what_is_no_argument_is_named(self) -> None:
        assert refusal(colour="red") == "colour: no such argument"
        with pytest.raises(Invalid, match="ttl: no such argument"):
            parse(DeletePeer, {"gateway": "iad", "public_key": KEY, "ttl": 5})

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(Invalid, match=r"gateway: .*public_key: "):
            parse(CreatePeer, {})

    def test_many_faults_make_a_short_message(self) -> None:
        assert len(refusal(**{f"x{n}" * 100: n for n in range(100)})) < 1000

    def test_a_wish_cannot_be_changed(self) -> None:
        fixed = wish()
        with pytest.raises(ValidationError):
            fixed.keepalive = 5  # pyright: ignore[reportAttributeAccessIssue] - that is the point


hosts = st.integers(0, 2**32 - 1).map(lambda number: Prefix.host(4, number))
label_names = st.from_regex(r"[a-z0-9]([a-z0-9._/-]{0,20}[a-z0-9])?", fullmatch=True)
peers = st.builds(
    Peer,
    public_key=st.integers(1, 2**256 - 1).map(key_number),
    allowed_ips=st.lists(hosts, min_size=1, max_size=4, unique=True).map(lambda listed: tuple(sorted(listed))),
    preshared_key=st.none() | st.integers(1, 2**256 - 1).map(key_number),
    keepalive=st.integers(0, 65535),
    ttl=st.none() | st.integers(1, MAX_TTL),
    expires_at=st.none() | st.integers(1, 2**40),
    labels=st.dictionaries(label_names, st.text(max_size=20).filter(str.isprintable), max_size=4),
    pinned=st.booleans(),
    created_at=st.integers(0, 2**40),
)


class TestARecord:
    @given(peers)
    def test_comes_back_as_it_was_stored(self, peer: Peer) -> None:
        assert Peer.from_record(peer.public_key, peer.record()) == peer
        assert Peer.from_record(peer.public_key, peer.record().encode()) == peer

    @given(st.text(max_size=100) | st.binary(max_size=100))
    def test_of_garbage_is_a_storage_error_and_nothing_else(self, garbage: str | bytes) -> None:
        with pytest.raises(StorageError, match="does not parse"):
            Peer.from_record(KEY, garbage)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        st.sampled_from(["v", "allowed_ips", "labels", "ttl", "created_at", "public_key", "preshared_key", "x"]),
    )
    def test_with_any_json_in_any_field_parses_or_is_a_storage_error(self, value: object, field: str) -> None:
        record = {"v": 1, "allowed_ips": ["10.8.0.2/32"], field: value}
        try:
            peer = Peer.from_record(KEY, json.dumps(record))
        except StorageError:
            return
        assert Peer.from_record(KEY, peer.record()) == peer

    @pytest.mark.parametrize(
        ("record", "says"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ('{"v":1,"allowed_ips":' + "[" * 50_000 + "]" * 50_000 + "}", ""),
            (b"\xff\xfe\xff", "does not parse"),
            ("null", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("{}", "no version, this program knows version 1"),
            ('{"v":2,"allowed_ips":["10.8.0.2"]}', "version 2, this program knows version 1"),
            ('{"v":"1","allowed_ips":["10.8.0.2"]}', "no version, this program knows version 1"),
            ('{"v":1}', "allowed_ips"),
            ('{"v":1,"allowed_ips":[]}', "allowed_ips"),
            ('{"v":1,"allowed_ips":["10.8.0.2"],"colour":"red"}', "colour: no such argument"),
            ('{"v":1,"allowed_ips":["10.8.0.2"],"public_key":"x"}', "public_key"),
            ('{"v":1,"allowed_ips":["10.8.0.2"],"keepalive":' + "9" * 5000 + "}", "does not parse"),
        ],
    )
    def test_that_this_program_cannot_read_says_why(self, record: str | bytes, says: str) -> None:
        with pytest.raises(StorageError) as caught:
            Peer.from_record(KEY, record)
        assert says in str(caught.value)
        assert KEY in str(caught.value)
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize(
        "record",
        [
            {"v": 1, "allowed_ips": ["10.8.0.2"], "preshared_key": SECRET + "="},
            {"v": 1, "allowed_ips": ["10.8.0.2"], "preshared_key": SECRET, "ttl": -1},
            {"v": SECRET, "allowed_ips": ["10.8.0.2"], "preshared_key": SECRET},
            {"v": 1, "allowed_ips": [SECRET]},
        ],
    )
    def test_that_does_not_parse_shows_no_secret(self, record: dict[str, Any]) -> None:
        with pytest.raises(StorageError) as caught:
            Peer.from_record(KEY, json.dumps(record))
        assert SECRET[:16] not in str(caught.value)


def test_a_result_tells_all_but_the_secret() -> None:
    peer = Peer(public_key=some_key(), allowed_ips=(Prefix.parse("10.8.0.2"),), preshared_key=SECRET, labels={"a": "b"})
    result = PeerResult.model_validate(
        {"outcome": "created", "gateway": "iad", "endpoint": "gw:51820", "new_in_a_later_version": 1, **peer.public()}
    )
    assert (result.public_key, result.allowed_ips, result.labels) == (peer.public_key, ("10.8.0.2/32",), {"a": "b"})
    assert result.has_preshared_key
    assert SECRET not in result.model_dump_json()


def test_results_share_what_they_have_in_common_and_stay_apart_all_the_same() -> None:
    made: dict[str, Any] = {"outcome": "created", "gateway": "iad", "public_key": KEY, "labels": {}}
    first, second = peer_result(made), peer_result({**made, "labels": {"build": "17"}})
    plain = PeerResult.model_validate(made)
    assert first.model_fields_set is second.model_fields_set, "each set of its own takes as much as all else"
    assert (first, second.labels) == (plain, {"build": "17"})
    assert first.model_dump(exclude_unset=True) == plain.model_dump(exclude_unset=True)
    changed = first.model_copy(update={"keepalive": 25})
    assert "keepalive" in changed.model_dump(exclude_unset=True)
    assert first.model_fields_set == second.model_fields_set == plain.model_fields_set
    again = pickle.loads(pickle.dumps(first))  # noqa: S301 - made here
    assert (again, again.model_fields_set) == (first, first.model_fields_set)
    deleted = peer_result({"outcome": "deleted", "gateway": "iad", "public_key": KEY})
    assert deleted.model_fields_set == {"outcome", "gateway", "public_key"}
