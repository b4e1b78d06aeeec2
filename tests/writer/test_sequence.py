"""A Redis that has lost commits: they are made true again before anything is decided, by the writer or the next."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from forgetful import Moment
from keys import some_key
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from servers import RedisServer
from waiting import eventually
from writer_alone import WriterAlone, carry_out

from peerlane.config import names
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Conflict, Fenced, Invalid, TimedOut
from peerlane.tasks.status.alarms import clear_alarm, read_alarms
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire import commit_record
from peerlane.workers.dataplane import SetPeer
from peerlane.workers.host.pulse import LONG, PULSE, SOON
from peerlane.workers.peers.plan import Plan
from peerlane.workers.start.loss import LOST_DATA
from peerlane.workers.store import journal, sequence
from peerlane.workers.store.journal import LOST, Made, RedoFile
from peerlane.workers.store.retry import ShutdownRequested
from peerlane.workers.store.store import Commit, Store


class Bench(WriterAlone):
    """A writer whose Redis can forget, and successors that find its redo file."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        super().__init__(server, directory)
        self.directory = directory
        self.bytes = Redis.from_url(server.url)
        self._clients.append(self.bytes)

    def moment(self) -> Moment:
        return Moment(self.bytes, self.name)

    def keep_file(self) -> None:
        """As a gateway does at its start."""
        store = self.writer.store
        store.sequence.start(RedoFile(self.directory, self.name))

    def succeed(self) -> None:
        """The writer dies without a word; the next one on this host starts."""
        before = self.writer.store
        if isinstance(before.sequence.journal.record, RedoFile):
            before.sequence.journal.record.close()
        redis = Redis.from_url(self.server.url, socket_timeout=2)
        self._clients.append(redis)
        store = Store(redis, self.name, result_ttl=600)
        store.sequence.start(RedoFile(self.directory, self.name))
        self.writer = type(self.writer)(self.policy, store, self.plane, self.writer.facts)
        self.writer.recover()

    @property
    def alarm(self) -> dict[str, Any] | None:
        alarms = [alarm for alarm in read_alarms(self.bytes, self.name) if alarm.kind == LOST_DATA]
        return dict(alarms[0].detail) if alarms else None

    def loses_redis(self, monkeypatch: pytest.MonkeyPatch, call: int, *, carried_out: bool) -> None:
        """Catch up with a Redis that goes away in this call, before or after it has repeated the commits."""
        commits = self.writer.store.sequence
        calls: list[int] = []
        redo = commits._redo  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the call that fails

        def broken(*args: Any, **options: Any) -> object:
            calls.append(1)
            if len(calls) != call:
                return redo(*args, **options)
            if carried_out:
                redo(*args, **options)
            raise RedisConnectionError("gone")

        monkeypatch.setattr(commits, "_redo", broken)
        with pytest.raises(RedisConnectionError):
            commits.catch_up()

    def refusal(self, request: str) -> type[BaseException]:
        try:
            self.outcome(request)
        except Exception as error:  # noqa: BLE001 - which one is what is asked
            return type(error)
        raise AssertionError("it was not refused")


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(redis_server, tmp_path)
    yield made
    record = made.writer.store.sequence.journal.record
    if isinstance(record, RedoFile):
        record.close()
    made.close()


def confirmed(bench: Bench) -> tuple[list[str], list[str], dict[str, Any]]:
    """Commits of every kind, of which Redis is about to lose all: keys that are there, keys that are gone, outcomes."""
    kept, gone = [some_key() for _ in range(3)], [some_key() for _ in range(2)]
    outcomes: dict[str, Any] = {}
    for key in (*kept, *gone):
        request = bench.request()
        outcomes[request] = bench.create(key, request=request)
    for key in gone:
        request = bench.request()
        outcomes[request] = bench.delete(key, request=request)
    request = bench.request()
    with pytest.raises(Conflict):
        bench.create(kept[0], request=request, keepalive=25)
    outcomes[request] = Conflict
    return kept, gone, outcomes


def is_true_again(bench: Bench, kept: list[str], gone: list[str], outcomes: dict[str, Any]) -> None:
    assert set(kept) <= set(bench.records)
    assert not set(gone) & set(bench.records)
    for request, outcome in outcomes.items():
        if outcome is Conflict:
            assert bench.refusal(request) is Conflict
        else:
            assert bench.outcome(request) == outcome
    bench.agree()


def displaced(bench: Bench) -> tuple[str, str, list[str], Moment]:
    """A deleted peer, one that has its address now, that address, and Redis as it was before the delete."""
    first, second = some_key(), some_key()
    address = bench.create(first)["allowed_ips"]
    before = bench.moment()
    bench.delete(first)
    assert bench.create(second)["allowed_ips"] == address
    return first, second, address, before


