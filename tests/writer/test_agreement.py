"""What a writer has in memory agrees with Redis: after a restart on broken records, and after an undone request."""

from __future__ import annotations

import time

import pytest
from gateways import MakeSettings
from keys import some_key
from writer_alone import WriterAlone, carry_out

from peerlane.config import names
from peerlane.config.redis.client import connect
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Conflict
from peerlane.tasks.lane.result import await_record
from peerlane.tasks.redis.subscription import Listening
from peerlane.tasks.wire import commit_record
from peerlane.workers.host import garbage
from peerlane.workers.peers.plan import Plan


def test_addresses_of_a_record_that_does_not_parse_are_nobody_elses_after_a_restart(bench: WriterAlone) -> None:
    broken = bench.create()
    bench.raw.hset(bench.peers_key, broken["public_key"], "{ no record")
    bench.writer = bench.new_writer()
    other = bench.create()
    assert not set(other["allowed_ips"]) & set(broken["allowed_ips"])
    with pytest.raises(Conflict, match="another peer holds"):
        bench.create(allowed_ips=[broken["allowed_ips"][0]])


def test_a_peer_that_redis_has_not_is_settled_out_of_the_table(bench: WriterAlone) -> None:
    """Whoever has changed Redis meanwhile: what is undone is what Redis says, not what the writer had."""
    made = bench.create()
    peer = bench.writer.table.peers[made["public_key"]]
    bench.raw.hdel(bench.peers_key, made["public_key"])
    bench.raw.hdel(names.addresses_key(bench.name), *made["allowed_ips"])
    bench.writer.settle([Plan("deleted", made["public_key"], peer, None)])
    assert made["public_key"] not in bench.writer.table.peers
    assert made["public_key"] not in bench.plane.peers()
    assert bench.create()["allowed_ips"] == made["allowed_ips"], "its addresses are free"


def test_a_victim_that_was_pinned_meanwhile_stays(bench: WriterAlone) -> None:
    made = bench.create(pinned=True)
    victim = {"public_key": made["public_key"], "reason": "idle", "created_at": made["created_at"]}
    wish = {"gateway": bench.name, "victims": [victim]}
    answer = carry_out(bench.writer, names.REMOVE_PEERS, bench.request(), wish)
    assert answer["kept"] == {made["public_key"]: "pinned"}
    assert answer["removed"] == []
    assert made["public_key"] in bench.plane.peers()
    assert made["public_key"] in bench.records


def test_an_outcome_between_the_look_and_the_subscription_is_found(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, bench: WriterAlone
) -> None:
    redis = connect(settings())
    lanes, request = Lanes(redis, result_ttl=60), names.request_id(bench.name, "between")
    record = commit_record.encode(request, {"outcome": "absent", "gateway": bench.name, "public_key": some_key()})
    listen = lanes.listeners.listen

    def late(request_id: str) -> Listening:
        bench.raw.set(names.result_key(request_id), record, ex=60)  # and was published, to nobody
        return listen(request_id)

    monkeypatch.setattr(lanes.listeners, "listen", late)
    assert await_record(lanes, request, time.monotonic() + 3) == record
    lanes.listeners.close()
    redis.close()


def test_new_peers_are_put_aside_from_the_garbage_collector_many_at_a_time(
    bench: WriterAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[int] = []
    monkeypatch.setattr(garbage, "EVERY", 3)
    monkeypatch.setattr(garbage, "put_aside", lambda: created.append(bench.writer.created))
    for _ in range(7):
        bench.create()
    assert created == [3, 6]
