"""A start serves the lane before the last cold peer is back: what is asked for in between is settled at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gateways import MakeClient, MakeGateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keys import key_number, some_key
from redis import Redis
from servers import RedisServer
from waiting import eventually
from writer_alone import WriterAlone, carry_out

from peerlane.config import names
from peerlane.tasks.errors import Conflict, Fenced, KernelError
from peerlane.workers.dataplane import RemovePeer, SetPeer
from peerlane.workers.peers.drift import drifts
from peerlane.workers.request.request import Delivery
from peerlane.workers.start import recovery
from peerlane.workers.writer import filling
from peerlane.workers.writer.filling import Filling
from peerlane.workers.writer.group import carry_out_many

HOT, COLD, SLICE = 4, 12, 3
NEWEST = 1_800_000_000


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "AT_ONCE", HOT)
    monkeypatch.setattr(recovery, "BATCH", 2)
    monkeypatch.setattr(filling, "SLICE", SLICE)
    monkeypatch.setattr(filling, "QUIET_AFTER", float("inf"))


class Filled(WriterAlone):
    """A gateway whose device was lost: a writer has started on an empty one, and has a few peers back."""

    def __init__(self, server: RedisServer, directory: Path, *, expired: Sequence[int] = ()) -> None:
        super().__init__(server, directory)
        self.keys = [key_number(number) for number in range(1, HOT + COLD + 1)]
        for number, key in enumerate(self.keys):
            outside: dict[str, Any] = {"allowed_ips": [f"192.168.7.{number}/32"]} if number % 4 == 3 else {}
            self.create(key, **({"ttl": 3600} if number in expired else {}), **outside)
            at = NEWEST - (len(self.keys) - number)  # the later ones were seen last
            self.raw.hset(names.seen_key(self.name), key, f"1 {at} 0 0 0 0 0")
        for number in expired:
            record = json.loads(self.records[self.keys[number]])
            self.raw.hset(self.peers_key, self.keys[number], json.dumps(record | {"expires_at": 1}))
        self.restart()

    def restart(self) -> None:
        """A new writer on a new, empty device."""
        before, self.plane = self.plane, type(self.plane)()
        self.plane.open(self.spec)
        before.close()
        self.writer = self.new_writer()
        self.filling = Filling(self.writer)

    @property
    def on_device(self) -> set[str]:
        return set(self.plane.peers())

    def fill(self) -> None:
        """Until all are back; a writer that has to recover does so, as its ticks have it."""
        for _ in range(100):
            if self.writer.recovery_needed is not None:
                with suppress(KernelError):
                    self.writer.recover()
            if not self.filling.step() and self.writer.recovery_needed is None:
                break
        self.agree()


@pytest.fixture
def filled(redis_server: RedisServer, tmp_path: Path) -> Iterator[Filled]:
    filled = Filled(redis_server, tmp_path)
    yield filled
    filled.close()


class TestAStart:
    def test_has_those_back_that_were_seen_last_and_the_others_follow_in_that_order(self, filled: Filled) -> None:
        newest_first = list(reversed(filled.keys))
        assert filled.on_device == set(newest_first[:HOT])
        assert len(filled.writer.table.coming) == COLD
        for there in range(HOT + SLICE, HOT + COLD + 1, SLICE):
            left = filled.filling.step()
            assert filled.on_device == set(newest_first[:there])
            assert left == HOT + COLD - there
        filled.agree()

    def test_adds_twice_as_many_at_a_time_while_nobody_asks(
        self, filled: Filled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [100.0]
        monkeypatch.setattr(filling, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        monkeypatch.setattr(filling, "QUIET_AFTER", 1.0)
        assert filled.filling.step() == COLD - SLICE, "somebody may have waited for the start"
        clock[0] += 1.0
        assert filled.filling.step() == COLD - 3 * SLICE
        filled.create()
        clock[0] += 1.0
        assert filled.filling.step() == COLD - 4 * SLICE == 0
        filled.agree()

    def test_has_the_routes_of_all_at_once(self, filled: Filled) -> None:
        assert filled.plane.routes() == filled.writer.table.routed()
        assert len(filled.plane.routes()) == (HOT + COLD) // 4


class TestAPeerThatIsStillToCome:
    def test_is_on_the_device_before_it_is_told_to_exist(self, filled: Filled) -> None:
        key = filled.keys[0]
        assert filled.create(key)["outcome"] == "existing"
        assert next(change for change in filled.plane.made if isinstance(change, SetPeer)).public_key == key
        assert key in filled.on_device
        assert len(filled.writer.table.coming) == COLD - 1
        filled.fill()
        assert [change for change in filled.plane.made if isinstance(change, SetPeer)].count(
            filled.plane.made[0]  # type: ignore[arg-type] - the one above
        ) == 1, "it is not added again"

    def test_refuses_another_wish_and_comes_in_its_turn(self, filled: Filled) -> None:
        with pytest.raises(Conflict):
            filled.create(filled.keys[0], keepalive=9)
        assert filled.keys[0] not in filled.on_device
        filled.fill()

    @pytest.mark.parametrize("number", [0, 3], ids=["in a pool", "with a route"])
    def test_can_be_deleted_and_never_comes(self, filled: Filled, number: int) -> None:
        key = filled.keys[number]
        assert filled.delete(key)["outcome"] == "deleted"
        assert not any(isinstance(change, (SetPeer, RemovePeer)) for change in filled.plane.made)
        filled.fill()
        assert key not in filled.on_device

    def test_can_be_deleted_and_made_anew_with_another_wish(self, filled: Filled) -> None:
        filled.delete(filled.keys[0])
        filled.create(filled.keys[0], keepalive=9)
        assert filled.plane.peers()[filled.keys[0]].keepalive == 9
        filled.fill()

    def test_keeps_its_addresses_from_others(self, filled: Filled) -> None:
        with pytest.raises(Conflict):
            filled.create(some_key(), allowed_ips=["10.8.0.2/32"])
        filled.fill()

    def test_is_made_anew_where_it_has_expired(self, redis_server: RedisServer, tmp_path: Path) -> None:
        gateway = Filled(redis_server, tmp_path, expired=[0, 3])
        for number in (0, 3):
            outside: dict[str, Any] = {"allowed_ips": [f"192.168.7.{number}/32"]} if number == 3 else {}
            made = gateway.create(gateway.keys[number], ttl=3600, **outside)
            assert made["outcome"] == "created"
            assert gateway.keys[number] in gateway.on_device
        gateway.fill()
        gateway.close()

    def test_is_swept_without_ever_coming(self, redis_server: RedisServer, tmp_path: Path) -> None:
        gateway = Filled(redis_server, tmp_path, expired=[0, 3])
        victims = [
            {
                "public_key": gateway.keys[n],
                "reason": "expired",
                "created_at": gateway.writer.table.peers[key].created_at,
            }
            for n, key in ((0, gateway.keys[0]), (3, gateway.keys[3]))
        ]
        report = carry_out(
            gateway.writer, names.REMOVE_PEERS, gateway.request(), {"gateway": gateway.name, "victims": victims}
        )
        assert len(report["removed"]) == 2
        gateway.fill()
        assert len(gateway.on_device) == HOT + COLD - 2
        gateway.close()

    def test_is_mended_when_a_reconciliation_asks_for_it(self, filled: Filled) -> None:
        wish = {"gateway": filled.name, "keys": [filled.keys[0]]}
        carry_out(filled.writer, names.MEND_PEERS, filled.request(), wish)
        assert filled.keys[0] in filled.on_device
        assert filled.keys[0] not in filled.writer.table.coming
        filled.fill()

    def test_is_settled_in_a_group_too(self, filled: Filled) -> None:
        wanted = [{"public_key": key} for key in filled.keys[:2]] + [{"public_key": some_key()}]
        gone = filled.keys[2]
        asked = [(names.CREATE_PEER, wish) for wish in wanted] + [(names.DELETE_PEER, {"public_key": gone})]
        requests = [
            filled.writer.request(task, Delivery(filled.request(), f"tag{n}"), {"gateway": filled.name, **wish})
            for n, (task, wish) in enumerate(asked)
        ]
        outcomes = carry_out_many(filled.writer, requests)
        kinds = [outcome.result["outcome"] for outcome in outcomes if outcome and isinstance(outcome.result, dict)]
        assert kinds == ["existing", "existing", "created", "deleted"]
        assert {*filled.keys[:2]} <= filled.on_device
        assert not any(key in filled.writer.table.coming for key in (*filled.keys[:2], gone)), "none is to come again"
        filled.fill()
        assert gone not in filled.on_device

    def test_is_settled_in_a_group_whose_first_try_the_device_refuses(self, filled: Filled) -> None:
        requests = [
            filled.writer.request(
                names.CREATE_PEER,
                Delivery(filled.request(), f"tag{n}"),
                {"gateway": filled.name, "public_key": filled.keys[n]},
            )
            for n in (0, 1)
        ]
        filled.plane.fail_next(after=1)
        outcomes = carry_out_many(filled.writer, requests)
        assert [outcome is not None and isinstance(outcome.result, dict) for outcome in outcomes] == [True, True]
        assert {*filled.keys[:2]} <= filled.on_device
        filled.fill()

    def test_is_refused_where_the_device_refuses_it_and_comes_later(self, filled: Filled) -> None:
        filled.plane.fail_next()
        with pytest.raises(KernelError):
            filled.create(filled.keys[0])
        filled.fill()
        assert filled.keys[0] in filled.on_device


class TestWhatGoesWrongOnTheWay:
    def test_a_device_that_refuses_a_slice_is_compared_with_redis_anew(self, filled: Filled) -> None:
        filled.plane.fail_next(after=1)
        assert filled.filling.step() == 0
        assert filled.writer.recovery_needed == "peers could not be added"
        assert filled.filling.step() == 0, "nothing is added before that"
        filled.fill()

    def test_a_device_that_breaks_in_an_unforeseen_way_too(self, filled: Filled) -> None:
        filled.plane.breaks = True
        assert filled.filling.step() == 0
        filled.fill()

    def test_a_device_that_is_lost_is_filled_anew(self, filled: Filled) -> None:
        filled.filling.step()
        filled.plane.apply([RemovePeer(key) for key in filled.on_device])
        filled.writer.recovery_needed = "the device is gone"
        filled.fill()

    def test_a_writer_that_was_replaced_adds_nothing(self, filled: Filled) -> None:
        filled.raw.incr(names.epoch_key(filled.name))
        before = filled.on_device
        with pytest.raises(Fenced):
            filled.create()
        assert filled.filling.step() == 0
        assert filled.on_device == before

    def test_a_restart_on_a_device_that_holds_a_part_goes_on(self, filled: Filled) -> None:
        filled.filling.step()
        installed = filled.on_device
        filled.writer = filled.new_writer()
        filled.filling = Filling(filled.writer)
        assert installed <= filled.on_device
        assert len(filled.on_device) == len(installed) + HOT
        filled.fill()


actions = st.lists(
    st.tuples(
        st.sampled_from(["create", "create", "other", "delete", "step", "step", "refuse", "restart", "new"]),
        st.integers(0, HOT + COLD - 1),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=actions)
def test_whatever_is_asked_on_the_way_device_and_redis_are_equal_in_the_end(
    redis_server: RedisServer, tmp_path: Path, todo: list[tuple[str, int]]
) -> None:
    gateway = Filled(redis_server, tmp_path, expired=[1, 7])
    try:
        for action, number in todo:
            key = gateway.keys[number]
            try:
                match action:
                    case "create":
                        gateway.create(key)
                        assert key in gateway.on_device
                    case "other":
                        gateway.create(key, keepalive=7)
                    case "delete":
                        gateway.delete(key)
                        assert key not in gateway.on_device
                    case "step":
                        gateway.filling.step()
                    case "refuse":
                        gateway.plane.fail_next(after=number % 3)
                    case "restart":
                        gateway.restart()
                    case _:
                        gateway.create()
            except (Conflict, KernelError):
                pass
            table = gateway.writer.table
            if gateway.writer.recovery_needed is None:
                missing = {d.subject for d in drifts(table, gateway.plane.peers().values(), gateway.plane.routes())}
                assert missing == {key for key in table.peers if key in table.coming}, "nothing else is lacking"
        gateway.fill()
    finally:
        gateway.close()


#: As a gateway has it, whatever the fixture says.
AT_ONCE = recovery.AT_ONCE
PEERS = AT_ONCE + 2_000


def crowd(redis: Redis, name: str, count: int) -> None:
    """Peers in Redis, as a writer that is gone has left them."""
    peers = {key_number(n): f'{{"v":1,"allowed_ips":["10.8.{n >> 8}.{n & 255}/32"]}}' for n in range(10, 10 + count)}
    owners = {f"10.8.{n >> 8}.{n & 255}/32": key_number(n) for n in range(10, 10 + count)}
    redis.hset(names.peers_key(name), mapping=peers)  # type: ignore[arg-type] - redis-py's mapping is invariant
    redis.hset(names.addresses_key(name), mapping=owners)  # type: ignore[arg-type] - as above


class TestAGatewayThatFills:
    def test_serves_tells_the_figure_and_goes_on_after_a_kill(
        self, redis_server: RedisServer, tmp_path: Path, gateway: MakeGateway, client: MakeClient
    ) -> None:
        control = tmp_path / "failpoints"
        control.write_text("between_fillings:sleep:0.2")
        site = gateway(start=False, pools=("10.8.0.0/16",), test_failpoints=control)
        crowd(redis_server.redis, site.name, PEERS)
        site.start()
        assert int(site.look().facts["recovering"]) > 0, "the lane is served while peers are still to be added"
        caller = client(site)
        assert caller.create_peer(some_key()).outcome == "created"
        coldest = key_number(10 + PEERS - 1)
        assert caller.create_peer(coldest).outcome == "existing"
        assert caller.delete_peer(key_number(10 + PEERS - 2)).outcome == "deleted"
        control.write_text("between_fillings:kill")
        site.await_end()
        site.start()
        eventually(lambda: "all peers are on the device" in site.log, "the last peer being back")
        eventually(lambda: site.look().facts["recovering"] == "0", "a heartbeat that tells so")
        assert int(site.look().facts["peers"]) == PEERS
        assert f"{PEERS - AT_ONCE} peers are still to be added" in site.log

    def test_ends_at_the_next_slice_when_it_is_asked_to(
        self, redis_server: RedisServer, tmp_path: Path, gateway: MakeGateway
    ) -> None:
        control = tmp_path / "failpoints"
        control.write_text("between_fillings:hang")
        site = gateway(start=False, pools=("10.8.0.0/16",), test_failpoints=control)
        crowd(redis_server.redis, site.name, PEERS)
        site.start(wait=False)
        eventually(lambda: "peers are still to be added" in site.log, "a filling")
        os.kill(site.pid, signal.SIGTERM)
        control.write_text("")
        assert site.await_end() == 0
        assert "all peers are on the device" not in site.log
        site.start()
        eventually(lambda: "all peers are on the device" in site.log, "the last peer being back")
        eventually(lambda: site.look().facts.get("peers") == str(PEERS), "a heartbeat that counts them")
