"""Reads the peers' records for sweeps; parses only records that changed."""

from __future__ import annotations

from typing import NamedTuple, cast

from redis import Redis

from peerlane.config import names
from peerlane.tasks.errors import StorageError
from peerlane.tasks.wire.model import Peer, check_public_key

#: Peers read per round trip.
PAGE = 1_000


class Lifetime(NamedTuple):
    """What a sweep looks at of a peer's record (``sweep.SweepCandidate``)."""

    created_at: int
    expires_at: int | None
    pinned: bool
    imported_at: int | None = None


class PeerCache:
    """Reads all peers of a gateway again and again, cheaply."""

    def __init__(self, redis: Redis, gateway: str) -> None:
        self._redis, self._key = redis, names.peers_key(gateway)
        #: Public key → (hash of the record, what it says).
        self._known: dict[str, tuple[int, Lifetime]] = {}
        #: Whom the last reading showed and the one before did not; nobody at the first one.
        self.newcomers: list[str] = []
        self._read = False

    def read(self) -> dict[str, Lifetime]:
        """Every peer whose record this program understands: records that do not parse are skipped.

        Raises redis.RedisError.
        """
        found: dict[str, tuple[int, Lifetime]] = {}
        cursor = 0
        while True:
            cursor, page = cast("tuple[int, dict[bytes, bytes]]", self._redis.hscan(self._key, cursor, count=PAGE))
            for name, record in page.items():
                key = name.decode(errors="replace")
                known = self._known.get(key)
                if known is not None and known[0] == hash(record):
                    found[key] = known
                elif (life := _life(key, record)) is not None:
                    found[key] = (hash(record), life)
            if cursor == 0:
                break
        self.newcomers = [key for key in found if key not in self._known] if self._read else []
        self._known, self._read = found, True
        return {key: life for key, (_, life) in found.items()}


def _life(key: str, record: bytes) -> Lifetime | None:
    try:
        check_public_key(key)
        peer = Peer.from_record(key, record)
    except (ValueError, StorageError):
        return None
    return Lifetime(peer.created_at, peer.expires_at, peer.pinned, peer.imported_at)
