"""Backup and restore: a consistent snapshot of a gateway's state in a file, restored in one step."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError

from peerlane.config import names
from peerlane.config.redis.client import connect
from peerlane.config.settings import Settings
from peerlane.tasks.admin.archive import PARTS, Entry, Header, Part, entries, read_header, write_archive
from peerlane.tasks.admin.archive_check import Soundness, is_readable
from peerlane.tasks.admission.lane_state import unknown_gateway
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Conflict, Invalid, Unavailable
from peerlane.tasks.redis.errors import PAGE, reaching
from peerlane.tasks.redis.hash_pages import hash_pages
from peerlane.tasks.redis.server_clock import milliseconds

#: Seconds for which copies and staged hashes outlive a backup or a restore that dies.
KEPT_FOR = 3_600
#: Seconds that Redis may take to copy a gateway's hashes; it does nothing else meanwhile.
PATIENCE = 60.0
#: What a gateway says of the process that runs, not of itself.
OF_THE_PROCESS = (
    *("heartbeat", "phase", "epoch", "writer", "seq", "peers", "version"),
    *("loaded", "recovered", "recovering", "lost"),
)

#: (done, total) entries.
Progress = Callable[[int, int], None]

_KEYS: dict[Part, Callable[[str], str]] = {
    "peers": names.peers_key,
    "addresses": names.addresses_key,
    "seen": names.seen_key,
}


@dataclass(frozen=True, slots=True)
class BackedUp:
    """The content of a backup's file, counted."""

    gateway: str
    peers: int
    #: Records that do not parse; they are in the file as they are in Redis.
    unreadable: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore."""

    gateway: str
    peers: int
    #: Peers that the gateway had before, whether the file has them or not.
    replaced: int
    #: When the backup was taken, in seconds since 1970 on Redis' clock.
    taken_at: int
    unreadable: tuple[str, ...]


def back_up(
    settings: Settings, gateway: str, path: Path, *, replace: bool = False, progress: Progress | None = None
) -> BackedUp:
    """Write a gateway's peers, addresses and activity at one moment to a file, while it serves.

    Raises:
        Unavailable: no such gateway is registered.
        StorageError: Redis has no room for the copy that is read from, or does not allow it.
        OutcomeUnknown: Redis could not be reached; no file was written.
        FileExists, NotWritten: see peerlane.tasks.wgfile.client_config.
    """
    with _asked(settings) as redis, _copied(redis, gateway) as (copied, copies):
        bar = _Bar(progress, copied.total + copied.count["peers"])
        unreadable = [
            name for _, name, value in _stored(redis, copies, ("peers",), bar) if not is_readable(name, value)
        ]
        header = replace_fields(copied, unreadable=tuple(unreadable))
        size = write_archive(path, header, _stored(redis, copies, PARTS, bar), replace=replace)
        bar.ended()
    return BackedUp(gateway, header.count["peers"], header.unreadable, size)


@contextmanager
def _copied(redis: Redis, gateway: str) -> Generator[tuple[Header, dict[Part, str]]]:
    """Copies in Redis of what a gateway holds at this moment; they are deleted afterwards."""
    token = secrets.token_hex(8)
    copies: dict[Part, str] = {part: names.snapshot_key(gateway, token, part) for part in PARTS}
    # Redis copies in one step, and is read at leisure: no commit falls between two pages.
    pipe = redis.pipeline(transaction=True)
    pipe.time()
    pipe.hgetall(names.gateway_key(gateway))
    pipe.get(names.epoch_key(gateway))
    for part in PARTS:
        pipe.copy(_KEYS[part](gateway), copies[part])
    for part in PARTS:
        pipe.expire(copies[part], KEPT_FOR)
        pipe.hlen(copies[part])
    try:
        answers = pipe.execute()
        time_reply, facts, epoch = answers[:3]
        if not facts:
            raise unknown_gateway(gateway)
        texts = {_text(name): _text(value) for name, value in cast("dict[bytes, bytes]", facts).items()}
        kept = _own(texts)
        number = _text(epoch or b"0")
        count = dict(zip(PARTS, cast("list[int]", answers[3 + len(PARTS) + 1 :: 2]), strict=True))
        yield Header(gateway, milliseconds(time_reply), int(number) if number.isdecimal() else 0, kept, count), copies
    finally:
        with suppress(RedisError):
            redis.unlink(*copies.values())


def _own(facts: Mapping[str, str]) -> dict[str, str]:
    """The facts that are the gateway's, not its process'."""
    return {name: facts[name] for name in facts if name not in OF_THE_PROCESS and not name.startswith("holder_")}


def _stored(redis: Redis, copies: Mapping[Part, str], parts: Sequence[Part], bar: _Bar) -> Iterator[Entry]:
    for part in parts:
        for page in hash_pages(redis, copies[part]):
            for name, value in page:
                yield part, _text(name), _text(value)
            bar.add(len(page))


class _Bar:
    """Adds up the progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def add(self, count: int) -> None:
        """Report ``count`` more entries, but never all of them: ``ended`` reports the last."""
        self._done = min(self._done + count, self._total - 1)
        if self._progress is not None and count:
            self._progress(self._done, self._total)

    def ended(self) -> None:
        """Report that all entries are done."""
        if self._progress is not None:
            self._progress(self._total, self._total)


