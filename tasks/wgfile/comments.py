"""Reads and writes the comments of a WireGuard file that hold a peer's name, labels and other fields.

WireGuard's own tools ignore comments, so they can still read such a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from peerlane.tasks.wire.model import are_labels
from peerlane.tasks.wire.stored_peer import Peer

#: The label for a peer's name, however another program writes it; ``export`` writes it as ``# friendly_name``.
NAME = "name"

_FIELDS = ("ttl", "expires_at", "created_at")
_PAIR = re.compile(r"#+\s*([A-Za-z][A-Za-z0-9_./-]*)\s*=\s?(.*)", re.DOTALL)
_LABEL = re.compile(r"#+\s*label\.([^=]*)=\s?(.*)", re.DOTALL)
#: As install scripts and web interfaces write them: ``### Client anna``, ``# BEGIN_PEER anna``, ``### begin anna ###``,
#: ``# Client: anna (uuid)``, ``# Name:   anna``.
_NAMES = (
    re.compile(r"(?:#{2,}\s*client|#+\s*begin_peer)\s+(\S.*)", re.IGNORECASE),
    re.compile(r"#{2,}\s*begin\s+(\S.*)##", re.IGNORECASE),
    re.compile(r"#+\s*(?:client|name|friendly_name)\s*:\s*(\S.*)", re.IGNORECASE),
)
#: What a web interface writes behind a name.
_UUID = re.compile(r"\([0-9a-f-]{36}\)", re.IGNORECASE)
#: Comments that say nothing of a peer: empty ones, rulers, the end of what a script has begun, a name left empty.
_NOTHING = re.compile(
    r"[#\s=*~_-]*|#{2,}\s*end\s.*|#+\s*end_peer\b.*|#+\s*(?:client|name|friendly_name)\s*:\s*", re.IGNORECASE
)
#: A name by itself, as people put it beside ``[Peer]``.
_WORD = re.compile(r"#+\s*([^\W_][\w.@+-]{0,63})")
#: The name's field in a ``# friendly_json``.
_NAME_FIELDS = (NAME, "username", "user", "client")


class Note(NamedTuple):
    """The content of a comment: a label, or (``label`` None) a field of the peer."""

    label: str | None
    field: str
    value: str | int | bool


def read(comment: str) -> tuple[Note, ...] | None:
    """The content of ``comment``, which begins with its ``#``; None if it is not recognised.

    Raises:
        ValueError: it is one of ours and malformed; with a sentence that quotes none of it.
    """
    if match := _LABEL.fullmatch(comment):
        return (Note(match[1].rstrip(), "", _text(match[2])),)
    if _NOTHING.fullmatch(comment):
        return ()
    if match := next(filter(None, (pattern.fullmatch(comment) for pattern in _NAMES)), None):
        name = _bare(match[1], match.re)
        return (Note(NAME, "", name),) if name else ()
    if not (match := _PAIR.fullmatch(comment)):
        return None
    key = match[1].lower()
    if key in ("friendly_name", NAME):
        return (Note(NAME, "", _text(match[2])),)
    if key == "friendly_json":
        return _from_json(match[2])
    if not key.startswith("peerlane."):
        return None
    return (_field(key, match[2].strip()),)


def _bare(text: str, form: re.Pattern[str]) -> str:
    """A name without what its program writes behind it: hashes where it began with ``### begin``, or a UUID."""
    if form is _NAMES[1]:
        text = text.rstrip("#")
    elif form is _NAMES[2] and len(text) > 38 and _UUID.fullmatch(text[-38:]):
        text = text[:-38]
    return text.strip()


def name_by_itself(comment: str) -> str | None:
    """The name that ``comment`` consists of. For a comment beside ``[Peer]`` that ``read`` does not recognise."""
    match = _WORD.fullmatch(comment)
    return match[1] if match else None


def _field(key: str, text: str) -> Note:
    field = key.removeprefix("peerlane.")
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
    """The comments for the fields of ``peer`` that WireGuard does not have; ``read`` reads them back."""
    for label, value in peer.labels.items():
        yield f"# {'friendly_name' if label == NAME else f'label.{label}'} = {_written(value)}"
    for field in _FIELDS:
        if value := getattr(peer, field):
            yield f"# peerlane.{field} = {value}"
    if peer.pinned:
        yield "# peerlane.pinned = true"


def _from_json(text: str) -> tuple[Note, ...] | None:
    """The labels in a JSON object; None if any of its values is no label."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    entries = cast("Mapping[str, object]", parsed).items()
    labels = {name: value if isinstance(value, str) else json.dumps(value) for name, value in entries}
    if any(isinstance(value, (dict, list)) for _, value in entries) or not are_labels(labels):
        return None
    called = next((labels.pop(name) for name in _NAME_FIELDS if name in labels), None)
    named = () if called is None else (Note(NAME, "", called),)
    return (*named, *(Note(name, "", value) for name, value in labels.items()))


def _text(raw: str) -> str:
    """A value as it is, or in JSON's double quotes if it would not be read back unchanged."""
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
