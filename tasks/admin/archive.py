"""Reads and writes a backup's file: gzipped lines of JSON with a header, one line for each record, and a checksum.

It contains everything as Redis does, also preshared keys, and has mode 0600: keep it safe. A damaged, truncated or
foreign file is refused as a whole before anything is changed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

from peerlane.config import names
from peerlane.tasks.errors import Invalid
from peerlane.tasks.wgfile.client_config import write_private

FORMAT = "peerlane-backup"
#: A program reads the versions it knows, and no other.
VERSION = 1
#: Bytes of a file, unpacked: many times the largest gateway's.
LARGEST = 4 * 1024**3

Part = Literal["peers", "addresses", "seen"]
PARTS: tuple[Part, ...] = ("peers", "addresses", "seen")


@dataclass(slots=True)
class Archive:
    """A gateway's data in Redis at one moment."""

    gateway: str
    #: Milliseconds since 1970 on Redis' clock.
    taken_at: int
    epoch: int
    #: What the gateway said of itself, its state among it; nothing about the process that ran then.
    facts: dict[str, str]
    #: Hash by hash, as stored.
    parts: dict[Part, dict[str, str]] = field(
        default_factory=lambda: cast("dict[Part, dict[str, str]]", {part: {} for part in PARTS})
    )
    #: Peers whose record did not parse when this was taken: they are here as they were.
    unreadable: list[str] = field(default_factory=list[str])

    def write(self, path: Path, *, replace: bool = False) -> int:
        """Write the file completely or not at all; returns its size in bytes.

        Raises:
            FileExists: it is there, and ``replace`` was not asked for.
            NotWritten: the system refuses.
        """
        content = gzip.compress(b"".join(_sealed(self._lines())), mtime=0)
        write_private(path, content, replace=replace)
        return len(content)

    def _lines(self) -> Iterator[str]:
        header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "gateway": self.gateway}
        header |= {"taken_at": self.taken_at, "epoch": self.epoch, "facts": self.facts, "unreadable": self.unreadable}
        yield json.dumps(header | {"count": {part: len(self.parts[part]) for part in PARTS}})
        for part in PARTS:
            for name, value in self.parts[part].items():
                yield json.dumps([part, name, value], separators=(",", ":"))


def _sealed(lines: Iterable[str]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for line in lines:
        content = line.encode() + b"\n"
        digest.update(content)
        yield content
    yield json.dumps({"sha256": digest.hexdigest()}).encode() + b"\n"


def read_archive(path: Path) -> Archive:
    """Read and check a whole file.

    Raises:
        Invalid: it cannot be read, is no backup, of an unknown version, or damaged; nothing of it is to be used.
    """
    lines = _unpacked(path)
    if len(lines) < 2 or (header := _header(lines[0])) is None:
        raise Invalid(f"{path} is no backup of a gateway")
    if header.get("version") != VERSION:
        shown = header.get("version") if type(header.get("version")) is int else "none"
        raise Invalid(f"{path} is a backup of version {shown}; this program reads version {VERSION}")
    *content, end = lines
    digest = hashlib.sha256(b"".join(chain.from_iterable((line, b"\n") for line in content))).hexdigest()
    if _object(end) != {"sha256": digest}:
        raise Invalid(f"{path} is damaged or cut short: its checksum does not fit")
    try:
        return _archive(header, content[1:])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Invalid(f"{path} is no backup that this program could have written") from None


def _unpacked(path: Path) -> list[bytes]:
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:  # gzip's own BadGzipFile is one
        why = error.strerror or "it is no backup, or damaged"
        raise Invalid(f"{path} cannot be read: {why}") from None
    except (EOFError, zlib.error):
        raise Invalid(f"{path} is damaged or cut short") from None
    if len(content) > LARGEST or not content.endswith(b"\n"):
        raise Invalid(f"{path} is no backup, or cut short")
    return content[:-1].split(b"\n")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _header(line: bytes) -> dict[str, Any] | None:
    found = _object(line)
    return found if found is not None and found.get("format") == FORMAT else None


def _archive(header: dict[str, Any], lines: list[bytes]) -> Archive:
    gateway, facts = header["gateway"], header["facts"]
    if not names.GATEWAY_NAME.fullmatch(gateway) or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError("the header")
    found = Archive(gateway, int(header["taken_at"]), int(header["epoch"]), dict(facts))
    found.unreadable = [str(key) for key in header["unreadable"]]
    for line in lines:
        part, name, value = json.loads(line)
        if part not in PARTS or not isinstance(name, str) or not isinstance(value, str):
            raise ValueError("a line")
        found.parts[part][name] = value
    if {part: len(found.parts[part]) for part in PARTS} != header["count"] or sum(header["count"].values()) != len(
        lines
    ):
        raise ValueError("the count")
    return found
