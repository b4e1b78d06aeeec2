"""What a table that holds every commit has, and a Redis that has lost some has not."""

from __future__ import annotations

import json

from keys import some_key

from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.peers.table import Loaded, PeerTable, Policy
from peerlane.workers.start.loss import differences

POLICY = Policy("gw", some_key(), (Prefix.parse("10.8.0.0/24"),))


def peer(number: int, *, created_at: int = 0) -> StoredPeer:
    return StoredPeer(some_key(), (Prefix.parse(f"10.8.0.{number}/32"),), created_at=created_at)


def loaded(*peers: StoredPeer) -> Loaded:
    stored = Loaded()
    for each in peers:
        stored.take(each)
    return stored


def test_each_peer_is_told_apart_by_its_record() -> None:
    same, created, changed, deleted = (peer(number) for number in (2, 3, 4, 5))
    earlier = changed._replace(keepalive=25)
    loss = differences(PeerTable(POLICY, [same, created, changed]), loaded(same, earlier, deleted))
    assert [(plan.before, plan.after) for plan in loss.created] == [(None, created)]
    assert [(plan.before, plan.after) for plan in loss.changed] == [(earlier, changed)]
    assert [(plan.before, plan.after) for plan in loss.deleted] == [(deleted, None)]


def test_a_peer_with_other_addresses_is_removed_and_put_back() -> None:
    ours = peer(2)
    theirs = ours._replace(allowed_ips=(Prefix.parse("10.8.0.9/32"),))
    loss = differences(PeerTable(POLICY, [ours]), loaded(theirs))
    assert [(plan.before, plan.after) for plan in loss.moved] == [(theirs, None)]
    assert [(plan.before, plan.after) for plan in loss.created] == [(None, ours)]
    assert loss.changed == loss.deleted == []


def test_a_record_written_otherwise_is_no_difference() -> None:
    same = peer(2, created_at=7)
    stored = Loaded()
    stored.take(same, json.dumps(dict(reversed(json.loads(same.record()).items())), indent=1).encode())
    loss = differences(PeerTable(POLICY, [same]), stored)
    assert (loss.created, loss.changed, loss.deleted) == ([], [], [])


def test_what_has_no_usable_record_or_is_left_out_is_no_difference() -> None:
    broken, foreign, disputed, unreadable = (peer(number) for number in (2, 3, 4, 5))
    table = PeerTable(POLICY, [disputed, unreadable])
    table.keep(broken, "its record does not parse")
    table.keep(foreign, "the device holds this peer")
    table.foreign.add(foreign.public_key)
    there = loaded(broken)
    there.broken[unreadable.public_key] = unreadable
    loss = differences(table, there, {disputed.public_key})
    assert (loss.created, loss.changed, loss.deleted) == ([], [], [])


def test_a_delete_in_dispute_stands_where_its_address_was_given_to_another() -> None:
    first, second = peer(2), peer(2)
    stays = peer(3)
    loss = differences(PeerTable(POLICY, [second]), loaded(first, stays), {first.public_key, stays.public_key})
    assert [(plan.before, plan.after) for plan in loss.deleted] == [(first, None)]
    assert [(plan.before, plan.after) for plan in loss.created] == [(None, second)]
