"""Peers of a live device that cannot be taken over are told, one by one, and refuse the rest unless left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number
from servers import RedisServer
from writer_alone import POOLS, WriterAlone

from peerlane.config import names
from peerlane.tasks.admin.import_refusals import AdoptionClash, NotTaken
from peerlane.tasks.admin.peer_import import Imported
from peerlane.tasks.errors import Conflict, Draining, Invalid
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.bulk import LISTED
from peerlane.workers.dataplane import DevicePeer, SetPeer
from peerlane.workers.peers.adoption import NO_ALLOWED_IPS
from peerlane.workers.peers.handlers import Decision, PlanningContext, decide
from peerlane.workers.peers.table import PeerTable, Policy

POLICY = Policy("iad", key_number(9_999), (Prefix.parse("10.8.0.0/16"),))


@pytest.fixture
def alone(redis_server: RedisServer, tmp_path: Path) -> Iterator[WriterAlone]:
    made = WriterAlone(redis_server, tmp_path)
    yield made
    made.close()


def on_device(number: int, *allowed_ips: str) -> DevicePeer:
    return DevicePeer(key_number(number), None, 0, frozenset(map(Prefix.parse, allowed_ips)))


def plan(peers: Iterable[DevicePeer], table: PeerTable | None = None, **flags: bool) -> Decision:
    """What the writer decides on a live import of a device that holds ``peers``."""
    device = {peer.public_key: peer for peer in peers}
    context = PlanningContext(table or PeerTable(POLICY), 1_000, "active", {}, lambda: device, lambda _: [])
    return decide(names.IMPORT_PEERS, context, {"gateway": "iad", "live": True, **flags})


def keys(listed: Iterable[dict[str, Any]]) -> set[str]:
    return {entry["public_key"] for entry in listed}


WITHOUT, WITH = [on_device(1), on_device(2)], [on_device(3, "10.8.0.3/32"), on_device(4, "10.8.0.4/32")]


def test_a_peer_without_allowed_ips_refuses_the_import_by_name() -> None:
    with pytest.raises(Conflict, match=f"nothing was imported: .*{NO_ALLOWED_IPS}") as refused:
        plan([*WITHOUT, *WITH])
    assert all(peer.public_key in str(refused.value) for peer in WITHOUT)


def test_left_out_it_is_listed_and_the_others_are_taken() -> None:
    decision = plan([*WITHOUT, *WITH], leave_out=True)
    assert {plan.public_key for plan in decision.plans} == {peer.public_key for peer in WITH}
    assert decision.result["created"] == 2
    assert decision.result["left_out"] == [
        {"public_key": key, "kind": "no_allowed_ips", "message": NO_ALLOWED_IPS}
        for key in sorted(peer.public_key for peer in WITHOUT)
    ]
    assert decision.changes == (), "the device is not touched"


def test_a_dry_run_lists_all_and_does_nothing() -> None:
    outside = on_device(5, "192.168.0.1/32")
    decision = plan([*WITHOUT, *WITH, outside], dry_run=True)
    assert (decision.plans, decision.changes) == ((), ())
    assert decision.result["outcome"] == "would_import"
    assert decision.result["created"] == 2
    assert keys(decision.result["left_out"]) == {peer.public_key for peer in WITHOUT}
    (conflict,) = decision.result["conflicts"]
    assert (conflict["public_key"], conflict["kind"]) == (outside.public_key, "invalid")
    assert "192.168.0.1/32" in conflict["message"]


def test_leaving_out_is_for_those_without_allowed_ips_alone() -> None:
    with pytest.raises(Conflict, match=r"192\.168\.0\.1/32"):
        plan([*WITH, on_device(5, "192.168.0.1/32")], leave_out=True)


def test_what_redis_knows_is_no_stranger() -> None:
    table = PeerTable(POLICY)
    for planned in plan(WITH).plans:
        assert planned.after is not None
        table.put(planned.after)
    assert plan(WITH, table).result["created"] == 0
    assert plan(WITH, table, dry_run=True).result["created"] == 0


def test_a_long_list_is_cut_and_the_rest_counted() -> None:
    result = plan([on_device(number) for number in range(LISTED + 7)], leave_out=True).result
    assert (len(result["left_out"]), result["unlisted"]) == (LISTED, 7)


@pytest.mark.parametrize("flag", ["leave_out", "dry_run"])
def test_these_words_are_for_a_live_device(flag: str) -> None:
    context = PlanningContext(PeerTable(POLICY), 1_000, "active", {}, dict, lambda _: [])
    with pytest.raises(Invalid, match="for an import of the live device"):
        decide(
            names.IMPORT_PEERS, context, {"gateway": "iad", "token": "t", "count": 1, "digest": "0" * 64, flag: True}
        )


@given(st.sets(st.integers(1, 40), max_size=12), st.sets(st.integers(1, 40), max_size=12))
def test_every_stranger_is_either_taken_or_told(with_ips: set[int], without: set[int]) -> None:
    peers = [on_device(n, f"10.8.1.{n}/32") for n in with_ips] + [on_device(n) for n in without - with_ips]
    decision = plan(peers, leave_out=True)
    taken = {plan.public_key for plan in decision.plans}
    listed = keys(decision.result["left_out"])
    assert taken | listed == {peer.public_key for peer in peers}
    assert not taken & listed


def test_the_refusal_is_a_document_with_every_key() -> None:
    not_taken = [NotTaken(public_key=key_number(n), kind="no_allowed_ips", message=NO_ALLOWED_IPS) for n in (1, 2)]
    document = AdoptionClash(not_taken, 3).as_dict()
    assert (document["code"], document["unlisted"]) == ("conflict", 3)
    assert document["conflicts"] == [peer.model_dump() for peer in not_taken]
    assert str(document["message"]).endswith("; and 4 more")


def test_the_result_gives_the_list_on() -> None:
    result = dict(plan([*WITHOUT, *WITH], leave_out=True).result)
    assert [peer.public_key for peer in Imported.model_validate(result).left_out] == [
        entry["public_key"] for entry in result["left_out"]
    ]


def test_peers_of_the_device_are_adopted_by_a_gateway_that_is_being_drained(alone: WriterAlone) -> None:
    alone.plane.apply([SetPeer(key_number(n), frozenset({Prefix.host(4, POOLS[0].network + 1 + n)})) for n in (1, 2)])
    alone.raw.hset(names.gateway_key(alone.name), "state", "draining")
    alone.unknown = "adopt"
    alone.writer = alone.new_writer()
    assert set(alone.records) == {key_number(1), key_number(2)}
    with pytest.raises(Draining):
        alone.create()


def test_peers_are_adopted_though_redis_assigns_their_addresses_to_peers_that_it_does_not_know(
    alone: WriterAlone,
) -> None:
    first = Prefix.host(4, POOLS[0].network + 2)
    alone.plane.apply([SetPeer(key_number(1), frozenset({first}))])
    alone.raw.hset(names.addresses_key(alone.name), str(first), key_number(7))
    alone.unknown = "adopt"
    alone.writer = alone.new_writer()
    assert alone.addresses == {str(first): key_number(1)}
    alone.agree()


def test_peers_whose_adoption_redis_refuses_keep_their_addresses(alone: WriterAlone) -> None:
    first = Prefix.host(4, POOLS[0].network + 2)
    alone.plane.apply([SetPeer(key_number(1), frozenset({first}))])
    spoiled = (names.addresses_key(alone.name), str(first), key_number(7))
    alone.raw.hset(alone.peers_key, key_number(7), "{}")
    alone.raw.hset(*spoiled)
    alone.unknown = "adopt"
    alone.writer = alone.new_writer()
    assert key_number(1) not in alone.records
    assert alone.plane.peers()[key_number(1)].allowed_ips == {first}, "it is left alone"
    alone.raw.hdel(*spoiled[:2])
    made = alone.create()
    assert str(first) not in made["allowed_ips"], "a live peer has it"
    assert alone.plane.peers()[key_number(1)].allowed_ips == {first}
    with pytest.raises(Conflict):
        alone.create(allowed_ips=[str(first)])
