"""A Redis that loses anything at any moment and fails: a living writer puts all back, a dead one's device keeps it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from forgetful import Moment
from keys import some_key
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from servers import RedisServer
from writer_alone import WriterAlone, carry_out

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.wire import commit_record
from peerlane.workers.store import journal, sequence
from peerlane.workers.store.journal import RedoFile
from peerlane.workers.store.store import Store

#: More of them: LOSSES=2000 pytest tests/writer/test_loss_at_random.py
SEEDS = range(int(os.environ.get("LOSSES", "25")))


@dataclass(frozen=True)
class Kept:
    """An outcome that a writer keeps: the keys that it is about, and those of them that it creates."""

    request_id: str
    keys: frozenset[str]
    creates: frozenset[str]

    @classmethod
    def of(cls, request_id: str, changes: Sequence[Mapping[str, Any]]) -> Kept:
        created = [change["key"] for change in changes if "record" in change and not change["before"]]
        return cls(request_id, frozenset(change["key"] for change in changes), frozenset(created))


class Play(WriterAlone):
    """Some minutes of a gateway's life, and then a loss. All choices come from the seed."""

    def __init__(self, server: RedisServer, directory: Path, seed: int) -> None:
        super().__init__(server, directory)
        self.chance = random.Random(seed)
        self.directory = directory
        self.bytes = Redis.from_url(server.url)
        self._clients.append(self.bytes)
        self.few = [some_key() for _ in range(8)]
        self.moments: list[Moment] = []

    def keep_file(self) -> None:
        store = self.writer.store
        store.sequence.start(RedoFile(self.directory, self.name))
        self.writer.recover()

    def live(self) -> None:
        for _ in range(self.chance.randint(1, 25)):
            if self.chance.random() < 0.4:
                self.moments.append(Moment(self.bytes, self.name))
            with suppress(PeerlaneError):  # a refusal is an outcome like any other
                self._ask()

    def _ask(self) -> None:
        key, request = self.chance.choice(self.few), self.request()
        match self.chance.choice(["create", "create", "create", "delete", "creates", "deletes", "short"]):
            case "create":
                some = self.chance.random() < 0.3
                wish = {"allowed_ips": [f"10.8.0.{self.chance.randint(2, 9)}/32"]} if some else {}
                self.create(key, request=request, keepalive=self.chance.choice([0, 0, 25]), **wish)
            case "short":
                self.create(key, request=request, ttl=60)
            case "delete":
                self.delete(key, request=request)
            case "creates":
                wishes = [{"public_key": each} for each in self.chance.sample(self.few, 3)]
                carry_out(self.writer, names.CREATE_PEERS, request, {"gateway": self.name, "wishes": wishes})
            case _:
                some_keys = self.chance.sample(self.few, 2)
                carry_out(self.writer, names.DELETE_PEERS, request, {"gateway": self.name, "public_keys": some_keys})

    def lose(self) -> None:
        """Redis is as it was at some moment, or empty."""
        if self.moments and self.chance.random() < 0.7:
            self.chance.choice(self.moments).come_back()
        elif keys := cast("list[bytes]", self.bytes.keys(f"*{self.name}*")):
            self.bytes.delete(*cast("list[str]", keys))

    def kept_outcomes(self) -> list[Kept]:
        """The outcomes that the writer could repeat."""
        steps = self.writer.store.sequence.journal.after(-1)
        return [Kept.of(each.request_id, json.loads(each.changes)) for step in steps for each in step.made]

    def cancel_some(self, made: Sequence[Kept]) -> list[Kept]:
        """Their callers, who have not heard of the outcomes, cancel some of those that Redis has lost."""
        lost = [each for each in made if not self.bytes.exists(names.result_key(each.request_id))]
        cancelled = [each for each in lost if self.chance.random() < 0.3]
        for each in cancelled:
            self.bytes.set(names.result_key(each.request_id), commit_record.tombstone(each.request_id), ex=600)
        return cancelled

    def break_redis(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A few commands fail from now on; half of them have been carried out."""
        redis: Any = self.writer.store.redis
        left, real = [self.chance.randint(0, 4)], redis.execute_command

        def broken(*words: Any, **options: Any) -> Any:
            if left[0] and self.chance.random() < 0.2:
                left[0] -= 1
                if self.chance.random() < 0.5:
                    real(*words, **options)
                raise RedisConnectionError("gone")
            return real(*words, **options)

        monkeypatch.setattr(redis, "execute_command", broken)
        monkeypatch.setattr("peerlane.workers.store.retry.time.sleep", _at_once)

    def go_on(self) -> None:
        """What a writer does next, whatever fails of it."""
        how = self.chance.choice(["request", "load", "heartbeat"])
        commits = self.writer.store.sequence
        for _ in range(12):
            with suppress(RedisConnectionError):
                if how == "heartbeat":
                    self.writer.store.heartbeat(peers=1)
                if how == "load" or commits.behind:
                    commits.catch_up()
                if self.writer.recovery_needed:
                    self.writer.recover()
                if how == "request":
                    self.delete(self.create()["public_key"])

    def settle(self) -> None:
        self.writer.store.sequence.catch_up()
        if self.writer.recovery_needed:
            self.writer.recover()

    @property
    def peers(self) -> dict[str, tuple[list[str], int | None, int | None]]:
        records = {key: json.loads(record) for key, record in self.records.items()}
        return {key: (each["allowed_ips"], each.get("keepalive"), each.get("ttl")) for key, each in records.items()}

    def end_file(self) -> None:
        if isinstance(record := self.writer.store.sequence.journal.record, RedoFile):
            record.close()

    def succeed(self) -> None:
        """The writer dies; the next one starts."""
        self.end_file()
        redis = Redis.from_url(self.server.url)
        self._clients.append(redis)
        store = Store(redis, self.name, result_ttl=600)
        store.sequence.start(RedoFile(self.directory, self.name))
        self.writer = type(self.writer)(self.policy, store, self.plane, self.writer.facts)
        self.writer.recover()


def _at_once(_seconds: float) -> None:
    """A pause that is none."""


@pytest.fixture(params=SEEDS)
def play(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Play]:
    made = Play(redis_server, tmp_path, request.param)
    monkeypatch.setattr(journal, "MOST", made.chance.choice([1, 3, 8, 50_000]))
    monkeypatch.setattr(sequence, "AT_ONCE", made.chance.choice([1, 3, 64]))
    yield made
    made.end_file()
    made.close()


def test_a_living_writer_puts_everything_back(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    if play.chance.random() < 0.5:
        play.keep_file()
    play.live()
    before = play.peers
    play.lose()
    with monkeypatch.context() as failing:
        play.break_redis(failing)
        play.go_on()
    play.settle()
    assert play.peers == before
    play.agree()


def test_the_device_of_a_dead_one_keeps_what_was_confirmed(play: Play) -> None:
    play.keep_file()
    play.live()
    before = play.peers
    play.lose()
    play.succeed()
    assert before.keys() <= play.plane.peers().keys()


def test_what_callers_cancel_meanwhile_costs_no_other_peer(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play.live()
    before = play.peers
    play.lose()
    at_loss, made = play.peers, play.kept_outcomes()
    cancelled = play.cancel_some(made)
    with monkeypatch.context() as failing:
        play.break_redis(failing)
        play.go_on()
    play.settle()
    disputed = {key for each in cancelled for key in each.keys}
    for key in {*before, *play.peers} - disputed:
        assert play.peers.get(key) == before.get(key)
    for each in cancelled:
        alone = {key for key in each.creates if sum(key in other.keys for other in made) == 1}
        assert not alone - at_loss.keys() & play.peers.keys(), "what was cancelled never takes effect"
    play.agree()
