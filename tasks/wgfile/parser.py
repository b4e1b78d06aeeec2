"""Reads the files of ``wg`` and wg-quick. Pure.

``parse_conf`` returns facts, peers and problems for any bytes, and raises nothing. Private keys are converted to public
ones at once, and no problem's message quotes a value that could be secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast

from peerlane.tasks.errors import Invalid
from peerlane.tasks.values.overlaps import overlaps
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wgfile import comments
from peerlane.tasks.wgfile.values import VALUES
from peerlane.tasks.wire.model import parse
from peerlane.tasks.wire.stored_peer import Peer

#: Problems listed of one file; that there are more is only mentioned.
MAX_PROBLEMS = 100
#: Bytes of a line; 1,024 IPv6 prefixes fit.
MAX_LINE = 64 * 1024

#: Keys of wg-quick that the gateway does not use.
_IGNORED = ("FwMark", "DNS", "MTU", "Table", "PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig")
_INTERFACE_KEYS = ("PrivateKey", "ListenPort", "Address", *_IGNORED)
_PEER_KEYS = ("PublicKey", "PresharedKey", "AllowedIPs", "PersistentKeepalive", "Endpoint")
_REPEATED = ("Address", "AllowedIPs", *_IGNORED)


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why a file is not imported, with its line."""

    line: int
    sentence: str


@dataclass(frozen=True, slots=True)
class ConfPeer:
    """One peer as a file has it. ``line`` is that of its section."""

    line: int
    peer: Peer
    #: Fields that the file names; of the others ``peer`` holds defaults.
    named: frozenset[str] = frozenset()
    #: Where the peer was last seen; information only, the kernel learns it anew.
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class ParsedConf:
    """A file's content. If there are problems, ``peers`` lacks the peers that have one: import nothing then."""

    #: The interface's; None if the file names no PrivateKey.
    public_key: str | None
    listen_port: int | None
    #: The interface's, such as ``10.8.0.1/16``.
    addresses: tuple[str, ...]
    peers: tuple[ConfPeer, ...]
    problems: tuple[Problem, ...]
    #: Lines of the comments in or beside peers' sections of which nothing is kept.
    unread: tuple[int, ...] = ()


def parse_conf(data: bytes) -> ParsedConf:
    """Read a file. Returns for any bytes, and quotes no secret."""
    reader = _Reader()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, raw in enumerate(lines, 1):
        reader.take(number, raw)
    return reader.end(len(lines))


@dataclass(slots=True)
class _Section:
    kind: str
    line: int
    keys: set[str] = field(default_factory=set[str])
    labels: dict[str, str] = field(default_factory=dict[str, str])
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    #: The line of each prefix of AllowedIPs; that of the first key; comments that say nothing known.
    prefixes: dict[Prefix, int] = field(default_factory=dict["Prefix", int])
    first_key: int | None = None
    unread: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    sound: bool = True

    def keep(self, field_name: str, parsed: object, line: int) -> None:
        """Keep a value; lists add up over repeated lines."""
        if not isinstance(parsed, tuple):
            self.values[field_name] = parsed
            return
        self.values.setdefault(field_name, []).extend(cast("tuple[object, ...]", parsed))
        if field_name == "allowed_ips":
            for prefix in cast("tuple[Prefix, ...]", parsed):
                self.prefixes.setdefault(prefix, line)


