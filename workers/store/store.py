"""The gateway's hashes in Redis: load, commit, settle, heartbeat. The only module that writes them. No decisions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from redis import Redis

from peerlane.config import names
from peerlane.tasks.errors import StorageError
from peerlane.tasks.lane.hash_pages import hash_pages
from peerlane.tasks.lane.server_clock import ServerClock
from peerlane.tasks.wire import outcome as results
from peerlane.tasks.wire.psk_cipher import PskCipher, Unsealable
from peerlane.tasks.wire.stored_peer import StoredPeer, raw_key
from peerlane.workers.peers.plan import Plan
from peerlane.workers.peers.table import Loaded
from peerlane.workers.store.activity import last_seen
from peerlane.workers.store.loading import Loading, Progress
from peerlane.workers.store.procedures import Procedure

log = logging.getLogger(__name__)

Verdict = Literal["committed", "duplicate", "fenced", "expired", "stale", "draining", "late", "open", "failed"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a script answered; ``stored`` is the commit record for ``duplicate`` and ``expired``."""

    verdict: Verdict
    stored: str

    @property
    def settles(self) -> bool:
        """Whether the request has its outcome now, and its message is acknowledged."""
        return self.verdict in ("committed", "duplicate", "expired")


@dataclass(frozen=True, slots=True)
class Commit:
    """What is to be made true, as for ``Store.commit``."""

    request_id: str
    deadline: int
    result: str
    plans: Sequence[Plan] = ()
    share: str | None = None
    tag: str = ""
    #: Whether a gateway that is being drained refuses what it creates.
    drains: bool = True


def _is_removal(commit: Commit) -> bool:
    changing = [plan for plan in commit.plans if plan.before is not plan.after]
    return bool(changing) and all(plan.after is None for plan in changing)


def _change(plan: Plan, record: str | None) -> dict[str, Any]:
    old = plan.before.allowed_ips if plan.before else ()
    new = plan.after.allowed_ips if plan.after else ()
    change: dict[str, Any] = {
        "key": plan.public_key,
        "before": plan.before is not None and plan.stored,
        "gone": [str(prefix) for prefix in old if prefix not in new],
        "taken": [str(prefix) for prefix in new if prefix not in old],
    }
    if plan.before is plan.after:
        change["kept"] = True
    elif record is not None:
        change["record"] = record
    return change