def restore_state(
    settings: Settings, gateway: str, path: Path, *, force: bool = False, progress: Progress | None = None
) -> Restored:
    """Replace a gateway's state by a file's, in one step, while no writer runs. The next writer changes the device.

    Raises:
        Invalid: the file is no sound backup of this gateway; nothing was changed.
        Unavailable: a live writer serves the gateway; nothing was changed.
        Conflict: the gateway holds something, and ``force`` was not said; or it changed meanwhile.
        StorageError: Redis has no room or refuses; nothing was changed.
        OutcomeUnknown: Redis could not be reached; doing it again is harmless.
    """
    header = read_header(path)
    if header.gateway != gateway:
        raise Invalid(f"{path} is a backup of the gateway {header.gateway}, not of {gateway}")
    bar = _Bar(progress, header.total * 2)
    check_archive(path, header, bar.add)
    with _asked(settings) as redis:
        lanes = Lanes(redis, result_ttl=settings.result_ttl)
        _refuse_if_live(lanes, gateway)
        token = secrets.token_hex(8)
        staged: dict[Part, str] = {part: names.snapshot_key(gateway, token, part) for part in PARTS}
        try:
            _stage(redis, path, staged, bar)
            if read_header(path) != header:
                raise Invalid(f"{path} was written anew while it was read; nothing was changed")
            bar.ended()
            replaced = _swap(lanes, header, staged, force=force)
        finally:
            with suppress(RedisError):
                redis.unlink(*staged.values())
    return Restored(gateway, header.count["peers"], replaced, header.taken_at // 1000, header.unreadable)


def check_archive(path: Path, header: Header, progress: Callable[[int], None] = lambda _: None) -> None:
    """Read a whole file and refuse it where it is not sound, before anything is done with it.

    Raises:
        Invalid: it is damaged, or cannot have come from a gateway; nothing of it is to be used.
    """
    soundness = Soundness(path, header.unreadable)
    for number, entry in enumerate(entries(path), 1):
        soundness.take(entry)
        if number % PAGE == 0:
            progress(PAGE)
    soundness.ended()


def _refuse_if_live(lanes: Lanes, gateway: str) -> None:
    if lanes.look(gateway).live:
        raise Unavailable(f"the gateway {gateway} has a live writer: stop it, wait five seconds, then restore")


def _stage(redis: Redis, path: Path, staged: dict[Part, str], bar: _Bar) -> None:
    by_part = groupby(entries(path), cast("Callable[[Entry], Part]", itemgetter(0)))
    for part, group in by_part:
        while page := {_bytes(name): _bytes(value) for _, name, value in islice(group, PAGE)}:
            pipe = redis.pipeline(transaction=True)
            pipe.hset(staged[part], mapping=cast("Any", page))
            pipe.expire(staged[part], KEPT_FOR)
            pipe.execute()
            bar.add(len(page))


def _swap(lanes: Lanes, header: Header, staged: dict[Part, str], *, force: bool) -> int:
    """Put the staged hashes in the place of the gateway's; how many peers were there."""
    gateway = header.gateway
    live: dict[Part, str] = {part: _KEYS[part](gateway) for part in PARTS}
    with lanes.redis.pipeline(transaction=True) as pipe:
        try:
            # If a writer starts, commits or registers from here on, the exchange fails.
            pipe.watch(names.epoch_key(gateway), names.gateway_key(gateway), live["peers"], live["addresses"])
            _refuse_if_live(lanes, gateway)
            before = int(pipe.hlen(live["peers"]))
            other = any(int(pipe.hlen(live[part])) for part in PARTS)
            if other and not force:
                raise Conflict(f"the gateway {gateway} holds {before:,} peers: --force puts the backup in their place")
            epoch = _text(cast("bytes | None", pipe.get(names.epoch_key(gateway))) or b"0")
            registered = pipe.exists(names.gateway_key(gateway))
            pipe.multi()
            _exchange(pipe, header, staged, live)
            # One more than any: a writer that was frozen all the while is refused when it wakes.
            pipe.set(names.epoch_key(gateway), max(int(epoch) if epoch.isdecimal() else 0, header.epoch) + 1)
            # Until a writer's heartbeat counts them, this is what `gateway show` and `gateway list` tell.
            facts = {} if registered else {**_own(header.facts), "phase": "stopped"}
            pipe.hset(names.gateway_key(gateway), mapping=cast("Any", facts | {"peers": header.count["peers"]}))
            pipe.sadd(names.GATEWAYS_KEY, gateway)
            pipe.execute()
        except WatchError:
            raise Conflict(
                f"nothing was restored: the gateway {gateway} changed meanwhile; is its writer running?"
            ) from None
    return before


def _exchange(pipe: Pipeline, header: Header, staged: dict[Part, str], live: dict[Part, str]) -> None:
    for part in PARTS:
        if header.count[part]:
            pipe.rename(staged[part], live[part])
            pipe.persist(live[part])
        else:
            pipe.delete(live[part])


@contextmanager
def _asked(settings: Settings) -> Generator[Redis]:
    """A connection with a long timeout, whose failures are Peerlane's errors."""
    redis = connect(settings, timeout=PATIENCE)
    try:
        with reaching("doing it again is harmless", refused="nothing was changed"):
            yield redis
    finally:
        redis.close()


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")  # a record may be anything; it comes back as it was


def _bytes(value: str) -> bytes:
    return value.encode(errors="surrogateescape")