def loses_the_second_half(bench: Bench, notice: Callable[[], object]) -> None:
    """Confirm requests twice, have Redis lose the second ones, ``notice`` it: then all of them are true again."""
    first = confirmed(bench)
    before = bench.moment()
    second = confirmed(bench)
    before.come_back()
    notice()
    is_true_again(bench, *first)
    is_true_again(bench, *second)


class TestARedisThatIsBehind:
    @pytest.mark.parametrize("next_act", ["create", "delete", "refusal", "heartbeat", "load"])
    def test_is_told_by_whatever_comes_next(self, bench: Bench, next_act: str) -> None:
        resident = some_key()
        bench.create(resident)
        before = bench.moment()
        lost = confirmed(bench)
        before.come_back()
        match next_act:
            case "create":
                bench.create()
            case "delete":
                bench.delete(resident)
            case "refusal":
                with pytest.raises(Conflict):
                    bench.create(resident, keepalive=9)
            case "heartbeat":
                assert bench.writer.store.heartbeat(phase="serving")
                assert bench.writer.store.sequence.behind
                assert bench.raw.hget(names.gateway_key(bench.name), "phase") is None, "nothing is told of it"
                bench.writer.store.sequence.catch_up()
            case _:
                bench.writer.recovery_needed = "Redis has restarted"
                bench.writer.recover()
        is_true_again(bench, *lost)
        assert bench.alarm is None

    def test_is_caught_up_with_step_by_step_and_the_writer_is_not_taken_for_stuck(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be 50,000 outcomes, within a request that callers and supervisor expect to end within seconds."""
        monkeypatch.setattr(sequence, "AT_ONCE", 1)
        before = bench.moment()
        lost = confirmed(bench)
        before.come_back()
        commits: Any = bench.writer.store.sequence
        make_again, pulses = commits._make_again, list[tuple[float, float]]()  # noqa: SLF001 - one step

        def watched(made: Any, *others: Any) -> Any:
            if made:
                pulses.append((PULSE.turned, PULSE.within))
            return make_again(made, *others)

        monkeypatch.setattr(commits, "_make_again", watched)
        PULSE.turn(SOON)
        bench.create()
        is_true_again(bench, *lost)
        assert len(pulses) >= 7
        assert {within for _, within in pulses} == {LONG}
        assert len({turned for turned, _ in pulses}) == len(pulses), "each step is told"

    def test_gives_back_what_was_lost_in_the_middle(self, bench: Bench) -> None:
        loses_the_second_half(bench, bench.create)

    def test_says_existing_only_of_what_it_holds(self, bench: Bench) -> None:
        before, key = bench.moment(), some_key()
        addresses = bench.create(key)["allowed_ips"]
        before.come_back()
        again = bench.create(key)
        assert (again["outcome"], again["allowed_ips"]) == ("existing", addresses)
        assert key in bench.records

    def test_does_not_answer_a_late_request_that_had_its_outcome(self, bench: Bench) -> None:
        before, key, request = bench.moment(), some_key(), bench.request()
        deadline = bench.now() + 1_000
        answer = bench.create(key, request=request, deadline=deadline)
        before.come_back()
        again = bench.create(key, request=request, deadline=1)
        assert again == answer == bench.outcome(request)

    def test_that_has_answered_a_message_as_late_learns_its_outcome(self, bench: Bench) -> None:
        before, key, request = bench.moment(), some_key(), bench.request()
        answer = bench.create(key, request=request)
        before.come_back()
        bench.raw.set(names.result_key(request), commit_record.late(request))
        bench.create()
        assert bench.outcome(request) == answer
        bench.agree()

    def test_of_one_of_a_group_each_outcome_is_made_true_again(self, bench: Bench) -> None:
        before, store = bench.moment(), bench.writer.store
        good, late, cancelled = bench.request(), bench.request(), bench.request()
        Lanes(bench.bytes, result_ttl=600).cancel(cancelled)
        records = {each: commit_record.encode(each, {"outcome": "x"}) for each in (good, late, cancelled)}
        answers = store.commit_many(
            [Commit(good, 0, records[good]), Commit(late, 1, records[late]), Commit(cancelled, 0, records[cancelled])]
        )
        assert [answer.verdict for answer in answers] == ["committed", "expired", "duplicate"]
        before.come_back()
        store.sequence.catch_up()
        assert bench.outcome(good) == {"outcome": "x"}
        assert bench.refusal(late) is TimedOut
        assert bench.raw.get(names.result_key(cancelled)) is None, "the tombstone was its caller's"

    def test_that_has_lost_an_answer_that_did_not_come_loses_nothing(self, bench: Bench) -> None:
        sequence = bench.writer.store.sequence
        commit, before, key, lost = cast("Any", sequence)._commit, bench.moment(), some_key(), list[object]()  # noqa: SLF001

        def losing(**arguments: Any) -> object:
            answer = commit(**arguments)
            if not lost:
                lost.append(answer)
                raise RedisConnectionError("the answer was lost")
            return answer

        cast("Any", sequence)._commit = losing  # noqa: SLF001
        request = bench.request()
        created = bench.create(key, request=request)
        before.come_back()
        bench.create()
        assert bench.outcome(request) == created
        assert key in bench.records
        bench.agree()

    def test_that_has_lost_an_answer_keeps_that_commit_though_another_follows(self, bench: Bench) -> None:
        store, before = bench.writer.store, bench.moment()
        commit = cast("Any", store.sequence)._commit  # noqa: SLF001 - an answer is lost there

        def losing(**arguments: Any) -> object:
            commit(**arguments)
            raise RedisConnectionError("the answer was lost")

        first, second = bench.request(), bench.request()
        cast("Any", store.sequence)._commit = losing  # noqa: SLF001
        with pytest.raises(RedisConnectionError):
            store.commit_many([Commit(first, 0, commit_record.encode(first, {"outcome": "x"}))])
        cast("Any", store.sequence)._commit = commit  # noqa: SLF001
        store.commit_many([Commit(second, 0, commit_record.encode(second, {"outcome": "y"}))])
        before.come_back()
        store.sequence.catch_up()
        assert bench.outcome(first) == {"outcome": "x"}
        assert bench.outcome(second) == {"outcome": "y"}

    def test_and_has_given_an_address_to_somebody_else_since_leaves_it_there(self, bench: Bench) -> None:
        before, ours, theirs = bench.moment(), some_key(), some_key()
        (address, *_) = bench.create(ours)["allowed_ips"]
        before.come_back()
        bench.raw.hset(names.addresses_key(bench.name), address, theirs)
        bench.writer.store.sequence.catch_up()
        assert bench.raw.hget(names.addresses_key(bench.name), address) == theirs
        assert ours not in bench.records

    def test_follows_a_caller_that_cancelled_before_it_had_heard(self, bench: Bench) -> None:
        before, key, request = bench.moment(), some_key(), bench.request()
        bench.create(key, request=request)
        before.come_back()
        Lanes(bench.bytes, result_ttl=600).cancel(request)
        bench.create()
        bench.create()
        assert bench.refusal(request) is TimedOut
        assert key not in bench.records
        bench.agree()
        assert bench.alarm is None, "nobody was told otherwise"

    @pytest.mark.parametrize("at_once", [sequence.AT_ONCE, 1], ids=["in one call", "in several"])
    @pytest.mark.parametrize("again", ["another", "the same"])
    def test_makes_a_cancelled_delete_all_the_same_where_its_address_was_confirmed_to_somebody_since(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, again: str, at_once: int
    ) -> None:
        monkeypatch.setattr(sequence, "AT_ONCE", at_once)
        left, request = some_key(), bench.request()
        granted = bench.create(left)["allowed_ips"]
        before = bench.moment()
        bench.delete(left, request=request)
        heir = some_key() if again == "another" else left
        wish: dict[str, Any] = {} if again == "another" else {"allowed_ips": ["192.168.77.0/28"]}
        confirmed_since = bench.create(heir, **wish)["allowed_ips"]
        assert again != "another" or confirmed_since == granted
        before.come_back()
        Lanes(bench.bytes, result_ttl=600).cancel(request)
        bench.create()
        bench.create()
        assert bench.refusal(request) is TimedOut
        assert json.loads(bench.records[heir])["allowed_ips"] == confirmed_since
        assert (left in bench.records) == (heir == left)
        assert set(bench.raw.hvals(names.addresses_key(bench.name))) <= bench.records.keys()
        bench.agree()

    def test_leaves_a_peer_whose_delete_was_cancelled_where_nobody_else_has_its_address(self, bench: Bench) -> None:
        left, request = some_key(), bench.request()
        bench.create(left)
        before = bench.moment()
        bench.delete(left, request=request)
        bench.create(allowed_ips=["192.168.77.0/28"])
        before.come_back()
        Lanes(bench.bytes, result_ttl=600).cancel(request)
        bench.create()
        bench.create()
        assert bench.refusal(request) is TimedOut
        assert left in bench.records
        bench.agree()


class TestTwoWritersWithOneNumber:
    def test_are_not_one(self, bench: Bench) -> None:
        before, first = bench.moment(), bench.writer
        bench.writer = slept = bench.new_writer()
        before.come_back()
        bench.writer = follower = bench.new_writer()
        assert slept.store.epoch == follower.store.epoch > first.store.epoch
        bench.create()
        bench.writer = slept
        with pytest.raises(Fenced):
            bench.create()
        bench.writer = follower
        bench.create()
        assert len(bench.records) == 2

    def test_the_one_that_slept_registers_and_tells_nothing(self, bench: Bench) -> None:
        before = bench.moment()
        slept = bench.new_writer().store
        before.come_back()
        follower = bench.new_writer().store
        follower.register({"endpoint": "new.example.com:51820"})
        assert not slept.register({"endpoint": "old.example.com:51820"})
        assert not slept.heartbeat(phase="stopped")
        assert bench.raw.hget(names.gateway_key(bench.name), "endpoint") == "new.example.com:51820"

    def test_a_start_that_is_lost_is_made_good(self, bench: Bench) -> None:
        before = bench.moment()
        bench.writer = bench.new_writer()
        bench.writer.store.register({"endpoint": "gw.example.com:51820", "phase": "recovering"})
        epoch = bench.writer.store.epoch
        before.come_back()
        bench.raw.srem(names.GATEWAYS_KEY, bench.name)
        bench.create()
        assert bench.raw.get(names.epoch_key(bench.name)) == str(epoch)
        assert bench.raw.sismember(names.GATEWAYS_KEY, bench.name), "lists, beat and fleets find it"
        assert bench.raw.hget(names.gateway_key(bench.name), "endpoint") == "gw.example.com:51820"
        assert not bench.writer.fenced


class TestMoreIsLostThanIsKept:
    def test_an_alarm_counts_creates_and_deletes_and_the_table_makes_up_for_them(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "MOST", 2)
        gone = [some_key() for _ in range(2)]
        for key in gone:
            bench.create(key)
        before = bench.moment()
        kept = [some_key() for _ in range(5)]
        for key in gone:
            bench.delete(key)
        for key in kept:
            bench.create(key, preshared_key=some_key())
        before.come_back()
        bench.create()
        bench.create()
        assert set(kept) <= set(bench.records)
        assert not set(gone) & set(bench.records)
        bench.agree()
        # The last two creates were kept; of the rest the table knew.
        assert bench.alarm == {"outcomes": 5, "creates": 3, "deletes": 2, "failed": 0}

    def test_a_recovery_that_fails_halfway_makes_up_for_the_rest_the_next_time(
        self, own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Redis' memory is full once it has taken some of the lost peers back."""
        bench, keys = Bench(own_redis, tmp_path), [some_key() for _ in range(5)]
        monkeypatch.setattr(journal, "MOST", 0)
        monkeypatch.setattr("peerlane.workers.start.startup_commits.SLICE", 2)
        before, store = bench.moment(), bench.writer.store
        for key in keys:
            bench.create(key)
        before.come_back()
        commit, slices = store.commit, list[str]()

        def watched(request_id: str, *arguments: Any, **options: Any) -> Any:
            slices.append(request_id)
            if len(slices) == 2:
                own_redis.redis.config_set("maxmemory", "1")
            return commit(request_id, *arguments, **options)

        monkeypatch.setattr(store, "commit", watched)
        bench.writer.recovery_needed = "Redis has restarted"
        with pytest.raises(OutOfMemoryError):
            bench.writer.recover()
        own_redis.redis.config_set("maxmemory", "0")
        bench.writer.recover()
        assert set(keys) <= set(bench.records)
        bench.agree()
        bench.close()

    @pytest.mark.parametrize("keeps_a_file", [True, False], ids=["with a redo file", "without one"])
    def test_a_writer_that_dies_before_it_has_made_up_for_them_leaves_them_to_the_next(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, *, keeps_a_file: bool
    ) -> None:
        """Few enough are lost that the next start would take them for strangers on the device."""
        monkeypatch.setattr(journal, "MOST", 2)
        if keeps_a_file:
            bench.keep_file()
            bench.writer.recover()
        there = [bench.create()["public_key"] for _ in range(9)]
        before = bench.moment()
        lost = [bench.create()["public_key"] for _ in range(7)]
        before.come_back()
        bench.writer.store.sequence.catch_up()
        kept = set(bench.records)
        bench.succeed()
        assert {*there, *lost} == set(bench.plane.peers()), "confirmed peers stay on the device"
        assert bench.alarm is not None
        bench.succeed()
        assert {*there, *lost} == set(bench.plane.peers()), "nobody has cleared the alarm, which says that they stay"
        clear_alarm(bench.bytes, bench.name, LOST_DATA)
        bench.succeed()
        assert set(bench.plane.peers()) == kept, "once a person has looked, Redis is followed"

    @pytest.mark.parametrize("asked", ["alone", "in a list"])
    def test_a_peer_that_was_asked_for_again_meanwhile_is_put_back_too(self, bench: Bench, asked: str) -> None:
        there, others = some_key(), [some_key() for _ in range(3)]
        bench.create(there)
        bench.writer = bench.new_writer()  # which keeps no earlier commit
        if asked == "alone":
            assert bench.create(there)["outcome"] == "existing"
            for key in others:
                bench.create(key)
        else:
            wishes = [{"public_key": key} for key in (there, *others)]
            carry_out(bench.writer, names.CREATE_PEERS, bench.request(), {"gateway": bench.name, "wishes": wishes})
        bench.bytes.delete(*cast("list[str]", bench.bytes.keys(f"*{bench.name}*")))
        bench.create()
        bench.create()
        assert {there, *others} <= set(bench.records)
        bench.agree()
        assert bench.alarm is not None

    def test_a_peer_whose_address_was_freed_by_a_delete_that_is_lost_is_put_back(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "MOST", 1)
        first, second, _, before = displaced(bench)
        before.come_back()
        bench.create()
        bench.create()
        assert second in bench.records
        assert first not in bench.records
        bench.agree()

    def test_a_peer_of_which_redis_has_an_older_record_gives_up_the_addresses_in_that(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "MOST", 1)
        first, second, address, before = displaced(bench)
        assert bench.create(first)["allowed_ips"] != address
        before.come_back()
        bench.create()
        bench.create()
        assert {first, second} <= set(bench.records)
        bench.agree()

    def test_peers_that_have_changed_places_are_put_back(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal, "MOST", 1)
        keys = [some_key(), some_key()]
        places = [bench.create(key)["allowed_ips"] for key in keys]
        before = bench.moment()
        for key in keys:
            bench.delete(key)
        assert [bench.create(key)["allowed_ips"] for key in reversed(keys)] == places
        bench.delete(some_key())
        before.come_back()
        bench.create()
        bench.create()
        assert [json.loads(bench.records[key])["allowed_ips"] for key in reversed(keys)] == places
        bench.agree()

    @pytest.mark.parametrize("call", [1, 2], ids=["the commits", "the sequence"])
    def test_a_redis_that_repeats_them_and_goes_away_before_it_says_so(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, call: int
    ) -> None:
        monkeypatch.setattr(journal, "MOST", 1)
        before = bench.moment()
        keys = [bench.create()["public_key"] for _ in range(3)]
        before.come_back()
        bench.loses_redis(monkeypatch, call, carried_out=True)
        bench.create()
        bench.create()
        assert set(keys) <= set(bench.records)
        bench.agree()
        assert bench.alarm == {"outcomes": 2, "creates": 2, "deletes": 0, "failed": 0}

    def test_a_redis_that_goes_away_in_the_middle_is_told_of_all_of_it_afterwards(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "MOST", 4)
        monkeypatch.setattr(sequence, "AT_ONCE", 1)
        before = bench.moment()
        keys = [bench.create()["public_key"] for _ in range(8)]
        before.come_back()
        bench.loses_redis(monkeypatch, 3, carried_out=False)
        bench.create()
        bench.create()
        assert set(keys) <= set(bench.records)
        bench.agree()
        assert bench.alarm is not None
        assert bench.alarm["outcomes"] == 4

    def test_a_delete_of_what_was_not_there_is_true_again(self, bench: Bench) -> None:
        before, request = bench.moment(), bench.request()
        outcome = bench.delete(some_key(), request=request)
        before.come_back()
        bench.create()
        assert bench.outcome(request) == outcome
        assert not bench.writer.store.sequence.lost

    @pytest.mark.parametrize("by_file", [False, True], ids=["by its writer", "out of the redo file"])
    def test_an_outcome_is_kept_as_long_as_its_request_may_be_asked_again(self, bench: Bench, *, by_file: bool) -> None:
        bench.keep_file()
        bench.writer.recover()
        before, key, made, refused = bench.moment(), some_key(), bench.request(), bench.request()
        in_two_hours = bench.now() + 7_200_000
        bench.create(key, request=made, deadline=in_two_hours)
        with pytest.raises(Invalid):
            bench.create(request=refused, deadline=2**60)
        before.come_back()
        if by_file:
            bench.succeed()
        else:
            bench.writer.store.sequence.catch_up()
        left, longest = (bench.raw.ttl(names.result_key(request)) for request in (made, refused))
        assert 7_200 < left <= 7_260
        assert longest == 90_000, "a deadline is at most a day ahead, whatever its caller says"

    def test_the_redo_file_of_an_earlier_version_has_no_deadlines(self, bench: Bench) -> None:
        bench.keep_file()
        bench.writer.recover()
        before, key = bench.moment(), some_key()
        bench.create(key)
        path = bench.directory / f"{bench.name}.redo"
        lines = [json.loads(line[9:]) for line in path.read_text().splitlines()]
        for line in lines:
            line["made"] = [made[:5] for made in line["made"]] if "made" in line else None
        texts = [json.dumps({k: v for k, v in line.items() if v is not None}) for line in lines]
        path.write_text("".join(f"{zlib.crc32(text.encode()):08x} {text}\n" for text in texts))
        before.come_back()
        bench.succeed()
        assert key in bench.records

    def test_a_redis_that_was_emptied_has_lost_its_data_and_no_newer_writer(self, bench: Bench) -> None:
        kept, gone, _ = confirmed(bench)
        bench.bytes.delete(*cast("list[str]", bench.bytes.keys(f"*{bench.name}*")))
        bench.create()
        bench.create()
        assert not bench.writer.fenced
        assert set(kept) <= set(bench.records)
        assert not set(gone) & set(bench.records)
        bench.agree()


class TestTheRedoFile:
    def test_closes_the_death_of_writer_and_redis_at_one_moment(self, bench: Bench) -> None:
        bench.keep_file()
        loses_the_second_half(bench, bench.succeed)
        assert bench.alarm is None

    def test_holds_good_over_several_writers(self, bench: Bench) -> None:
        bench.keep_file()
        bench.create()
        before = bench.moment()
        first = confirmed(bench)
        bench.succeed()
        second = confirmed(bench)
        before.come_back()
        bench.succeed()
        is_true_again(bench, *first)
        is_true_again(bench, *second)

    def test_holds_a_commit_whose_writer_died_before_it_had_heard(self, bench: Bench) -> None:
        bench.keep_file()
        bench.create()
        before, sequence, key, request = bench.moment(), bench.writer.store.sequence, some_key(), bench.request()
        answer = bench.create(key, request=request)
        assert sequence.journal.record is not None
        before.come_back()
        bench.succeed()
        assert bench.outcome(request) == answer
        assert key in bench.records

    @pytest.mark.parametrize("then", ["the deadline passes", "there is time left"])
    def test_repeats_nothing_that_redis_has_not_answered(
        self, own_redis: RedisServer, tmp_path: Path, then: str
    ) -> None:
        """Redis goes away before a commit, and the writer is stopped meanwhile: its message tells whether to go on."""
        bench = Bench(own_redis, tmp_path)
        bench.keep_file()
        bench.writer.recover()
        kept, key, request = some_key(), some_key(), bench.request()
        bench.create(kept)
        deadline = bench.now() + (300 if then == "the deadline passes" else 600_000)
        own_redis.kill()
        bench.stopping = True
        with pytest.raises(ShutdownRequested):
            bench.create(key, request=request, deadline=deadline)
        own_redis.start()
        bench.stopping = False
        eventually(lambda: bench.now() > deadline or then != "the deadline passes", "its time being over")
        for _ in range(2):  # the one that follows reads the same file
            bench.succeed()
            assert list(bench.records) == [kept]
            assert bench.raw.get(names.result_key(request)) is None
        bench.agree()
        if then == "the deadline passes":
            with pytest.raises(TimedOut):
                bench.create(key, request=request, deadline=deadline)
        else:
            assert bench.create(key, request=request, deadline=deadline)["outcome"] == "created"
        bench.succeed()
        bench.agree()
        bench.close()

    def test_repeats_what_redis_has_answered_in_the_end(self, own_redis: RedisServer, tmp_path: Path) -> None:
        bench = Bench(own_redis, tmp_path)
        bench.keep_file()
        bench.writer.recover()
        key = some_key()
        before = bench.moment()
        sequence: Any = bench.writer.store.sequence
        answers = [RedisConnectionError("its answer is lost")]
        procedure = sequence._commit  # noqa: SLF001 - the call whose answer is lost

        def unheard(*arguments: Any, **options: Any) -> Any:
            answer = procedure(*arguments, **options)
            if answers:
                raise answers.pop()
            return answer

        sequence._commit = unheard  # noqa: SLF001 - likewise
        bench.create(key, deadline=bench.now() + 600_000)
        assert not answers
        before.come_back()
        bench.succeed()
        assert key in bench.records
        bench.agree()
        bench.close()

    def test_that_lacks_some_in_the_middle_or_at_its_end_says_so(self, bench: Bench) -> None:
        """Its disk was full for a while."""
        bench.keep_file()
        bench.create()
        before, record = bench.moment(), bench.writer.store.sequence.journal.record
        assert isinstance(record, RedoFile)
        bench.create()
        record.close()
        missed = [some_key() for _ in range(3)]
        for key in missed:
            bench.create(key)
        bench.succeed()
        before.come_back()
        bench.create()
        bench.create()
        assert bench.alarm == {"outcomes": 3, "creates": 3, "deletes": 0, "failed": 0}
        assert set(missed) <= set(bench.records)
        bench.agree()

    def test_of_what_was_refused_makes_nothing_true(self, bench: Bench) -> None:
        bench.keep_file()
        bench.create()
        before, request, key = bench.moment(), bench.request(), some_key()
        Lanes(bench.bytes, result_ttl=600).cancel(request)
        with pytest.raises(TimedOut):
            bench.create(key, request=request)
        before.come_back()
        bench.succeed()
        assert key not in bench.records
        bench.agree()

    def test_turns_to_a_new_file_and_loses_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("peerlane.workers.store.journal.LARGEST", 4_000)
        bench.keep_file()
        bench.create()
        bench.create()
        before, keys = bench.moment(), [some_key() for _ in range(6)]
        for key in keys:
            bench.create(key)
        assert (bench.directory / f"{bench.name}.redo.1").exists()
        before.come_back()
        bench.succeed()
        assert set(keys[-3:]) <= set(bench.records)

    def test_is_for_its_owner_and_holds_no_secret_in_clear(self, bench: Bench) -> None:
        bench.keep_file()
        bench.create()
        before, secret, key, other = bench.moment(), some_key(), some_key(), some_key()
        bench.create(key, preshared_key=secret)
        bench.create(other)
        path = bench.directory / f"{bench.name}.redo"
        assert path.stat().st_mode & 0o777 == 0o600
        assert secret not in path.read_text()
        before.come_back()
        bench.succeed()
        assert other in bench.records
        assert key not in bench.records
        assert key in bench.plane.peers(), "what the device holds stays"
        assert bench.alarm == {"outcomes": 1, "creates": 1, "deletes_at_most": 0}

    @pytest.mark.parametrize("answered", ["cancelled", "late", "not at all"])
    def test_counts_a_secret_create_as_lost_unless_its_caller_has_cancelled_it(
        self, bench: Bench, answered: str
    ) -> None:
        """Its writer died after the commit, before it had noted what Redis had answered."""
        bench.keep_file()
        bench.create()
        request, key, store = bench.request(), some_key(), bench.writer.store
        made = Made(request, commit_record.encode(request, {"outcome": "created"}), "[]", None, "", secret=True)
        store.sequence.journal.note(store.sequence.known, [made])
        bench.plane.apply([SetPeer(key, frozenset({Prefix.parse("10.8.77.7/32")}))])
        record = {"cancelled": commit_record.tombstone(request), "late": commit_record.late(request)}.get(answered)
        if record is not None:
            bench.bytes.set(names.result_key(request), record)
        bench.succeed()
        lost = answered != "cancelled"
        assert bench.alarm == ({"outcomes": 1, "creates": 1, "deletes_at_most": 0} if lost else None)
        assert (key in bench.plane.peers()) is lost, "what the device alone holds is kept where it may be a lost peer"

    def test_is_ignored_where_another_writer_has_served_since(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.keep_file()
        bench.create()
        bench.new_writer()
        bench.succeed()
        assert "is ignored: another writer has served the gateway since" in caplog.text
        assert bench.alarm is None

    def test_is_used_by_the_next_start_where_redis_goes_away_during_this_one(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.keep_file()
        before, key = bench.moment(), some_key()
        bench.create(key)

        def gone(*_: object) -> None:
            raise RedisConnectionError("gone")

        with monkeypatch.context() as away:
            away.setattr(Redis, "hget", gone)
            with pytest.raises(RedisConnectionError):
                bench.succeed()
        bench.succeed()
        assert "is ignored" not in caplog.text
        before.come_back()
        bench.succeed()
        assert key in bench.records
        assert bench.alarm is None

    def test_is_used_by_the_next_start_where_the_answers_to_two_starts_are_lost(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Redis has lost its last second, and is slow to answer whoever comes first."""
        bench.keep_file()
        before, kept, gone = bench.moment(), some_key(), some_key()
        bench.create(gone)
        bench.create(kept)
        bench.delete(gone)
        before.come_back()
        begin = sequence.CommitSequence.begin

        def unheard(*arguments: Any) -> object:
            begin(*arguments)
            raise RedisConnectionError("the answer is lost")

        with monkeypatch.context() as slow:
            slow.setattr(sequence.CommitSequence, "begin", unheard)
            for _ in range(2):
                with pytest.raises(RedisConnectionError):
                    bench.succeed()
        bench.succeed()
        assert "is ignored" not in caplog.text
        assert list(bench.records) == [kept]
        assert bench.alarm is None
        bench.agree()

    @pytest.mark.parametrize("stored", ["-1", "many", "9" * 5_000, ""])
    def test_of_a_start_is_used_whatever_somebody_has_written_beside_it(self, bench: Bench, stored: str) -> None:
        bench.keep_file()
        before, key = bench.moment(), some_key()
        bench.create(key)
        before.come_back()
        bench.raw.hset(names.gateway_key(bench.name), LOST, stored)
        bench.succeed()
        assert key in bench.records

    def test_of_another_redis_is_ignored_and_told(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.keep_file()
        key = some_key()
        bench.create(key)
        bench.bytes.delete(*cast("list[str]", bench.bytes.keys(f"*{bench.name}*")))
        bench.succeed()
        assert "this Redis knows none of its writers" in caplog.text
        assert bench.records == {}
        assert key in bench.plane.peers()
        assert bench.alarm == {"outcomes": 1, "creates": 1, "deletes_at_most": 0}

    @pytest.mark.parametrize("fails", ["unheard", "later"])
    def test_of_another_redis_is_told_by_the_next_start_where_this_one_fails(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, fails: str
    ) -> None:
        """Somebody has restored an old copy of Redis' data."""
        old = bench.moment()
        bench.keep_file()
        key = some_key()
        bench.create(key)
        old.come_back()
        bench.raw.hset(names.gateway_key(bench.name), "writer", "of long ago")
        begin = sequence.CommitSequence.begin

        def unheard(*arguments: Any) -> object:
            begin(*arguments)
            raise RedisConnectionError("the answer is lost")

        def no_device(*_: object) -> None:
            raise RedisConnectionError("gone")

        with monkeypatch.context() as failing:
            if fails == "unheard":
                failing.setattr(sequence.CommitSequence, "begin", unheard)
            else:
                failing.setattr(type(bench.writer), "recover", no_device)
            with pytest.raises(RedisConnectionError):
                bench.succeed()
        bench.succeed()
        assert bench.records == {}, "nothing is repeated on other data"
        assert key in bench.plane.peers(), "what the device holds stays"
        assert bench.alarm is not None
        assert (bench.alarm["outcomes"], bench.alarm["creates"]) == (1, 1)
        clear_alarm(bench.bytes, bench.name, LOST_DATA)
        bench.succeed()
        assert key not in bench.plane.peers(), "once a person has seen to it, Redis is followed"

    @pytest.mark.parametrize(
        "damage",
        ["truncated_line", "flipped_bit", "foreign", "not_a_file", "others_may_write", "another_gateway", "no_start"],
    )
    def test_that_is_none_of_ours_is_ignored_with_a_sentence(
        self, bench: Bench, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.keep_file()
        bench.create()
        before, key = bench.moment(), some_key()
        bench.create(key)
        path = bench.directory / f"{bench.name}.redo"
        raw = path.read_bytes()
        match damage:
            case "truncated_line":  # a writer that was killed while it wrote: what is whole counts
                path.write_bytes(raw + raw.splitlines()[-1][:50])
            case "flipped_bit":
                path.write_bytes(raw[:30] + bytes([raw[30] ^ 1]) + raw[31:])
            case "foreign":
                path.write_text("#!/bin/sh\n")
            case "not_a_file":
                path.unlink()
                path.symlink_to("/etc/passwd")
            case "others_may_write":
                path.chmod(0o666)
            case "another_gateway":
                path.rename(path.with_name("x"))
                _another(path, bench)
            case _:
                path.write_bytes(b"".join(raw.splitlines(keepends=True)[1:]))
        before.come_back()
        bench.succeed()
        if damage == "truncated_line":
            assert key in bench.records
        else:
            assert key not in bench.records
            assert "is ignored: " in caplog.text
        assert bench.create()["outcome"] == "created"

    @pytest.mark.parametrize(
        "change",
        [
            {"key": "../../etc", "before": False, "gone": [], "taken": []},
            {"key": "", "before": False, "gone": [], "taken": ["10.8.0.1; DROP"]},
            {"key": "", "before": 1, "gone": [], "taken": []},
            {"key": "", "before": False, "gone": [], "taken": [], "record": "junk"},
        ],
        ids=["key", "prefix", "before", "record"],
    )
    def test_with_a_sound_checksum_and_unsound_content_is_ignored(
        self, bench: Bench, change: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.keep_file()
        record = bench.writer.store.sequence.journal.record
        assert isinstance(record, RedoFile)
        request = bench.request()
        made = journal.Made(
            request,
            commit_record.encode(request, {"outcome": "x"}),
            json.dumps([{**change, "key": change["key"] or some_key()}]),
        )
        record.note(bench.writer.store.sequence.known, [made])
        bench.succeed()
        assert "is ignored: it holds what no writer writes" in caplog.text
        assert bench.raw.get(names.result_key(request)) is None

    @pytest.mark.parametrize("followed", [True, False], ids=["continued", "begun_anew"])
    def test_whose_last_line_is_torn_is_whole_again_after_the_next_start(self, bench: Bench, *, followed: bool) -> None:
        bench.keep_file()
        bench.create()
        path = bench.directory / f"{bench.name}.redo"
        raw = path.read_bytes()
        path.write_bytes(raw + raw.splitlines()[-1][:50])
        if not followed:
            bench.new_writer()
        bench.succeed()
        before, key = bench.moment(), some_key()
        bench.create(key)
        before.come_back()
        bench.succeed()
        assert key in bench.records

    def test_that_cannot_be_written_is_told_once_and_stops_nobody(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        (bench.directory / f"{bench.name}.redo").mkdir()
        bench.keep_file()
        bench.create()
        bench.create()
        assert caplog.text.count("cannot be written") == 1


def _another(path: Path, bench: Bench) -> None:
    other = RedoFile(path.parent, bench.name)
    other._gateway = "another"  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as that gateway's writer would
    other.begin(1, "t", 0, (0, ""), anew=True)
    other.close()
    os.chmod(path, 0o600)  # noqa: PTH101


def test_a_commit_of_a_plan_that_is_not_kept_needs_no_file(bench: Bench) -> None:
    """Without a state directory everything else holds."""
    assert bench.writer.store.sequence.journal.record is None
    key = some_key()
    before = bench.moment()
    bench.create(key)
    before.come_back()
    bench.writer.store.commit(bench.request(), 0, "{}", [Plan("absent", some_key(), None, None)])
    assert key in bench.records
