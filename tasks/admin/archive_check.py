"""Checks a backup's content: every record parses, no two peers have one address. Pure."""

from __future__ import annotations

from pathlib import Path

from peerlane.tasks.admin.archive import Archive
from peerlane.tasks.errors import Invalid, StorageError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire.model import Peer, check_public_key


def why_unreadable(key: str, record: str) -> str | None:
    """Why a record does not parse; None if it does."""
    try:
        check_public_key(key)
        Peer.from_record(key, record)
    except (ValueError, StorageError) as error:
        return str(error)
    return None


def refuse_unsound(path: Path, found: Archive) -> None:
    """Refuse an archive that is not from a gateway. Records that were unreadable at the backup may be unreadable.

    Raises:
        Invalid: says what is wrong.
    """
    unreadable = set(found.unreadable)
    owners = _owners(path, found, unreadable)
    for text, owner in found.parts["addresses"].items():
        if owner in unreadable or not _canonical(text):
            owners.setdefault(text, owner)  # as it was: the writer leaves it alone too
        elif owners.get(text) != owner:
            raise Invalid(f"{path} is no sound backup: the address {text} is nobody's, or another's")
    if missing := owners.keys() - found.parts["addresses"].keys():
        raise Invalid(f"{path} is no sound backup: {len(missing)} addresses of peers are not taken")


def _owners(path: Path, found: Archive, unreadable: set[str]) -> dict[str, str]:
    """Which peer has which address, by the peers' own records."""
    owners: dict[str, str] = {}
    for key, record in found.parts["peers"].items():
        if key in unreadable:
            continue
        if why := why_unreadable(key, record):
            raise Invalid(f"{path} is no sound backup: {why}")
        for prefix in Peer.from_record(key, record).allowed_ips:
            if owners.setdefault(str(prefix), key) != key:
                raise Invalid(f"{path} is no sound backup: two peers have the address {prefix}")
    return owners


def _canonical(text: str) -> bool:
    try:
        return str(Prefix.parse(text)) == text
    except ValueError:
        return False
