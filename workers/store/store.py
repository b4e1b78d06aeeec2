"""Reads and writes a gateway's hashes in Redis: load, commit, check, heartbeat. No other module writes them."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.exceptions import NoPermissionError

from peerlane.config import names
from peerlane.tasks.errors import StorageError
from peerlane.tasks.redis.hash_pages import LARGE_PAGE, Entry, hash_pages, some_fields
from peerlane.tasks.redis.server_clock import ServerClock
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.commit_record import compact_json
from peerlane.tasks.wire.psk_cipher import PskCipher, Unsealable
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.peers.plan import Plan
from peerlane.workers.peers.table import Loaded
from peerlane.workers.store.activity import last_seen
from peerlane.workers.store.journal import Made
from peerlane.workers.store.loading import Loading, Progress
from peerlane.workers.store.procedures import Answer
from peerlane.workers.store.sequence import CommitSequence, Predecessor


@dataclass(frozen=True, slots=True)
class Commit:
    """A request's outcome and plans to commit."""

    request_id: str
    deadline: int
    result: str
    plans: Sequence[Plan] = ()
    share: str | None = None
    tag: str = ""
    #: Whether a gateway that is being drained refuses what it creates.
    drains: bool = True


class Store:
    """One gateway's state. Every method raises redis.RedisError as it comes; the writer decides whether to wait."""

    def __init__(self, redis: Redis, gateway: str, *, result_ttl: int, cipher: PskCipher | None = None) -> None:
        self.redis = redis
        self.gateway = gateway
        self.cipher = cipher or PskCipher()
        self._peers, self._addresses = names.peers_key(gateway), names.addresses_key(gateway)
        self._gateway = names.gateway_key(gateway)
        self.clock = ServerClock(cast("Callable[[], tuple[int, int]]", redis.time))
        self.sequence = CommitSequence(redis, gateway, result_ttl=result_ttl, clock=self.clock)

    @property
    def epoch(self) -> int:
        """This writer's epoch; 0 before one was opened."""
        return self.sequence.epoch

    def prepare(self) -> None:
        """Check that the procedures can be called, before an earlier writer is replaced.

        Raises redis.RedisError, FunctionsMissing among them.
        """
        self.sequence.prepare()

    def open_epoch(self) -> Predecessor:
        """Begin a new epoch: every earlier writer of this gateway is refused from now on."""
        return self.sequence.begin()

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
        """Commit an outcome, or learn why that is refused. Safe to repeat with the same arguments.

        ``share``: the key under which the request counts in a share of the lane (tasks.admission.quota); it leaves it.
        ``tag`` is that of the message that asked for it: where the request has an outcome then, it is acknowledged.
        ``drains``: whether a gateway that is being drained refuses what it creates.
        """
        made = self._made(Commit(request_id, deadline, result, plans, share, tag, drains))
        return self.sequence.commit([made])[0]

    def leave_shares(self, shares: Sequence[tuple[str, str]]) -> None:
        """Remove requests from shares of the lane: pairs of a share's key and a request's id."""
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
        return self.sequence.check(requests)

    def commit_many(self, commits: Sequence[Commit]) -> list[Answer]:
        """``commit`` for many requests in one step; each gets its own verdict. ``failed``: commit it alone."""
        return self.sequence.commit([self._made(each) for each in commits])

    def _made(self, commit: Commit) -> Made:
        """A commit in the form that the script takes."""
        plans = commit.plans
        changing = [plan for plan in plans if plan.before is not plan.after]
        clear = any(plan.after is not None and plan.after.preshared_key is not None for plan in plans)
        return Made(
            commit.request_id,
            commit.result,
            compact_json([_change(plan, self._record(plan)) for plan in plans]),
            commit.share,
            commit.tag,
            secret=clear and not self.cipher.seals,
            deadline=commit.deadline,
            creates=commit.drains and any(plan.outcome == "created" for plan in plans),
            removes=bool(changing) and all(plan.after is None for plan in changing),
        )

    def peer(self, public_key: str) -> StoredPeer | None:
        """One peer as stored.

        Raises:
            StorageError: its record does not parse.
        """
        record = cast("bytes | None", self.redis.hget(self._peers, public_key))
        return None if record is None else self._opened(StoredPeer.from_record(public_key, record))

    def peers(self, public_keys: Sequence[str]) -> dict[str, StoredPeer | None]:
        """Peers as stored, after Redis has every commit.

        Raises:
            StorageError: a record does not parse.
        """
        self.sequence.catch_up()
        records = cast("list[bytes | None]", self.redis.hmget(self._peers, list(public_keys)))
        return {
            key: None if record is None else self._opened(StoredPeer.from_record(key, record))
            for key, record in zip(public_keys, records, strict=True)
        }

    def _record(self, plan: Plan) -> str | None:
        """The record to store for a peer."""
        peer = plan.after
        if peer is None or peer is plan.before:
            return None
        sealed = peer if peer.preshared_key is None else self.cipher.sealed(self.gateway, peer)
        return plan.record if plan.record is not None and sealed is peer else sealed.record()

    def _opened(self, stored: StoredPeer) -> StoredPeer:
        try:
            return self.cipher.opened(self.gateway, stored)
        except Unsealable as error:
            raise StorageError(f"the record of peer {stored.public_key} cannot be used: {error}") from None

    def load(
        self,
        progress: Progress | None = None,
        *,
        into: Loaded | None = None,
        only: Collection[str] | None = None,
        page: int | None = None,
    ) -> Loaded:
        """Load all peers, or ``only`` these, page by page. A record that does not parse is kept as broken.

        A writer's first makes true again what Redis has lost: the device never follows a Redis that is behind.
        ``page``: so many records a page of all.
        """
        self.sequence.catch_up()
        loading = Loading(self.gateway, self.cipher, into or Loaded())
        loading.loaded.at = self.clock.now_ms() // 1000
        total = self._number("peers") if progress is not None else 0
        if only is None:
            pages = hash_pages(self.redis, self._peers, count=page)
        else:
            pages = some_fields(self.redis, self._peers, only)
        for records in pages:
            loading.take(records)
            if progress is not None:
                progress(loading.records, max(loading.records, total))
        if loading.broken:
            for owners in hash_pages(self.redis, self._addresses, count=page):
                loading.hold(owners)
        return loading.ended()

    def assigned(self, prefixes: Collection[Prefix]) -> set[Prefix]:
        """Those of the prefixes that a peer holds."""
        texts = {str(prefix): prefix for prefix in prefixes}
        pages = some_fields(self.redis, self._addresses, texts)
        return {texts[name.decode()] for page in pages for name, _ in page}

    def address_count(self) -> int:
        """How many addresses are assigned; 0 if this Redis user may not ask, as those of earlier versions."""
        try:
            return self.redis.hlen(self._addresses)
        except NoPermissionError:
            return 0

    def addresses(self) -> Iterator[list[Entry]]:
        """All addresses with the keys that they are assigned to, page by page."""
        return hash_pages(self.redis, self._addresses, count=LARGE_PAGE)

    def coming(self) -> int:
        """How many peers the writer still has to add to its device, as its heartbeat says."""
        return self._number("recovering")

    def _number(self, fact: str) -> int:
        """A number in a writer's fields."""
        stored = cast("bytes | None", self.redis.hget(self._gateway, fact)) or b""
        return int(stored) if stored.isdigit() and len(stored) < 10 else 0

    def has_peers(self) -> bool:
        """Whether any peer is stored, readable or not."""
        return any(hash_pages(self.redis, self._peers, count=1))

    def register(self, facts: Mapping[str, str | float]) -> bool:
        """Register this gateway and its facts. False: the writer has been replaced."""
        self.redis.sadd(names.GATEWAYS_KEY, self.gateway)
        self.sequence.facts = {name: value for name, value in facts.items() if name != "phase"}
        return self.sequence.tell(facts)[0] != "fenced"

    def facts(self) -> dict[str, str]:
        """The gateway's facts."""
        facts = cast("dict[bytes, bytes]", self.redis.hgetall(self._gateway))
        return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in facts.items()}

    def heartbeat(
        self, redis: Redis | None = None, *, metrics: str | None = None, brief: bool = False, **fields: str | int
    ) -> str | None:
        """Write a heartbeat; returns the gateway's state, or None if the writer has been replaced.

        ``redis`` is the calling thread's client. ``metrics`` are the writer's measurements; with them the age of the
        oldest message is written too. ``brief``: see ``CommitSequence.tell``.
        """
        verdict, state = self.sequence.tell(fields, redis, metrics, brief=brief)
        self.sequence.behind |= verdict == "behind"
        return None if verdict == "fenced" else state or "active"

    def has_served(self) -> bool:
        """Whether a writer of this gateway has ever come to serve its lane."""
        return bool(self.redis.hexists(self._gateway, "began"))

    def staged(self, token: str) -> list[str]:
        """The staged peers of an import, in order."""
        stored = cast("list[bytes]", self.redis.lrange(names.staged_key(self.gateway, token), 0, -1))
        return [entry.decode(errors="replace") for entry in stored]

    def last_seen(self, of: dict[bytes, int]) -> None:
        """Fill in when the observer last saw each of these keys (of 32 bytes); those it never saw stay as they are."""
        for page in hash_pages(self.redis, names.seen_key(self.gateway), count=LARGE_PAGE):
            for name, stored in page:
                raw = _decoded(name)
                if raw in of and (at := last_seen(stored)) is not None:
                    of[raw] = at

    def state(self) -> str:
        """``active`` or ``draining``."""
        stored = cast("bytes | None", self.redis.hget(self._gateway, "state"))
        return stored.decode(errors="replace") if stored else "active"


def _decoded(name: bytes) -> bytes:
    """A key's bytes, whatever text of it this is: who comes back first is decided by it, and nothing else."""
    try:
        return binascii.a2b_base64(name)
    except binascii.Error:
        return b""


def _change(plan: Plan, record: str | None) -> dict[str, Any]:
    """A plan as the commit script takes it; ``record`` is the record to store."""
    old = plan.before.allowed_ips if plan.before else ()
    new = plan.after.allowed_ips if plan.after else ()
    change: dict[str, Any] = {
        "key": plan.public_key,
        "before": plan.before is not None and plan.stored,
        "gone": [str(prefix) for prefix in (*old, *plan.freed) if prefix not in new],
        "taken": [str(prefix) for prefix in new if prefix not in old or not plan.stored],
    }
    if plan.before is plan.after:
        change["kept"] = True
    elif record is not None:
        change["record"] = record
    return change
