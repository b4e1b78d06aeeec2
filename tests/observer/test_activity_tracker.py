"""What the observer keeps of its readings, on a real Redis, from a device in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from devices import memory_rig, prefixes
from gateways import MakeSettings, close, new_name
from keys import key_number
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.tasks.errors import KernelError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.stored_peer import Peer
from peerlane.tasks.wire.upkeep import SweepGateway
from peerlane.workers.dataplane import RemovePeer, SetPeer
from peerlane.workers.dataplane.counters import PeerCounters
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.store.activity import StoredActivity, decode, encode
from peerlane.workers.upkeep import activity_tracker as watching
from peerlane.workers.upkeep import sweeper as sweeping
from peerlane.workers.upkeep.activity_tracker import ActivityTracker
from peerlane.workers.upkeep.clock_monitor import ClockMonitor
from peerlane.workers.upkeep.sweep_policy import Limits
from peerlane.workers.upkeep.sweeper import Sweeper
from peerlane.workers.upkeep.writer_requests import WriterRequests

ONE, TWO = key_number(1), key_number(2)
NOW = 1_800_000_000


def refused(*_: object, **__: object) -> int:
    raise RedisConnectionError


class Flawed:
    """A device in memory that fails, or is changed while it is read."""

    def __init__(self, plane: MemoryDataPlane) -> None:
        self.plane = plane
        self.complete = True
        self.fails = False
        #: How often it was read.
        self.readings = 0

    def counters(self) -> Iterator[list[PeerCounters]]:
        self.readings += 1
        if self.fails:
            raise KernelError("there is no such device")
        yield from self.plane.counters()

    def close(self) -> None:
        self.plane.close()


@dataclass
class Watched:
    """One device and where its counters go."""

    plane: MemoryDataPlane
    source: Flawed
    redis: Redis
    name: str
    #: The device's number.
    index: int = 1

    def counted(self) -> ActivityTracker:
        """What an observer makes at its start."""
        return ActivityTracker(self.redis, self.name, self.source, lambda: self.index)

    def stored(self, key: str) -> int | None:
        """Last seen, as Redis has it."""
        entry = self.redis.hget(names.seen_key(self.name), key)
        seen = decode(entry) if isinstance(entry, bytes) else None
        return None if seen is None else seen.last_seen


@pytest.fixture
def watched(settings: MakeSettings, tmp_path: Path) -> Iterator[Watched]:
    redis = connect(settings())
    with memory_rig(tmp_path) as rig:
        assert isinstance(rig.plane, MemoryDataPlane)
        rig.plane.open(rig.spec)
        for number, key in enumerate((ONE, TWO), 2):
            rig.plane.apply([SetPeer(key, prefixes(f"10.8.0.{number}"))])
        yield Watched(rig.plane, Flawed(rig.plane), redis, new_name())
    redis.close()


def test_only_peers_that_did_something_are_stored_and_only_when_they_do(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = watched.counted()
    watched.plane.handshake(ONE, 5.0, rx=10)
    counted.read(NOW)
    assert watched.redis.hkeys(names.seen_key(watched.name)) == [ONE.encode()]
    monkeypatch.setattr(watched.redis, "hset", refused)
    counted.read(NOW + 30)
    assert watched.stored(ONE) == NOW


def test_what_could_not_be_stored_is_stored_by_the_next_reading(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.plane.handshake(ONE, 5.0, rx=10)
    counted = watched.counted()
    monkeypatch.setattr(watching, "SLICE", 1)
    with monkeypatch.context() as patched:
        patched.setattr(watched.redis, "hset", refused)
        with pytest.raises(RedisConnectionError):
            counted.read(NOW)
    assert counted.sight is not None
    assert {ONE, TWO} == {key for key in (ONE, TWO, key_number(3)) if key in counted.sight.shown}
    assert (watched.stored(ONE), counted.traffic) == (None, (0, 0))
    counted.read(NOW + 30)
    assert (watched.stored(ONE), counted.traffic) == (NOW + 30, (10, 0))


def test_another_observer_goes_on_where_the_first_ended(watched: Watched) -> None:
    watched.plane.handshake(ONE, 5.0, rx=10)
    watched.counted().read(NOW)
    second = watched.counted()
    second.read(NOW + 9_000)
    assert watched.stored(ONE) == NOW
    watched.plane.handshake(ONE, 6.0, rx=10)
    second.read(NOW + 9_030)
    seen = second.known([ONE, TWO])
    assert (set(seen), seen[ONE].last_seen, seen[ONE].rx) == ({ONE}, NOW + 9_030, 20)


def test_a_damaged_entry_begins_anew(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.redis.hset(names.seen_key(watched.name), ONE, "7 what")
    watched.plane.handshake(ONE, 5.0)
    counted = watched.counted()
    assert counted.known([ONE]) == {}
    counted.read(NOW)
    assert "1 entries of activity are not readable" in caplog.text
    assert watched.stored(ONE) == NOW


def test_a_peer_that_is_gone_is_forgotten_only_after_a_while(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (ONE, TWO):
        watched.plane.handshake(key, 5.0)
    counted = watched.counted()
    counted.read(NOW)
    watched.plane.apply([RemovePeer(ONE)])
    counted.read(NOW + 30)
    assert counted.forget({TWO}) == 0
    assert counted.forget({TWO}) == 0, "it was looked a moment ago"
    monkeypatch.setattr(watching, "FORGET_AFTER", 0.0)
    assert counted.forget({ONE, TWO}) == 0, "Redis has it still"
    assert counted.forget({TWO}) == 0, "it was there at the last look"
    assert counted.forget({TWO}) == 1
    assert (watched.stored(ONE), watched.stored(TWO)) == (None, NOW)
    for _ in range(3):
        assert counted.forget(frozenset[str]()) == 0, "the device has it still"


def test_a_look_for_peers_that_are_gone_gives_signs_of_life(watched: Watched) -> None:
    """It reads an entry of each peer that there ever was; the observer counts as gone after a few silent seconds."""
    counted, signs = watched.counted(), list[int]()
    counted.read(NOW)
    counted.between = lambda: signs.append(1)
    counted.forget(frozenset[str]())
    assert signs


def test_a_reading_gives_a_sign_of_life_between_two_slices(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SLICE", 1)
    counted, signs = watched.counted(), list[int]()
    counted.between = lambda: signs.append(1)
    counted.read(NOW)
    assert len(signs) == 2


def test_a_device_made_anew_is_watched_anew(watched: Watched) -> None:
    counted = watched.counted()
    counted.read(NOW)
    counted.read(NOW + 30)
    assert counted.sight is not None
    assert counted.sight.since == NOW
    watched.index = 2
    counted.read(NOW + 60)
    assert counted.sight.since == NOW + 60


def test_a_reading_that_fails_says_why_and_the_next_one_makes_it_good(watched: Watched) -> None:
    counted = watched.counted()
    counted.read(NOW)
    watched.source.fails = True
    counted.read(NOW + 30)
    assert (counted.sight, counted.trouble) == (None, "there is no such device")
    watched.source.fails = False
    counted.read(NOW + 60)
    assert counted.trouble is None
    assert counted.sight is not None
    assert counted.sight.since == NOW


def test_a_restore_beside_a_running_observer_brings_back_when_peers_were_seen(
    watched: Watched, settings: MakeSettings
) -> None:
    record = Peer(public_key=ONE, allowed_ips=(Prefix.parse("10.8.0.2"),), created_at=1).record()
    now = int(watched.redis.time()[0])
    app = PeerlaneApp(settings())
    counted = watched.counted()
    sweeper = Sweeper(
        redis=watched.redis,
        gateway=watched.name,
        limits=Limits(start_grace=0),
        clock=ClockMonitor(watched.redis, watched.name),
        counted=counted,
        errands=WriterRequests(app, watched.name),
    )

    def stale() -> dict[str, int]:
        report = sweeper.sweep(SweepGateway(gateway=watched.name, dry_run=True), lambda _: True)
        return cast("dict[str, int]", report["stale"])

    assert stale() == {}
    # What `gateway restore` puts in place.
    watched.redis.hset(names.seen_key(watched.name), ONE, encode(StoredActivity(now - 3600, 1, 1, 5, 1, 1)))
    watched.redis.hset(names.peers_key(watched.name), ONE, record)
    assert stale() == {}
    assert counted.known([ONE])[ONE].last_seen == now - 3600
    close(app)


class Removing:
    """A writer that removes what it is asked to; what happens before each of its answers is up to the test."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.asked: list[str] = []
        self._meanwhile = meanwhile

    def run(self, task: str, requests: Iterable[Mapping[str, Any]], go_on: object) -> Iterator[dict[str, Any]]:
        for request in requests:
            keys = [victim["public_key"] for victim in request["victims"]]
            self.asked += keys
            self._meanwhile()
            yield {"removed": keys, "kept": {}}


