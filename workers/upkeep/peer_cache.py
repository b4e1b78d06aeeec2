"""Reads the peers' records for sweeps, page by page."""

from __future__ import annotations

from redis import Redis

from peerlane.config import names
from peerlane.tasks.errors import StorageError
from peerlane.tasks.redis.hash_pages import hash_pages
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.upkeep.lean_mappings import Lifetime, Lifetimes


class PeerCache:
    """Reads all peers of a gateway for each sweep, and knows which are new since the last one."""

    def __init__(self, redis: Redis, gateway: str) -> None:
        self._redis, self._key = redis, names.peers_key(gateway)
        self._known = Lifetimes()
        #: Whom the last reading showed and the one before did not; nobody at the first one.
        self.newcomers: list[str] = []
        self._read = False

    def read(self) -> Lifetimes:
        """All peers; records that do not parse are skipped.

        Raises redis.RedisError.
        """
        found, newcomers = Lifetimes(), list[str]()
        for page in hash_pages(self._redis, self._key):
            for name, record in page:
                key = name.decode(errors="replace")
                if (life := _life(key, record)) is not None:
                    found.put(key, life)
                    if self._read and key not in self._known:
                        newcomers.append(key)
        self.newcomers, self._known, self._read = newcomers, found, True
        return found


def _life(key: str, record: bytes) -> Lifetime | None:
    try:
        peer = StoredPeer.from_record(key, record)
    except StorageError:
        return None
    return Lifetime(peer.created_at, peer.expires_at, peer.pinned, peer.imported_at)
