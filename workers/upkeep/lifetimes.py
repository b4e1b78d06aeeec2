"""Reads the peers' records for sweeps, page by page."""

from __future__ import annotations

from collections.abc import Iterator

from redis import Redis

from peerlane.config import names
from peerlane.tasks.errors import StorageError
from peerlane.tasks.redis.hash_pages import hash_pages
from peerlane.tasks.values.key_set import KeySet
from peerlane.tasks.wire.stored_peer import StoredPeer, raw_key
from peerlane.workers.upkeep.lean_mappings import Lifetime


def lifetimes(redis: Redis, gateway: str, seen: KeySet | None = None) -> Iterator[dict[str, Lifetime]]:
    """Every peer whose record this program understands, once; ``seen`` then holds their keys.

    Records that do not parse are skipped. Raises redis.RedisError.
    """
    seen = KeySet() if seen is None else seen
    for page in hash_pages(redis, names.peers_key(gateway)):
        lives: dict[str, Lifetime] = {}
        for name, record in page:
            key = name.decode(errors="replace")
            # A hash that changes while it is read shows some twice.
            if (life := _life(key, record)) is not None and seen.add(key):
                lives[key] = life
        yield lives


def _life(key: str, record: bytes) -> Lifetime | None:
    try:
        peer = StoredPeer.from_record(key, record)
    except StorageError:
        return None
    if raw_key(key) is None:
        return None
    return Lifetime(peer.created_at, peer.expires_at, peer.pinned, peer.imported_at)