@pytest.mark.parametrize("kind", ["idle", "never"])
@pytest.mark.parametrize("fails", [False, True], ids=["comes", "unreadable"])
def test_who_comes_after_the_decision_is_not_removed_for_its_silence(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, kind: str, *, fails: bool
) -> None:
    monkeypatch.setattr(sweeping, "AGAIN", 0.0)
    monkeypatch.setattr(sweeping, "AGAIN_SHARE", 0.0)
    now = int(watched.redis.time()[0])
    keys = [key_number(n) for n in range(1, sweeping.SLICE + 11)]
    watched.plane.apply([SetPeer(key, frozenset()) for key in keys])
    for number, key in enumerate(keys):
        record = Peer(public_key=key, allowed_ips=(Prefix.parse(f"10.8.1.{number}"),), created_at=1).record()
        watched.redis.hset(names.peers_key(watched.name), key, record)
        if kind == "idle":
            known = encode(StoredActivity(now - 3600, 1, 1, 0, 0, 0))
            watched.redis.hset(names.seen_key(watched.name), key, known)
    counted = watched.counted()
    counted.read(now - 7200)

    def meanwhile() -> None:
        watched.source.fails = fails
        for key in keys:
            watched.plane.handshake(key, 5.0, rx=148)

    writer = Removing(meanwhile)
    sweeper = Sweeper(
        redis=watched.redis,
        gateway=watched.name,
        limits=Limits(start_grace=0, idle_after=60, never_after=60, floor=1000),
        clock=ClockMonitor(watched.redis, watched.name),
        counted=counted,
        errands=cast("WriterRequests", writer),
    )
    report = sweeper.sweep(SweepGateway(gateway=watched.name), lambda _: True)
    assert report["stale"] == {kind: len(keys)}
    assert len(writer.asked) == sweeping.SLICE, "the second slice was looked at again"
    assert report["removed"] == {kind: sweeping.SLICE}
    assert report["kept"] == {"the counters cannot be read" if fails else "seen since": 10}


