"""Reads the peers to create or delete from CSV or JSON. A malformed line gets its own error."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO, cast

from peerlane.tasks.cli.parameters import parse_duration, parse_label
from peerlane.tasks.errors import Invalid

FIELDS = ("public_key", "allowed_ips", "preshared_key", "keepalive", "ttl", "labels", "pinned")

#: Characters of a list that are read: a million peers, and no device that never ends.
LONGEST_LIST = 64 * 1024 * 1024

_BLANK = re.compile(r"\s*")
#: How a line of keys begins. Whether it is a key, its answer says.
_LOOKS_LIKE_A_KEY = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, slots=True)
class Line:
    """One line that asks for a peer."""

    #: As an editor counts them, from 1.
    number: int
    #: The arguments of a create, or what is wrong with the line.
    wish: dict[str, Any] | Invalid

    @property
    def public_key(self) -> str | None:
        """Its public key, if it can be read."""
        key = None if isinstance(self.wish, Invalid) else self.wish.get("public_key")
        return key if isinstance(key, str) else None


def text_of(source: TextIO) -> str:
    """The whole list.

    Raises:
        Invalid: it is no text, cannot be read, or is too long.
    """
    try:
        text = source.read(LONGEST_LIST + 1)
    except (UnicodeDecodeError, OSError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
        raise Invalid(f"the list cannot be read: {reason}") from None
    if len(text) > LONGEST_LIST:
        raise Invalid(f"the list is longer than {LONGEST_LIST:,} characters: cut it into several")
    return text


def read_lines(text: str, defaults: Mapping[str, Any]) -> list[Line]:
    """Every line that is not blank, or every item of a JSON array.

    What starts with ``{`` is JSON lines, with ``[`` a JSON array, anything else CSV with a first line of names.
    ``defaults`` hold for lines that say nothing else; labels are put together.

    Raises:
        Invalid: the first line of a CSV does not name fields that there are, or an array is none.
    """
    return [Line(number, _completed(wish, defaults)) for number, wish in _reader(text)]


def read_keys(text: str) -> list[Line]:
    """The keys of peers to delete: one a line, or a form that ``read_lines`` takes, whose other fields are ignored.

    Raises:
        Invalid: as ``read_lines`` does.
    """
    first = text.lstrip().split("\n", 1)[0].strip()
    if first[:1] in ("{", "[") or not _LOOKS_LIKE_A_KEY.fullmatch(first):
        return [
            Line(number, item if isinstance(item, Invalid) else {"public_key": item.get("public_key")})
            for number, item in _reader(text)
        ]
    lines = enumerate((line.strip() for line in text.split("\n")), 1)
    return [Line(number, {"public_key": line}) for number, line in lines if line]


def _reader(text: str) -> Iterator[tuple[int, dict[str, Any] | Invalid]]:
    match text.lstrip()[:1]:
        case "{":
            return _json_lines(text)
        case "[":
            return _json_array(text)
        case _:
            return _csv_lines(text)


def _completed(fields: dict[str, Any] | Invalid, defaults: Mapping[str, Any]) -> dict[str, Any] | Invalid:
    if isinstance(fields, Invalid):
        return fields
    if unknown := [name for name in fields if name not in FIELDS]:
        return Invalid(f"{unknown[0][:64]}: no such field; there are {', '.join(FIELDS)}")
    if not fields.get("public_key"):
        return Invalid("public_key is missing: in a list each line names its own")
    said = {name: value for name, value in fields.items() if value is not None}
    # A pinned peer never expires: a line that says the one is not given the other.
    never = {"pinned" if said.get("ttl") else "ttl" if said.get("pinned") else ""}
    wish = {**{name: value for name, value in defaults.items() if name not in never}, **said}
    if isinstance(fields.get("labels"), dict):
        wish["labels"] = {**defaults.get("labels", {}), **fields["labels"]}
    if isinstance(wish.get("ttl"), str):
        try:
            wish["ttl"] = parse_duration(wish["ttl"])
        except ValueError as error:
            return Invalid(f"ttl: {error}")
    return wish


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | Invalid]]:
    # Not splitlines(): JSON may hold U+2028 as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            yield number, Invalid("not JSON")
            continue
        yield number, cast("dict[str, Any]", item) if isinstance(item, dict) else Invalid("not a JSON object")


def _json_array(text: str) -> Iterator[tuple[int, dict[str, Any] | Invalid]]:
    """The items of an array, each with the line on which it starts."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    line, counted = 1, 0
    while True:
        at = _BLANK.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing too
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]":
            break
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise Invalid(f"line {line}: not JSON; nothing was sent") from None
        yield line, _item(item)
        at = _BLANK.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess] - as above
        if text[at : at + 1] not in (",", "]"):
            raise Invalid(f"line {line + text.count(chr(10), counted, at)}: a JSON array has a comma or ] here")
        at += text[at] == ","
    if text[at + 1 :].strip():
        raise Invalid("behind the JSON array there is something else; nothing was sent")


def _item(value: object) -> dict[str, Any] | Invalid:
    if isinstance(value, str):
        return {"public_key": value}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else Invalid("not a JSON object")


def _header(text: str) -> tuple[list[str], str]:
    """The names in the first line of a CSV, and what separates them: a comma, a semicolon or a tab."""
    first = text.split("\n", 1)[0]
    candidates: list[tuple[list[str], str]] = []
    for separator in ",;\t":
        try:
            names = next(csv.reader([first], delimiter=separator, strict=True), list[str]())
        except csv.Error:
            continue
        names = [name.strip().lower() for name in names]
        while names and not names[-1]:
            names.pop()  # a separator at the end of the line
        candidates.append((names, separator))
    known = [candidate for candidate in candidates if candidate[0] and all(name in FIELDS for name in candidate[0])]
    return known[0] if known else candidates[0] if candidates else ([], ",")


def _csv_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | Invalid]]:
    header, separator = _header(text)
    unknown = [name for name in header if name not in FIELDS]
    if unknown or "public_key" not in header:
        problem = f"{unknown[0][:64]!r} is none" if unknown else "public_key is missing"
        form = "separated by commas, semicolons or tabs"
        raise Invalid(f"the first line of a CSV names its fields ({', '.join(FIELDS)}), {form}: {problem}")
    # Not splitlines(): a label may hold U+2028.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        width = max(len(next(rows)), len(header) + 1)  # many programs end each line with a separator
    except csv.Error as error:
        raise Invalid(f"not CSV: {error}") from None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, Invalid(f"not CSV: {error}")
            continue
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > width or any(cell.strip() for cell in row[len(header) :]):
            yield rows.line_num, Invalid(f"{len(row)} fields where the first line names {len(header)}")
            continue
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()}
        try:
            yield rows.line_num, {name: _cell(name, cell) for name, cell in cells.items()}
        except ValueError as error:
            yield rows.line_num, Invalid(str(error))


def _cell(name: str, text: str) -> object:
    match name:
        case "allowed_ips":
            return text.replace(";", " ").replace(",", " ").split()
        case "keepalive":
            if not text.isascii() or not text.isdigit():
                raise ValueError(f"keepalive: {text[:64]!r} is no number of seconds")
            return int(text[:12])
        case "labels":
            labels = [parse_label(part.strip()) for part in text.split(";") if part.strip()]
            if len(dict(labels)) < len(labels):
                raise ValueError("labels: one is given twice")
            return dict(labels)
        case "pinned":
            if text.lower() not in _TRUE + _FALSE:
                raise ValueError(f"pinned: {text[:64]!r} is neither true nor false")
            return text.lower() in _TRUE
        case _:
            return text
