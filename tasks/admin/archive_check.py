"""Checks a backup's content: every record parses, no two peers have one address. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from peerlane.tasks.admin.archive import Entry
from peerlane.tasks.errors import Invalid, StorageError
from peerlane.tasks.values.key_set import KeySet
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import check_public_key
from peerlane.tasks.wire.stored_peer import StoredPeer


def read_peer(key: str, record: str) -> StoredPeer:
    """A peer as stored. Raises ValueError or StorageError where its key or its record does not parse."""
    check_public_key(key)
    return StoredPeer.from_record(key, record.encode(errors="surrogateescape"))


def is_readable(key: str, record: str) -> bool:
    """Whether a record parses."""
    try:
        read_peer(key, record)
    except (ValueError, StorageError):
        return False
    return True


class Soundness:
    """Refuses an archive that cannot have come from a gateway, entry by entry, peers first.

    Records that did not parse when the backup was made are accepted. Uses a few bytes for each address and owner.
    """

    def __init__(self, path: Path, unreadable: Iterable[str]) -> None:
        self._path, self._unreadable = path, frozenset(unreadable)
        #: Prefixes that the peers' records name, and each with its peer.
        self._named, self._owned = KeySet(), KeySet()
        self._taken = KeySet()

    def take(self, entry: Entry) -> None:
        """Check one entry. Raises Invalid, and says what is wrong with it."""
        part, name, value = entry
        if part == "peers" and name not in self._unreadable:
            self._take_peer(name, value)
        elif part == "addresses":
            self._take_address(name, value)

    def _take_peer(self, key: str, record: str) -> None:
        try:
            peer = read_peer(key, record)
        except (ValueError, StorageError) as error:
            raise Invalid(f"{self._path} is no sound backup: {error}") from None
        for prefix in peer.allowed_ips:
            if not self._named.add(str(prefix)):
                raise Invalid(f"{self._path} is no sound backup: two peers have the address {prefix}")
            self._owned.add(f"{prefix} {key}")

    def _take_address(self, text: str, owner: str) -> None:
        # Unreadable records are restored as they were; the writer leaves them alone too.
        if owner not in self._unreadable and _canonical(text) and f"{text} {owner}" not in self._owned:
            raise Invalid(f"{self._path} is no sound backup: the address {text} is nobody's, or another's")
        if text in self._named:
            self._taken.add(text)

    def ended(self) -> None:
        """End the check after the last entry. Raises Invalid where something is missing."""
        if missing := len(self._named) - len(self._taken):
            raise Invalid(f"{self._path} is no sound backup: {missing} addresses of peers are not taken")


def _canonical(text: str) -> bool:
    try:
        return str(Prefix.parse(text)) == text
    except ValueError:
        return False