@pytest.mark.parametrize(("shown", "readings"), [(True, 1), (False, 3)], ids=["all", "not all"])
def test_an_interrupted_reading_does_once_it_shows_all_who_matter(
    watched: Watched, *, shown: bool, readings: int
) -> None:
    watched.source.complete = False
    for number, key in enumerate((ONE,) if shown else (ONE, key_number(3))):
        record = Peer(public_key=key, allowed_ips=(Prefix.parse(f"10.8.0.{number}"),), created_at=1).record()
        watched.redis.hset(names.peers_key(watched.name), key, record)
    sweeper = Sweeper(
        redis=watched.redis,
        gateway=watched.name,
        limits=Limits(),
        clock=ClockMonitor(watched.redis, watched.name),
        counted=watched.counted(),
        errands=cast("WriterRequests", Removing(lambda: None)),
    )
    report = sweeper.sweep(SweepGateway(gateway=watched.name, dry_run=True), lambda _: True)
    assert (report["peers"], watched.source.readings) == (1 if shown else 2, readings)


def test_a_decision_that_took_long_is_carried_out_all_the_same(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = [100.0]
    monkeypatch.setattr(sweeping.time, "monotonic", lambda: steady[0])
    keys = [key_number(n) for n in range(1, 3 * sweeping.SLICE + 1)]
    for number, key in enumerate(keys):
        peer = Peer(public_key=key, allowed_ips=(Prefix.parse(f"10.8.1.{number}"),), created_at=1, ttl=1, expires_at=2)
        watched.redis.hset(names.peers_key(watched.name), key, peer.record())
    looks: list[float] = []

    def looking(state: object) -> bool:
        if not state:
            steady[0] += sweeping.FRESH * 2
            looks.append(steady[0])
        return True

    def removed() -> None:
        steady[0] += sweeping.FRESH
        watched.redis.hdel(names.peers_key(watched.name), *writer.asked)

    writer = Removing(removed)
    sweeper = Sweeper(
        redis=watched.redis,
        gateway=watched.name,
        limits=Limits(),
        clock=ClockMonitor(watched.redis, watched.name),
        counted=None,
        errands=cast("WriterRequests", writer),
    )
    report = sweeper.sweep(SweepGateway(gateway=watched.name, force=True), looking)
    assert report["removed"] == {"expired": len(keys)}
    assert sorted(writer.asked) == sorted(keys)
    assert len(looks) == 1, "it holds for a multiple of the time that it took"


def test_a_reading_tells_how_many_bytes_a_second_have_gone_by(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = [100.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: steady[0])
    watched.plane.handshake(ONE, 5.0, rx=10_000, tx=10_000)
    counted = watched.counted()
    counted.read(NOW)
    assert "rx_per_second" not in counted.reading(NOW), "since when, nobody knows"
    for key in (ONE, TWO):
        watched.plane.handshake(key, 6.0, rx=1_500, tx=300)
    steady[0] += 20
    counted.read(NOW + 20)  # as a sweep does
    steady[0] += 10
    counted.read(NOW + 30)
    reading = counted.reading(NOW + 30)
    assert (reading["rx_per_second"], reading["tx_per_second"]) == (100, 20)
    steady[0] += 30
    watched.source.fails = True
    counted.read(NOW + 60)
    assert "rx_per_second" not in counted.reading(NOW + 60)