class _Reader:
    """Reads the lines once. Keeps comments until it is clear which section they belong to."""

    def __init__(self) -> None:
        self._section: _Section | None = None
        self._interface: _Section | None = None
        self._peers: list[ConfPeer] = []
        self._problems: list[Problem] = []
        self._unread: list[int] = []
        self._too_many = False
        #: Comments since the last key or section: those before the first blank line, and those after.
        self._near: list[tuple[int, str]] = []
        self._far: list[tuple[int, str]] = []
        self._gap = False

    def take(self, number: int, raw: bytes) -> None:
        if self._too_many:
            return  # nothing is imported, and no more problems are listed
        if len(raw) > MAX_LINE:
            self._problem(number, f"the line is longer than {MAX_LINE} bytes")
            return
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            self._problem(number, "the line is not UTF-8; save the file in that encoding")
            return
        if "\0" in text:
            self._problem(number, "the line holds a NUL character; is this a text file, in UTF-8?")
            return
        content, mark, remark = text.partition("#")
        content = "".join(content.split())
        if mark and not content:
            (self._far if self._gap else self._near).append((number, mark + remark))
        elif not content:
            self._gap = True
        elif content.startswith("["):
            self._open(number, content)
        else:
            self._key(number, content)
        if content and mark and self._section is not None:
            self._annotate(self._section, [(number, mark + remark)])

    def end(self, last: int) -> ParsedConf:
        if not self._gap:
            self._near, self._far = [*self._near, *self._far], []
        self._close()
        self._unread += [number for number, _ in self._far]
        self._refuse_duplicates()
        interface = self._interface.values if self._interface else {}
        if self._too_many:
            self._problems.append(Problem(last, f"more problems than {MAX_PROBLEMS}: the rest is not listed"))
        return ParsedConf(
            public_key=interface.get("public_key"),
            listen_port=interface.get("listen_port"),
            addresses=tuple(interface.get("addresses", ())),
            peers=tuple(self._peers),
            problems=tuple(sorted(self._problems, key=lambda problem: problem.line)),
            unread=tuple(sorted(self._unread)),
        )

    def _problem(self, line: int, sentence: str, section: _Section | None = None) -> None:
        if section is not None:
            section.sound = False
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(line, sentence))
        else:
            self._too_many = True

    def _open(self, number: int, header: str) -> None:
        # What follows a blank line, or touches the next section, is the next one's.
        before = self._far
        if self._section is None or not self._gap:
            before, self._near = [*self._near, *self._far], []
        self._far = []
        self._close()
        kind = {"[interface]": "Interface", "[peer]": "Peer"}.get(header.lower(), "")
        self._section = _Section(kind, number)
        if not kind:
            self._problem(number, "no such section: a file has [Interface] and [Peer]")
        elif kind == "Interface":
            if self._interface is not None:
                self._problem(number, f"a second [Interface]; the first is at line {self._interface.line}")
            else:
                self._interface = self._section
        self._annotate(self._section, before)

    def _close(self) -> None:
        """End the current section; comments near its last key are still its own."""
        section, self._section = self._section, None
        near, self._near, self._gap = self._near, [], False
        if section is None or section.kind != "Peer":
            return
        self._annotate(section, near)
        self._name(section)
        if "PublicKey" not in section.keys:
            self._problem(section.line, "the peer has no PublicKey", section)
        elif not section.values.get("allowed_ips") and section.sound:
            self._problem(section.line, "the peer has no AllowedIPs", section)
        elif nested := next(overlaps(section.prefixes.items()), None):
            (wide, wide_line), (narrow, narrow_line) = nested
            self._problem(max(wide_line, narrow_line), f"AllowedIPs: {wide} and {narrow} overlap", section)
        if not section.sound:
            return
        fields = {name: value for name, value in section.values.items() if name != "endpoint"}
        fields["labels"] = section.labels
        if fields.get("pinned") and fields.keys() & {"ttl", "expires_at"}:
            self._problem(section.line, "a pinned peer never expires: ttl or pinned, not both", section)
            return
        try:
            peer = parse(Peer, fields)
        except Invalid as error:
            self._problem(section.line, str(error), section)
            return
        named = frozenset(fields) - (set() if section.labels else {"labels"})
        self._peers.append(ConfPeer(section.line, peer, named, section.values.get("endpoint")))

    def _key(self, number: int, content: str) -> None:
        section = self._section
        key, equals, value = content.partition("=")
        if not equals:
            self._problem(number, "neither a section nor KEY = VALUE", section)
            return
        if section is None:
            self._problem(number, "a key before any section: [Interface] or [Peer] comes first")
            return
        self._annotate(section, [*self._near, *self._far])
        self._near, self._far, self._gap = [], [], False
        section.first_key = section.first_key or number
        if not section.kind:
            return
        known = {name.lower(): name for name in (_PEER_KEYS if section.kind == "Peer" else _INTERFACE_KEYS)}
        name = known.get(key.lower()) if key.isascii() else None
        if name is None:
            # Not quoted: a line broken in the wrong place may be half of a secret.
            near = get_close_matches(key.lower()[:32], list(known), 1)
            hint = f"; did you mean {known[near[0]]}?" if near else ""
            self._problem(number, f"no such key in [{section.kind}]{hint}", section)
            return
        if name in section.keys and name not in _REPEATED:
            self._problem(number, f"{name} stands a second time in this section", section)
            return
        section.keys.add(name)
        if name not in VALUES:
            return
        field_name, read = VALUES[name]
        try:
            parsed = read(value)
        except ValueError as error:
            self._problem(number, str(error), section)
            return
        section.keep(field_name, parsed, number)

    def _annotate(self, section: _Section, lines: list[tuple[int, str]]) -> None:
        if section.kind != "Peer":
            return
        for number, comment in lines:
            try:
                notes = comments.read(comment)
            except ValueError as error:
                self._problem(number, str(error), section)
                continue
            if notes is None:
                section.unread.append((number, comment))
            for note in notes or ():
                if note.label is None:
                    section.values.setdefault(note.field, note.value)
                else:
                    section.labels.setdefault(note.label, str(note.value))

    def _name(self, section: _Section) -> None:
        """A name by itself counts directly above the section's head, and from there to its first key."""
        until = section.first_key or section.line + 1
        for number, comment in section.unread:
            beside = section.line - 1 <= number < until
            if beside and comments.NAME not in section.labels and (name := comments.name_by_itself(comment)):
                section.labels[comments.NAME] = name
            else:
                self._unread.append(number)

    def _refuse_duplicates(self) -> None:
        first: dict[str, int] = {}
        for peer in self._peers:
            other = first.setdefault(peer.peer.public_key, peer.line)
            if other != peer.line:
                self._problem(peer.line, f"the peer {peer.peer.public_key} stands at line {other} already")
        if self._too_many:
            return
        owned = ((prefix, peer) for peer in self._peers for prefix in peer.peer.allowed_ips)
        for (wide, wide_peer), (narrow, narrow_peer) in overlaps(owned):
            if wide_peer.peer.public_key == narrow_peer.peer.public_key:
                continue
            (earlier, mine), (later, theirs) = sorted(
                ((wide_peer.line, wide), (narrow_peer.line, narrow)), key=lambda pair: pair[0]
            )
            self._problem(later, f"AllowedIPs: {theirs} overlaps {mine} of the peer at line {earlier}")
            if self._too_many:
                return
