"""What comments in a WireGuard file say of a peer, read and written: its name, its labels, what Peerlane keeps of it.

WireGuard's own tools ignore comments, so a file that holds these is still theirs to read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from peerlane.tasks.wire.model import Peer

#: Label that other programs' ways of naming a peer become, and that ``# friendly_name`` is written for.
NAME = "name"

_FIELDS = ("ttl", "expires_at", "created_at")
_PAIR = re.compile(r"#+\s*([A-Za-z][A-Za-z0-9_./-]*)\s*=\s?(.*)", re.DOTALL)
_LABEL = re.compile(r"#+\s*label\.([^=]*?)\s*=\s?(.*)", re.DOTALL)
#: As the common install scripts write them, before the section.
_CLIENT = re.compile(r"(?:#{2,}\s*client|#+\s*begin_peer)\s+(\S.*)", re.IGNORECASE)


class Note(NamedTuple):
    """One thing that a comment says: a label, or (``label`` None) a field of the peer."""

    label: str | None
    field: str
    value: str | int | bool


def read(comment: str) -> Note | None:
    """What ``comment``, which begins with its ``#``, says; None if it is only for people.

    Raises:
        ValueError: it is one of ours and malformed; with a sentence that quotes none of it.
    """
    if found := _LABEL.fullmatch(comment):
        return Note(found[1], "", _text(found[2]))
    if found := _CLIENT.fullmatch(comment):
        return Note(NAME, "", found[1].strip())
    if not (found := _PAIR.fullmatch(comment)):
        return None
    key = found[1].lower()
    if key in ("friendly_name", NAME):
        return Note(NAME, "", _text(found[2]))
    if not key.startswith("peerlane."):
        return None
    field, text = key.removeprefix("peerlane."), found[2].strip()
    if field == "pinned" and text in ("true", "false"):
        return Note(None, field, text == "true")
    if field in _FIELDS and text.isascii() and text.isdigit() and len(text) <= 15 and int(text):
        return Note(None, field, int(text))
    if field in (*_FIELDS, "pinned"):
        raise ValueError(
            f"peerlane.{field} is {'true or false' if field == 'pinned' else 'a number of seconds, 1 or more'}"
        )
    raise ValueError("a comment that begins with peerlane. and is none this program knows; a newer one wrote it?")


def written(peer: Peer) -> Iterator[str]:
    """The comments that ``read`` turns back into what ``peer`` has beyond WireGuard's own settings."""
    for label, value in peer.labels.items():
        yield f"# {'friendly_name' if label == NAME else f'label.{label}'} = {_written(value)}"
    for field in _FIELDS:
        if value := getattr(peer, field):
            yield f"# peerlane.{field} = {value}"
    if peer.pinned:
        yield "# peerlane.pinned = true"


def _text(raw: str) -> str:
    """A value as it stands, or in double quotes (JSON's) where that would lose something."""
    text = raw.strip()
    if text.startswith('"'):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return value if isinstance(value, str) else text
    return text


def _written(value: str) -> str:
    plain = value and value == value.strip() and not value.startswith('"')
    return value if plain else json.dumps(value, ensure_ascii=False)
