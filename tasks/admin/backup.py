"""Backup and restore: a consistent snapshot of a gateway's state in a file, restored in one step."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError

from peerlane.config import names
from peerlane.config.redis.client import connect
from peerlane.config.settings import Settings
from peerlane.tasks.admin.archive import PARTS, Archive, Part, read_archive
from peerlane.tasks.admin.archive_check import refuse_unsound, why_unreadable
from peerlane.tasks.admission.lane_state import unknown_gateway
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import Conflict, Invalid, Unavailable
from peerlane.tasks.redis.errors import PAGE, reaching, scan
from peerlane.tasks.redis.server_clock import milliseconds

#: Seconds for which copies and staged hashes outlive a backup or a restore that dies.
KEPT_FOR = 3_600
#: Seconds that Redis may take to copy a gateway's hashes; it does nothing else meanwhile.
PATIENCE = 60.0
#: What a gateway says of the process that runs, not of itself.
OF_THE_PROCESS = (
    *("heartbeat", "phase", "epoch", "writer", "seq", "peers", "version"),
    *("loaded", "recovered", "recovering"),
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
    #: Peers that were there and are not any more, or again.
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
    with _asked(settings) as redis:
        found = _snapshot(redis, gateway, progress)
    for key, record in found.parts["peers"].items():
        if why_unreadable(key, record):
            found.unreadable.append(key)
    size = found.write(path, replace=replace)
    return BackedUp(gateway, len(found.parts["peers"]), tuple(found.unreadable), size)


def _snapshot(redis: Redis, gateway: str, progress: Progress | None) -> Archive:
    token = secrets.token_hex(8)
    copies = {part: names.snapshot_key(gateway, token, part) for part in PARTS}
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
        total = sum(answers[3 + len(PARTS) + 1 :: 2])
        if not facts:
            raise unknown_gateway(gateway)
        told = {_text(name): _text(value) for name, value in cast("dict[bytes, bytes]", facts).items()}
        kept = {name: told[name] for name in told if name not in OF_THE_PROCESS and not name.startswith("holder_")}
        number = _text(epoch or b"0")
        found = Archive(gateway, milliseconds(time_reply), int(number) if number.isdecimal() else 0, kept)
        done = 0
        for part in PARTS:
            for name, value in scan(redis, copies[part]):
                found.parts[part][_text(name)] = _text(value)
                done += 1
                if progress is not None and done % PAGE == 0:
                    progress(done, total)
        if progress is not None:
            progress(total, total)
        return found
    finally:
        with suppress(RedisError):
            redis.unlink(*copies.values())


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
    found = read_archive(path)
    if found.gateway != gateway:
        raise Invalid(f"{path} is a backup of the gateway {found.gateway}, not of {gateway}")
    refuse_unsound(path, found)
    with _asked(settings) as redis:
        lanes = Lanes(redis, result_ttl=settings.result_ttl)
        _refuse_if_live(lanes, gateway)
        token = secrets.token_hex(8)
        staged: dict[Part, str] = {part: names.snapshot_key(gateway, token, part) for part in PARTS}
        try:
            _stage(redis, found, staged, progress)
            replaced = _swap(lanes, found, staged, force=force)
        finally:
            with suppress(RedisError):
                redis.unlink(*staged.values())
    return Restored(gateway, len(found.parts["peers"]), replaced, found.taken_at // 1000, tuple(found.unreadable))


def _refuse_if_live(lanes: Lanes, gateway: str) -> None:
    if lanes.look(gateway).live:
        raise Unavailable(f"the gateway {gateway} has a live writer: stop it, wait five seconds, then restore")


def _stage(redis: Redis, found: Archive, staged: dict[Part, str], progress: Progress | None) -> None:
    total, done = sum(len(found.parts[part]) for part in PARTS), 0
    for part in PARTS:
        items = list(found.parts[part].items())
        for start in range(0, len(items), PAGE):
            page = {_bytes(name): _bytes(value) for name, value in items[start : start + PAGE]}
            pipe = redis.pipeline(transaction=True)
            pipe.hset(staged[part], mapping=cast("Any", page))
            pipe.expire(staged[part], KEPT_FOR)
            pipe.execute()
            done += len(page)
            if progress is not None:
                progress(done, total)


def _swap(lanes: Lanes, found: Archive, staged: dict[Part, str], *, force: bool) -> int:
    """Replace the gateway's hashes by the staged ones; returns how many peers there were."""
    gateway = found.gateway
    live: dict[Part, str] = {part: _KEYS[part](gateway) for part in PARTS}
    with lanes.redis.pipeline(transaction=True) as pipe:
        try:
            # Whoever starts, commits or registers from here on makes the exchange fail.
            pipe.watch(names.epoch_key(gateway), names.gateway_key(gateway), live["peers"], live["addresses"])
            _refuse_if_live(lanes, gateway)
            before = int(pipe.hlen(live["peers"]))
            other = any(int(pipe.hlen(live[part])) for part in PARTS)
            if other and not force:
                raise Conflict(f"the gateway {gateway} holds {before:,} peers: --force puts the backup in their place")
            epoch = _text(cast("bytes | None", pipe.get(names.epoch_key(gateway))) or b"0")
            registered = pipe.exists(names.gateway_key(gateway))
            pipe.multi()
            _exchange(pipe, found, staged, live)
            # One more than any: a writer that was frozen all the while is refused when it wakes.
            pipe.set(names.epoch_key(gateway), max(int(epoch) if epoch.isdecimal() else 0, found.epoch) + 1)
            if not registered:
                pipe.hset(names.gateway_key(gateway), mapping=cast("Any", found.facts | {"phase": "stopped"}))
            pipe.hset(names.gateway_key(gateway), "writer", "")  # its heartbeat, too, learns of it by the next second
            pipe.sadd(names.GATEWAYS_KEY, gateway)
            pipe.execute()
        except WatchError:
            raise Conflict(
                f"nothing was restored: the gateway {gateway} changed meanwhile; is its writer running?"
            ) from None
    return before


def _exchange(pipe: Pipeline, found: Archive, staged: dict[Part, str], live: dict[Part, str]) -> None:
    for part in PARTS:
        if found.parts[part]:
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
