"""Addresses that Redis assigns to peers that do not have them are freed, and no request fails because of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from forgetful import Moment
from keys import some_key
from redis import Redis
from servers import RedisServer
from writer_alone import WriterAlone

from peerlane.config import names
from peerlane.tasks.errors import Conflict
from peerlane.workers.start import stray_addresses
from peerlane.workers.store.procedures import load
from peerlane.workers.store.store import Store
from peerlane.workers.writer.agreement import CHANGED


def assign(bench: WriterAlone, owner: str, *addresses: str) -> None:
    bench.raw.hset(names.addresses_key(bench.name), mapping=dict.fromkeys(addresses, owner))


def test_a_peer_is_created_at_the_address_of_one_whose_record_alone_was_removed(bench: WriterAlone) -> None:
    """By hand, say; the writer may still hold the peer."""
    removed, left = bench.create(), bench.create()
    bench.raw.hdel(bench.peers_key, removed["public_key"])
    bench.writer.recover()
    # From here on no count shows the stray: a peer lacks its entry.
    bench.raw.hdel(names.addresses_key(bench.name), left["allowed_ips"][1])
    made = bench.create()
    assert made["allowed_ips"] == removed["allowed_ips"]
    bench.delete(left["public_key"])
    bench.agree()


def test_the_first_request_that_meets_one_frees_all_and_is_carried_out(bench: WriterAlone) -> None:
    peer, unknown = bench.create(), some_key()
    assign(bench, unknown, "10.8.0.3/32", "10.8.0.4/32", "192.168.7.0/24")
    assign(bench, peer["public_key"], "fd00:8::3/128")
    assert bench.create()["allowed_ips"] == ["10.8.0.3/32", "fd00:8::3/128"]
    assert bench.create(allowed_ips=["192.168.7.0/25"])["outcome"] == "created"
    bench.agree()


def test_a_start_frees_them_and_tells_how_many(bench: WriterAlone, caplog: pytest.LogCaptureFixture) -> None:
    peer, unknown = bench.create(preshared_key=some_key()), some_key()
    record = bench.records
    assign(bench, unknown, "10.8.0.3/32")
    assign(bench, peer["public_key"], "10.8.0.9/32")
    mended = bench.writer.recover().mended
    assert mended == {stray_addresses.KIND: 2}
    assert "2 addresses were assigned to peers that do not have them, and are free again" in caplog.text
    assert f"10.8.0.3/32 of {unknown}" in caplog.text
    assert bench.records == record, "no record is written"
    bench.agree()
    assert bench.writer.recover().mended == {}


def test_a_start_without_any_reads_no_address(bench: WriterAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        bench.create()
    read: list[Store] = []
    monkeypatch.setattr(Store, "addresses", read.append)
    bench.new_writer()
    assert not read


def test_addresses_of_a_record_that_does_not_parse_stay(bench: WriterAlone) -> None:
    broken, unknown = bench.create(), some_key()
    bench.raw.hset(bench.peers_key, broken["public_key"], "{ no record")
    assign(bench, unknown, "10.8.0.3/32")
    bench.writer = bench.new_writer()
    assert bench.addresses == dict.fromkeys(broken["allowed_ips"], broken["public_key"])
    assert bench.create()["allowed_ips"] == ["10.8.0.3/32", "fd00:8::3/128"]


def test_addresses_of_the_younger_of_two_peers_that_overlap_stay(bench: WriterAlone) -> None:
    older, younger = bench.create(allowed_ips=["192.168.9.0/24"]), some_key()
    record = f'{{"v":1,"allowed_ips":["192.168.9.0/25"],"created_at":{older["created_at"] + 9}}}'
    bench.raw.hset(bench.peers_key, younger, record)
    assign(bench, younger, "192.168.9.0/25")
    bench.writer = bench.new_writer()
    assert bench.addresses == {"192.168.9.0/24": older["public_key"], "192.168.9.0/25": younger}


@pytest.mark.parametrize("owner", ["nobody", "", b"\xff" * 32], ids=["text", "empty", "bytes"])
def test_what_is_assigned_to_no_public_key_is_left_and_given_to_nobody(bench: WriterAlone, owner: str | bytes) -> None:
    bench.raw.hset(names.addresses_key(bench.name), "10.8.0.2/32", owner)
    bench.raw.hset(names.addresses_key(bench.name), "no prefix", owner)
    for number in (3, 4):
        made = bench.create()
        assert made["allowed_ips"][0] == f"10.8.0.{number}/32"
    with pytest.raises(Conflict):
        bench.create(allowed_ips=["10.8.0.2"])
    assert bench.writer.recovery_needed is None


def test_a_few_are_held_at_a_time(bench: WriterAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stray_addresses, "AT_ONCE", 3)
    monkeypatch.setattr("peerlane.tasks.redis.hash_pages.LARGE_PAGE", 1)
    bench.create()
    for number in range(40, 50):
        assign(bench, some_key(), f"10.8.0.{number}/32")
    assert bench.writer.recover().mended == {stray_addresses.KIND: 10}
    bench.agree()


def test_a_redis_whose_memory_is_full_keeps_them_and_the_recovery_goes_on(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    load(own_redis.redis)
    bench = WriterAlone(own_redis, tmp_path)
    assign(bench, some_key(), "10.8.0.2/32")
    own_redis.redis.config_set("maxmemory", "1")
    bench.writer.recover()
    own_redis.redis.config_set("maxmemory", "0")
    assert bench.create()["allowed_ips"][0] == "10.8.0.3/32"
    assert bench.writer.recover().mended == {stray_addresses.KIND: 1}
    assert bench.create()["allowed_ips"][0] == "10.8.0.2/32"
    bench.agree()
    bench.close()


def test_one_that_got_a_record_meanwhile_is_left_to_it(bench: WriterAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that writes the address first."""
    key = some_key()
    assign(bench, key, "10.8.0.2/32")
    addresses = Store.addresses

    def and_then_the_record(store: Store) -> object:
        yield from addresses(store)
        bench.raw.hset(bench.peers_key, key, '{"v":1,"allowed_ips":["10.8.0.2/32"]}')

    monkeypatch.setattr(Store, "addresses", and_then_the_record)
    assert bench.writer.recover().mended == {}
    bench.writer.recovery_needed = CHANGED
    assert bench.create()["allowed_ips"][0] == "10.8.0.3/32"
    bench.agree()


def test_a_redis_that_forgets_that_it_was_freed_is_told_again(bench: WriterAlone) -> None:
    redis = Redis.from_url(bench.server.url)
    assign(bench, some_key(), "10.8.0.2/32")
    before = Moment(redis, bench.name)
    made = bench.create()
    assert made["allowed_ips"][0] == "10.8.0.2/32"
    before.come_back()
    bench.create()
    assert made["public_key"] in bench.records
    bench.agree()
    redis.close()
