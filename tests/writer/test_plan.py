"""Planning: what a request comes to, decided without changing anything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from keys import key_number

from peerlane.tasks.errors import Conflict, Draining, Invalid, PoolExhausted, Refused, StorageError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import CreatePeer, DeletePeer, parse
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.dataplane import AddRoute, RemovePeer, RemoveRoute, SetPeer
from peerlane.workers.peers.plan import Plan, plan_create, plan_delete
from peerlane.workers.peers.table import PeerTable, Policy

NOW = 1_800_000_000
OWN_KEY = key_number(999)
POLICY = Policy(
    gateway="iad",
    public_key=OWN_KEY,
    pools=(Prefix.parse("10.8.0.0/28"), Prefix.parse("fd00:8::/124")),
    serves=(Prefix.parse("192.168.0.0/16"), Prefix.parse("fd77::/64")),
    own_addresses=(Prefix.parse("10.8.0.1"), Prefix.parse("fd00:8::1")),
    max_peers=1000,
)


def wish(number: int = 1, **arguments: Any) -> CreatePeer:
    return parse(CreatePeer, {"gateway": "iad", "public_key": key_number(number), **arguments})


def gone(number: int = 1, gateway: str = "iad") -> DeletePeer:
    return parse(DeletePeer, {"gateway": gateway, "public_key": key_number(number)})


def create(table: PeerTable, number: int = 1, **arguments: Any) -> Plan:
    return plan_create(table, wish(number, **arguments), now=NOW)


def created(table: PeerTable, number: int = 1, **arguments: Any) -> StoredPeer:
    """Plan, and make the plan true."""
    plan = create(table, number, **arguments)
    assert plan.after is not None
    table.put(plan.after)
    return plan.after


def table_with(*prefixes: str) -> PeerTable:
    """A table in which peer 100 holds the prefixes."""
    table = PeerTable(POLICY)
    if prefixes:
        created(table, 100, allowed_ips=list(prefixes))
    return table


def as_texts(peer: StoredPeer | None) -> list[str]:
    return [str(prefix) for prefix in peer.allowed_ips] if peer else []


class TestACreate:
    def test_without_prefixes_gets_the_smallest_free_address_of_each_family(self) -> None:
        table = PeerTable(POLICY)
        assert as_texts(create(table).after) == ["10.8.0.2/32", "fd00:8::2/128"]
        created(table, 1)
        assert as_texts(create(table, 2).after) == ["10.8.0.3/32", "fd00:8::3/128"]

    def test_takes_the_next_pool_of_a_family_when_one_is_full(self) -> None:
        pools = ("10.8.0.0/30", "10.9.0.0/30")
        policy = Policy("iad", OWN_KEY, tuple(Prefix.parse(p) for p in pools))
        table = PeerTable(policy)
        addresses = [as_texts(created(table, number)) for number in range(1, 5)]
        assert addresses == [["10.8.0.1/32"], ["10.8.0.2/32"], ["10.9.0.1/32"], ["10.9.0.2/32"]]

    def test_carries_every_wish_into_the_peer(self) -> None:
        peer = create(
            PeerTable(POLICY),
            allowed_ips=["192.168.7.0/24"],
            preshared_key=key_number(5),
            keepalive=25,
            ttl=60,
            labels={"ci": "yes"},
        ).after
        assert peer == StoredPeer(
            public_key=key_number(1),
            allowed_ips=(Prefix.parse("192.168.7.0/24"),),
            preshared_key=key_number(5),
            keepalive=25,
            ttl=60,
            expires_at=NOW + 60,
            labels={"ci": "yes"},
            created_at=NOW,
        )

    def test_sets_the_peer_and_then_routes_what_no_pool_covers(self) -> None:
        plan = create(PeerTable(POLICY), allowed_ips=["10.8.0.9", "192.168.7.0/24"], keepalive=5)
        prefixes = frozenset({Prefix.parse("10.8.0.9"), Prefix.parse("192.168.7.0/24")})
        assert plan.changes == (
            SetPeer(key_number(1), prefixes, None, 5),
            AddRoute(Prefix.parse("192.168.7.0/24")),
        )

    def test_that_is_asked_again_is_existing_and_changes_nothing(self) -> None:
        table = PeerTable(POLICY)
        peer = created(table, 1, labels={"a": "b"}, ttl=60)
        again = plan_create(table, wish(1, labels={"a": "b"}, ttl=60), now=NOW + 30)
        assert (again.outcome, again.before, again.after, again.changes) == ("existing", peer, peer, ())

    def test_that_names_the_addresses_it_was_given_is_existing(self) -> None:
        table = PeerTable(POLICY)
        peer = created(table, 1)
        assert create(table, 1, allowed_ips=as_texts(peer)).outcome == "existing"

    @pytest.mark.parametrize(
        ("field", "first", "then"),
        [
            ("allowed_ips", ["10.8.0.9"], ["10.8.0.10"]),
            ("allowed_ips", ["10.8.0.9", "fd00:8::9"], ["10.8.0.9"]),
            ("preshared_key", None, key_number(7)),
            ("preshared_key", key_number(6), key_number(7)),
            ("preshared_key", key_number(6), None),
            ("keepalive", 0, 25),
            ("ttl", None, 60),
            ("ttl", 60, 61),
            ("labels", {"a": "b"}, {"a": "c"}),
            ("pinned", False, True),
        ],
    )
    def test_of_a_known_key_with_another_wish_is_a_conflict_that_names_the_field(
        self, field: str, first: object, then: object
    ) -> None:
        table = PeerTable(POLICY)
        created(table, 1, **{field: first})
        with pytest.raises(Conflict) as caught:
            create(table, 1, **{field: then})
        assert f"with another {field};" in str(caught.value)
        assert "delete it first" in str(caught.value)
        assert key_number(6) not in str(caught.value)
        assert key_number(7) not in str(caught.value)

    def test_conflict_names_every_field_that_differs(self) -> None:
        table = PeerTable(POLICY)
        created(table, 1)
        with pytest.raises(Conflict, match="keepalive, labels, pinned"):
            create(table, 1, keepalive=1, labels={"x": "y"}, pinned=True)


class TestAddressesAreRefused:
    @pytest.mark.parametrize(
        ("taken", "asked"),
        [
            ("192.168.8.0/24", "192.168.8.0/24"),
            ("192.168.8.0/24", "192.168.8.7/32"),
            ("192.168.8.0/24", "192.168.8.128/25"),
            ("192.168.8.7/32", "192.168.8.0/24"),
            ("192.168.8.255/32", "192.168.0.0/16"),
            ("10.8.0.5/32", "10.8.0.4/30"),
            ("fd77::/80", "fd77::1/128"),
            ("fd77::1/128", "fd77::/64"),
        ],
        ids=["equal", "inside", "upper half", "around", "at the end", "in a pool", "inside, IPv6", "around, IPv6"],
    )
    def test_that_overlap_another_peers(self, taken: str, asked: str) -> None:
        with pytest.raises(Conflict) as caught:
            create(table_with(taken), 1, allowed_ips=[asked])
        assert f"{asked} overlaps {taken}" in str(caught.value)

    @pytest.mark.parametrize("asked", ["10.8.0.1/32", "10.8.0.0/30", "fd00:8::1/128", "fd00:8::/126"])
    def test_that_hold_the_gateways_own(self, asked: str) -> None:
        with pytest.raises(Conflict, match="the gateway's own address"):
            create(PeerTable(POLICY), allowed_ips=[asked])

    @pytest.mark.parametrize(
        "asked", ["0.0.0.0/0", "::/0", "10.8.0.0/27", "10.9.0.1/32", "192.0.0.0/8", "fd00:8::/123", "fd78::/64"]
    )
    def test_that_the_gateway_does_not_serve(self, asked: str) -> None:
        with pytest.raises(Invalid) as caught:
            create(PeerTable(POLICY), allowed_ips=[asked])
        assert f"{asked} is outside" in str(caught.value)
        assert "192.168.0.0/16" in str(caught.value), "it says what is served"

    def test_where_only_the_last_of_several_is_bad(self) -> None:
        with pytest.raises(Conflict):
            create(table_with("192.168.8.0/24"), 1, allowed_ips=["10.8.0.9", "192.168.8.1"])


class TestACreateIsRefused:
    def test_for_the_gateways_own_key(self) -> None:
        with pytest.raises(Invalid, match="the gateway iad itself"):
            create(PeerTable(POLICY), 999)

    def test_on_another_gateways_lane(self) -> None:
        with pytest.raises(Invalid, match="serves the gateway iad, not fra"):
            plan_create(PeerTable(POLICY), wish(gateway="fra"), now=NOW)
        with pytest.raises(Invalid, match="serves the gateway iad, not fra"):
            plan_delete(PeerTable(POLICY), gone(gateway="fra"))

    def test_when_no_address_of_a_family_is_left(self) -> None:
        table = PeerTable(POLICY)
        for number in range(1, 14):  # of 16: network, broadcast and the gateway's own are not given out
            created(table, number)
        with pytest.raises(PoolExhausted, match=r"no free IPv4 address is left in 10\.8\.0\.0/28"):
            create(table, 50)
        table.drop(key_number(6))
        assert as_texts(create(table, 50).after)[0] == "10.8.0.7/32"

    def test_when_the_gateway_is_full(self) -> None:
        table = PeerTable(Policy("iad", OWN_KEY, POLICY.pools, max_peers=2))
        created(table, 1)
        created(table, 2)
        with pytest.raises(PoolExhausted, match="it holds 2 peers, its limit"):
            create(table, 3)
        assert create(table, 2).outcome == "existing"

    def test_while_the_gateway_drains_unless_the_peer_is_there(self) -> None:
        table = PeerTable(POLICY)
        created(table, 1)
        with pytest.raises(Draining, match="use another gateway"):
            plan_create(table, wish(2), now=NOW, state="draining")
        assert plan_create(table, wish(1), now=NOW, state="draining").outcome == "existing"
        assert plan_delete(table, gone(1)).outcome == "deleted"

    def test_where_there_are_no_pools_and_no_prefixes_are_named(self) -> None:
        with pytest.raises(Invalid, match="name the allowed_ips"):
            create(PeerTable(Policy("iad", OWN_KEY, ())))

    def test_where_the_stored_record_does_not_parse(self) -> None:
        table = table_with("192.168.8.0/24")
        table.broken[key_number(100)] = "its record is garbage"
        with pytest.raises(StorageError, match="its record is garbage; delete the peer"):
            create(table, 100)


class TestADelete:
    def test_removes_routes_and_peer(self) -> None:
        table = table_with("10.8.0.9/32", "192.168.8.0/24")
        plan = plan_delete(table, gone(100))
        assert plan.outcome == "deleted"
        assert plan.after is None
        assert plan.changes == (RemoveRoute(Prefix.parse("192.168.8.0/24")), RemovePeer(key_number(100)))

    def test_of_what_is_not_there_is_absent_and_changes_nothing(self) -> None:
        plan = plan_delete(PeerTable(POLICY), gone(1))
        assert (plan.outcome, plan.before, plan.after, plan.changes) == ("absent", None, None, ())

    def test_gives_the_addresses_back(self) -> None:
        table = table_with("192.168.8.0/24")
        table.drop(key_number(100))
        assert create(table, 1, allowed_ips=["192.168.0.0/16"]).outcome == "created"


class TestATable:
    def test_is_not_built_of_peers_that_overlap(self) -> None:
        peers = [
            StoredPeer(public_key=key_number(n), allowed_ips=(Prefix.parse(text),))
            for n, text in ((1, "10.8.0.4/30"), (2, "10.8.0.6/32"))
        ]
        with pytest.raises(ValueError, match=r"10\.8\.0\.4/30 and 10\.8\.0\.6/32"):
            PeerTable(POLICY, peers)

    def test_is_not_built_of_peers_that_hold_the_same(self) -> None:
        peers = [StoredPeer(public_key=key_number(n), allowed_ips=(Prefix.parse("10.8.0.4"),)) for n in (1, 2)]
        with pytest.raises(ValueError, match="same prefix"):
            PeerTable(POLICY, peers)

    @given(st.permutations(range(1, 9)))
    def test_is_the_same_whatever_was_put_and_dropped_in_between(self, order: list[int]) -> None:
        table = PeerTable(POLICY)
        for number in range(1, 9):
            created(table, number)
        before = (dict(table.peers), set(table.index))
        dropped = [table.peers[key_number(number)] for number in order]
        for peer in dropped:
            table.drop(peer.public_key)
        assert (table.peers, len(table.index)) == ({}, 0)
        for peer in reversed(dropped):
            table.put(peer)
        assert (table.peers, set(table.index)) == before


_PREFIXES = st.lists(
    st.sampled_from(
        [f"10.8.0.{n}" for n in range(16)]
        + ["10.8.0.4/30", "10.8.0.8/29", "192.168.0.0/16", "192.168.1.0/24", "192.168.1.7", "fd00:8::4/126"]
        + ["fd00:8::5", "fd77::/64", "fd77::1", "10.9.0.0/24"]
    ),
    min_size=1,
    max_size=3,
)


class PlansMadeTrue(RuleBasedStateMachine):
    """Any requests in any order: what is granted never overlaps, what is refused changes nothing."""

    @initialize()
    def begin(self) -> None:
        self.table = PeerTable(POLICY)

    def _snapshot(self) -> tuple[dict[str, StoredPeer], set[Prefix], list[Prefix | None]]:
        return dict(self.table.peers), set(self.table.index), [pool.smallest_free() for pool in self.table.pools]

    @rule(number=st.integers(1, 20), prefixes=st.none() | _PREFIXES, keepalive=st.sampled_from([0, 25]))
    def ask_for_a_peer(self, number: int, prefixes: list[str] | None, keepalive: int) -> None:
        before = self._snapshot()
        arguments: dict[str, Any] = {"keepalive": keepalive} | ({"allowed_ips": prefixes} if prefixes else {})
        try:
            plan = create(self.table, number, **arguments)
        except Refused:
            assert self._snapshot() == before
            return
        assert self._snapshot() == before, "planning changes nothing"
        assert plan.after is not None
        if plan.outcome == "created":
            assert key_number(number) not in before[0]
            assert not any(p.overlaps(q) for p in plan.after.allowed_ips for q in before[1])
            self.table.put(plan.after)
        else:
            assert plan.changes == ()
            assert plan.after is plan.before
            assert plan.after == before[0][key_number(number)]

    @rule(number=st.integers(1, 20))
    def ask_for_its_removal(self, number: int) -> None:
        before = self._snapshot()
        plan = plan_delete(self.table, gone(number))
        assert self._snapshot() == before, "planning changes nothing"
        assert plan.outcome == ("deleted" if key_number(number) in before[0] else "absent")
        self.table.drop(plan.public_key)

    @rule(number=st.integers(21, 30))
    def grant_and_take_back(self, number: int) -> None:
        before = self._snapshot()
        try:
            peer = created(self.table, number)
        except PoolExhausted:
            return
        assert plan_delete(self.table, gone(number)).before == peer
        self.table.drop(peer.public_key)
        assert self._snapshot() == before, "put and drop are inverse"

    @invariant()
    def index_and_peers_agree(self) -> None:
        prefixes = [prefix for peer in self.table.peers.values() for prefix in peer.allowed_ips]
        assert sorted(self.table.index) == sorted(prefixes)
        for own in POLICY.own_addresses:
            assert not any(own.overlaps(prefix) for prefix in prefixes)


TestAnyRequestsInAnyOrder = PlansMadeTrue.TestCase