class Store:
    """One gateway's state. Every method raises redis.RedisError as it comes: waiting is the writer's business."""

    def __init__(self, redis: Redis, gateway: str, *, result_ttl: int, cipher: PskCipher | None = None) -> None:
        self.redis = redis
        self.gateway = gateway
        self.epoch = 0
        self.cipher = cipher or PskCipher()
        self._result_ttl = result_ttl
        self._peers, self._addresses = names.peers_key(gateway), names.addresses_key(gateway)
        self._epoch, self._gateway = names.epoch_key(gateway), names.gateway_key(gateway)
        self._unacked = names.unacked_key(gateway), names.unacked_key(gateway, "_index")
        self._commit, self._release = Procedure(redis, "commit"), Procedure(redis, "release")
        self._check, self._beat = Procedure(redis, "check"), Procedure(redis, "heartbeat")
        self.clock = ServerClock(cast("Callable[[], tuple[int, int]]", redis.time))

    def prepare(self) -> None:
        """Make sure that the procedures can be called, before anybody is made way for.

        Raises redis.RedisError, FunctionsMissing among them.
        """
        self.check(names.request_id(self.gateway, "start"), 0)

    def open_epoch(self) -> int:
        """Begin a new epoch: from here on every earlier writer of this gateway is refused."""
        self.epoch = int(self.redis.incr(self._epoch))
        return self.epoch

    def commit(
        self,
        request_id: str,
        deadline: int,
        result: str,
        plans: Sequence[Plan] = (),
        *,
        share: str | None = None,
        tag: str = "",
        drains: bool = True,
    ) -> Answer:
        """Make an outcome true, or learn why it cannot become so. Safe to repeat with the same arguments.

        ``share`` is the key under which the request counts in a share of the lane (tasks.lane.quota); it leaves it.
        ``tag`` is that of the message that asked for it: where the request has an outcome then, it is acknowledged.
        ``drains``: whether a gateway that is being drained refuses what it creates.
        """
        return self._commit_all([Commit(request_id, deadline, result, plans, share, tag, drains)])[0]

    def leave_shares(self, shares: Sequence[tuple[str, str]]) -> None:
        """Let requests go out of shares of the lane: pairs of a share's key and a request's id."""
        pipe = self.redis.pipeline(transaction=False)
        for share, request_id in shares:
            pipe.zrem(share, request_id)
        if shares:
            pipe.execute()

    def check(self, request_id: str, deadline: int) -> Answer:
        """Whether the request could still commit: ``open``, or why not."""
        return self.check_many([(request_id, deadline)])[0]

    def check_many(self, requests: Sequence[tuple[str, int]]) -> list[Answer]:
        """``check`` for requests (id, deadline), in one round trip."""
        keys = [self._epoch, *(names.result_key(request_id) for request_id, _ in requests)]
        return self._answers(self._check(keys=keys, args=[self.epoch, *(deadline for _, deadline in requests)]))

    def commit_many(self, commits: Sequence[Commit]) -> list[Answer]:
        """``commit`` for many requests in one step, each with a verdict of its own; ``failed``: ask for it alone."""
        return self._commit_all(commits)

    def _commit_all(self, commits: Sequence[Commit]) -> list[Answer]:
        keys = [self._epoch, self._peers, self._addresses, self._gateway, *self._unacked]
        args: list[str | int | bytes] = [self.epoch, self._result_ttl]
        for each in commits:
            result_key = names.result_key(each.request_id)
            keys += [result_key, each.share or result_key]
            args += [each.deadline, each.result, results.late(each.request_id), self._changes(each.plans)]
            creates = each.drains and any(plan.outcome == "created" for plan in each.plans)
            args += [int(creates), each.tag, each.request_id]
        removal = all(map(_is_removal, commits))
        return self._answers((self._release if removal else self._commit)(keys=keys, args=args))

    def _changes(self, plans: Sequence[Plan]) -> str:
        return json.dumps([_change(plan, self._record(plan)) for plan in plans], separators=(",", ":"))

    def _answers(self, raw: object) -> list[Answer]:
        now, *answers = cast("tuple[int, *tuple[tuple[bytes, bytes], ...]]", raw)
        self.clock.heard(now)
        return [
            Answer(cast("Verdict", verdict.decode()), stored.decode(errors="replace")) for verdict, stored in answers
        ]

    def peer(self, public_key: str) -> StoredPeer | None:
        """One peer as stored.

        Raises:
            StorageError: its record does not parse.
        """
        record = cast("bytes | None", self.redis.hget(self._peers, public_key))
        return None if record is None else self._opened(StoredPeer.from_record(public_key, record))

    def peers(self, public_keys: Sequence[str]) -> dict[str, StoredPeer | None]:
        """Peers as stored, in one round trip.

        Raises:
            StorageError: a record does not parse.
        """
        records = cast("list[bytes | None]", self.redis.hmget(self._peers, list(public_keys)))
        return {
            key: None if record is None else self._opened(StoredPeer.from_record(key, record))
            for key, record in zip(public_keys, records, strict=True)
        }

    def _record(self, plan: Plan) -> str | None:
        """What is to be stored."""
        if plan.after is None or plan.after is plan.before:
            return None
        return self.cipher.sealed(self.gateway, plan.after).record()

    def _opened(self, stored: StoredPeer) -> StoredPeer:
        try:
            return self.cipher.opened(self.gateway, stored)
        except Unsealable as error:
            raise StorageError(f"the record of peer {stored.public_key} cannot be used: {error}") from None

    def load(self, progress: Progress | None = None) -> Loaded:
        """Everything, page by page. A record that does not parse is set aside, never dropped."""
        loading = Loading(self.gateway, self.cipher, at=self.clock.now_ms() // 1000)
        total = self._told("peers") if progress is not None else 0
        for page in hash_pages(self.redis, self._peers):
            loading.take(page)
            if progress is not None:
                progress(loading.records, max(loading.records, total))
        if loading.broken:
            for page in hash_pages(self.redis, self._addresses):
                loading.hold(page)
        return loading.ended()

    def coming(self) -> int:
        """How many peers the writer says it has still to add to its device."""
        return self._told("recovering")

    def _told(self, fact: str) -> int:
        """A number that a writer has told."""
        told = cast("bytes | None", self.redis.hget(self._gateway, fact)) or b""
        return int(told) if told.isdigit() and len(told) < 10 else 0

    def has_peers(self) -> bool:
        """Whether any peer is stored, readable or not."""
        return any(hash_pages(self.redis, self._peers, count=1))

    def register(self, facts: Mapping[str, str | float]) -> None:
        """Tell the fleet that this gateway is there, and what it is."""
        self.redis.sadd(names.GATEWAYS_KEY, self.gateway)
        self.redis.hset(self._gateway, mapping=cast("Any", dict(facts)))

    def facts(self) -> dict[str, str]:
        """What the gateway says of itself."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self._gateway))
        return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in found.items()}

    def heartbeat(self, redis: Redis | None = None, *, metrics: str | None = None, **fields: str | int) -> bool:
        """Tell that the writer lives. False: it has been replaced. ``redis`` is the calling thread's own client.

        ``metrics`` is what the writer has measured; with it, it is told too how long the oldest message has waited.
        """
        pairs = [part for pair in fields.items() for part in pair]
        keys, args = [self._gateway, self._epoch], [self.epoch, *pairs]
        if metrics is not None:
            keys += [names.metrics_key(self.gateway), names.lane_queue(self.gateway), names.bulk_queue(self.gateway)]
            args.append(metrics)
        return bool(self._beat(keys=keys, args=args, client=redis))

    def staged(self, token: str) -> list[str]:
        """What an import has brought, in order."""
        found = cast("list[bytes]", self.redis.lrange(names.staged_key(self.gateway, token), 0, -1))
        return [entry.decode(errors="replace") for entry in found]

    def last_seen(self, of: dict[bytes, int]) -> None:
        """Fill in when the observer last saw each of these keys (of 32 bytes); those it never saw stay as they are."""
        for page in hash_pages(self.redis, names.seen_key(self.gateway)):
            for name, stored in page:
                raw = raw_key(name.decode(errors="replace"))
                if raw is not None and raw in of and (at := last_seen(stored)) is not None:
                    of[raw] = at

    def state(self) -> str:
        """``active`` or ``draining``."""
        found = cast("bytes | None", self.redis.hget(self._gateway, "state"))
        return found.decode(errors="replace") if found else "active"
