"""Builds the loaded peers of a gateway from pages of Redis' hashes. Pure: no I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from peerlane.tasks.errors import StorageError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import check_public_key
from peerlane.tasks.wire.psk_cipher import PskCipher, Unsealable
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.peers.table import Loaded

log = logging.getLogger(__name__)

#: (done, total) records.
Progress = Callable[[int, int], None]


class Loading:
    """The pages taken so far."""

    def __init__(self, gateway: str, cipher: PskCipher, loaded: Loaded) -> None:
        self._gateway, self._cipher = gateway, cipher
        self.loaded = loaded
        self._prefixes: dict[str, list[Prefix]] = {}
        #: Records taken in.
        self.records = 0
        #: Why the records of these keys cannot be used.
        self.broken: dict[str, str] = {}

    def take(self, page: Iterable[tuple[bytes, bytes]]) -> None:
        """Take a page of records by public key."""
        for name, record in page:
            self.records += 1
            key = name.decode(errors="replace")
            try:
                self._take(key, record)
            except (ValueError, StorageError) as error:
                self.broken[key] = str(error)

    def _take(self, key: str, record: bytes) -> None:
        try:
            stored = StoredPeer.from_record(key, record)
        except StorageError:
            check_public_key(key)  # a malformed key is reported as such
            raise
        if stored.preshared_key is None:
            self.loaded.take(stored, record)
            return
        try:
            peer = self._cipher.opened(self._gateway, stored)
        except Unsealable as error:
            raise StorageError(f"the record of peer {key} cannot be used: {error}") from None
        self.loaded.take(peer, record if peer is stored else None)
        if not self._cipher.current(stored.preshared_key):
            self.loaded.outdated.append(key)

    def hold(self, page: Iterable[tuple[bytes, bytes]]) -> None:
        """Take a page of owners by prefix: the addresses of peers whose records cannot be used."""
        for name, value in page:
            text, owner = name.decode(errors="replace"), value.decode(errors="replace")
            if owner in self.broken:
                try:
                    self._prefixes.setdefault(owner, []).append(Prefix.parse(text))
                except ValueError:
                    log.warning("gateway %s: the address entry %.64r does not parse", self._gateway, text)

    def ended(self) -> Loaded:
        """The loaded peers, after the last page."""
        for key, reason in self.broken.items():
            log.error("gateway %s: %s; left as it is", self._gateway, reason)
            self.loaded.broken[key] = StoredPeer(key, tuple(sorted(self._prefixes.get(key, []))))
            self.loaded.reasons[key] = reason
        return self.loaded
