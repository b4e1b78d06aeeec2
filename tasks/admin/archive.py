"""Reads and writes a backup's file: gzipped lines of JSON with a header, one line for each record, and a checksum.

It contains everything as Redis does, also preshared keys, and has mode 0600: keep it safe. A damaged, truncated or
foreign file is refused as a whole before anything is changed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import stat
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from peerlane.config import names
from peerlane.tasks.errors import Invalid
from peerlane.tasks.wgfile.client_config import private_file

FORMAT = "peerlane-backup"
#: A program reads the versions it knows, and no other.
VERSION = 1
#: Bytes of a file, unpacked: many times the largest gateway's.
LARGEST = 4 * 1024**3
#: Bytes of one line: the first one names every unreadable peer.
LONGEST_LINE = 64 * 1024**2

#: Milliseconds since 1970 up to which there are dates, in the year 9999.
_END_OF_TIME = 253_402_300_800_000

Part = Literal["peers", "addresses", "seen"]
PARTS: tuple[Part, ...] = ("peers", "addresses", "seen")

#: Part, field and value of one thing stored.
Entry = tuple[Part, str, str]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, and of the gateway whose state it is."""

    gateway: str
    #: Milliseconds since 1970 on Redis' clock.
    taken_at: int
    epoch: int
    #: What the gateway said of itself, its state among it; nothing about the process that ran then.
    facts: Mapping[str, str]
    #: How many entries each part has.
    count: Mapping[Part, int]
    #: Peers whose record did not parse when this was taken: they are in the file as they were.
    unreadable: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many entries there are in all."""
        return sum(self.count.values())

    def line(self) -> str:
        """The file's first line."""
        fields: dict[str, Any] = {"format": FORMAT, "version": VERSION, "gateway": self.gateway}
        fields |= {"taken_at": self.taken_at, "epoch": self.epoch, "facts": dict(self.facts)}
        return json.dumps(fields | {"unreadable": self.unreadable, "count": dict(self.count)})


def write_archive(path: Path, header: Header, entries: Iterable[Entry], *, replace: bool = False) -> int:
    """Write the file, whole or not at all, entry by entry; its size in bytes.

    Raises:
        FileExists: it is there, and ``replace`` was not asked for.
        NotWritten: the system refuses.
    """
    with private_file(path, replace=replace) as file:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            digest = hashlib.sha256()

            def put(line: str) -> None:
                content = line.encode() + b"\n"
                digest.update(content)
                packed.write(content)

            put(header.line())
            for entry in entries:
                put(json.dumps(entry, separators=(",", ":")))
            packed.write(json.dumps({"sha256": digest.hexdigest()}).encode() + b"\n")
        return file.tell()


def read_header(path: Path) -> Header:
    """What a file says of itself. Whether the rest of it is sound, reading all ``entries`` tells.

    Raises:
        Invalid: it cannot be read, is no backup, or of an unknown version.
    """
    with _unpacked(path) as lines:
        return _header(path, next(lines, b""))


def entries(path: Path) -> Iterator[Entry]:
    """A file's entries, one at a time. They are valid only once the last one has been read.

    Raises:
        Invalid: at the latest after the last entry: the file is damaged, or none that this program could have written.
    """
    digest, counted = hashlib.sha256(), Counter[Part]()
    with _unpacked(path) as lines:
        first = next(lines, b"")
        header = _header(path, first)
        digest.update(first + b"\n")
        last: bytes | None = None
        for line in lines:
            if last is not None:
                digest.update(last + b"\n")
                entry = _entry(path, last)
                counted[entry[0]] += 1
                yield entry
            last = line
    if _object(last or b"") != {"sha256": digest.hexdigest()}:
        raise Invalid(f"{path} is damaged or cut short: its checksum does not fit")
    if any(counted[part] != header.count[part] for part in PARTS):
        raise _foreign(path)


@contextmanager
def _unpacked(path: Path) -> Generator[Iterator[bytes]]:
    """The lines of a gzipped file, without their ends."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Invalid(f"{path} cannot be read: it is no regular file, and it is read more than once")
        with gzip.open(path) as file:
            yield _lines(path, cast("IO[bytes]", file))
    except OSError as error:  # gzip's own BadGzipFile is one
        why = error.strerror or "it is no backup, or damaged"
        raise Invalid(f"{path} cannot be read: {why}") from None
    except (EOFError, zlib.error):
        raise Invalid(f"{path} is damaged or cut short") from None


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    size = 0
    while line := file.readline(LONGEST_LINE):
        size += len(line)
        if size > LARGEST or not line.endswith(b"\n"):
            raise Invalid(f"{path} is no backup, or cut short")
        yield line[:-1]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None


def _foreign(path: Path) -> Invalid:
    return Invalid(f"{path} is no backup that this program could have written")


def _header(path: Path, line: bytes) -> Header:
    fields = _object(line)
    if fields is None or fields.get("format") != FORMAT:
        raise Invalid(f"{path} is no backup of a gateway")
    if fields.get("version") != VERSION:
        shown = fields.get("version") if type(fields.get("version")) is int else "none"
        raise Invalid(f"{path} is a backup of version {shown}; this program reads version {VERSION}")
    try:
        gateway, facts = fields["gateway"], fields["facts"]
        if not names.GATEWAY_NAME.fullmatch(gateway) or not all(isinstance(value, str) for value in facts.values()):
            raise _foreign(path)
        count: dict[Part, int] = {part: int(fields["count"][part]) for part in PARTS}
        unreadable = tuple(str(key) for key in fields["unreadable"])
        header = Header(gateway, int(fields["taken_at"]), int(fields["epoch"]), dict(facts), count, unreadable)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise _foreign(path) from None
    if not 0 <= header.taken_at < _END_OF_TIME or not 0 <= header.epoch < 2**53 or min(count.values()) < 0:
        raise _foreign(path)
    return header


def _entry(path: Path, line: bytes) -> Entry:
    try:
        part, name, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        raise _foreign(path) from None
    if part not in PARTS or not isinstance(name, str) or not isinstance(value, str):
        raise _foreign(path)
    return part, name, value
