"""Imports the peers of a WireGuard file or of a live device: all or none, after listing the conflicts.

The peers are staged in Redis, then one request asks the gateway's writer to take all or none. Only differences are
changed on the device, so running sessions continue.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin.import_conflicts import clashes, is_there
from peerlane.tasks.admin.import_refusals import AdoptionClash, ImportClash, NotTaken, UnreadableConf
from peerlane.tasks.admission.lanes import Lanes, lanes_of
from peerlane.tasks.client.gateway import Gateway
from peerlane.tasks.errors import Conflict, Invalid
from peerlane.tasks.lane import tasks
from peerlane.tasks.redis.errors import PAGE, reaching, scan
from peerlane.tasks.values.overlaps import Areas
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wgfile.export import readable
from peerlane.tasks.wgfile.parser import ConfPeer, ParsedConf, parse_conf
from peerlane.tasks.wire.bulk import MAX_IMPORT
from peerlane.tasks.wire.psk_cipher import cipher_of

#: Seconds that an import is waited for unless told otherwise: thousands of peers are one request.
TIMEOUT = 60.0
#: Seconds after which staged peers are gone by themselves.
STAGED_FOR = 600
#: Bytes of a file that are looked at.
MAX_BYTES = 64 * 1024 * 1024
#: Lines of comments that are listed.
MAX_LINES = 1000

#: Hands on what it is given, and counts it.
Counted = Callable[[Iterator[tuple[bytes, bytes]]], Iterator[tuple[bytes, bytes]]]

_FIELDS = ("preshared_key", "keepalive", "labels", "ttl", "pinned", "expires_at", "created_at")


class Imported(BaseModel):
    """The result of an import."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: ``imported``, or ``would_import`` for a dry run.
    outcome: str
    gateway: str
    created: int
    #: Peers that were there already, as the file has them.
    existing: int
    #: Of a live device: peers without allowed IPs, which stay on it and which Redis does not know.
    left_out: tuple[NotTaken, ...] = ()
    #: Peers beyond those listed.
    unlisted: int = 0
    #: Of a file: how many comments of its peers say nothing that is kept, and the lines of the first of them.
    comments_left_out: int = 0
    comment_lines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that can be imported, as far as can be known without the writer."""

    gateway: str
    fresh: tuple[ConfPeer, ...]
    existing: tuple[ConfPeer, ...]
    #: Lines of comments of which nothing is kept.
    unread: tuple[int, ...] = ()

    def with_comments(self, imported: Imported) -> Imported:
        """The result with the lines of the comments of which nothing was kept."""
        left = {"comments_left_out": len(self.unread), "comment_lines": self.unread[:MAX_LINES]}
        return imported.model_copy(update=left)


def check_file(data: bytes, gateway: str, *, app: PeerlaneApp | None = None, counted: Counted = iter) -> Checked:
    """Read a file and find all problems and conflicts of its import. Changes nothing.

    ``counted`` is given the gateway's addresses, which are read one after the other, and hands them on.

    Raises:
        UnreadableConf: it has problems; lists them.
        ImportClash: lists every conflict.
        Conflict: it is of another gateway; names both public keys.
        Invalid: there are no peers in it, or too many for one import.
        Unavailable: no such gateway is registered.
        OutcomeUnknown: Redis could not be reached.
    """
    client = Gateway(gateway, app=app)
    info = client.info()
    conf = _read(data)
    if conf.public_key not in (None, info.public_key):
        raise Conflict(
            f"nothing was imported: the file's PrivateKey is that of {conf.public_key}, the gateway {gateway} has the"
            f" public key {info.public_key}; import it into its own gateway, or put its key into that gateway's key"
            " file before it starts"
        )
    wanted = {entry.peer.public_key for entry in conf.peers}
    present = {peer.public_key: peer for peer in readable(client.peers(among=wanted))}
    addresses = _addresses(counted(scan(lanes_of(app or tasks.app).redis, names.addresses_key(gateway))), conf.peers)
    if clashing := sorted(
        clashes(conf.peers, info, present, addresses), key=lambda entry: (entry.line, entry.sentence)
    ):
        raise ImportClash(clashing)
    existing = tuple(entry for entry in conf.peers if is_there(entry, present.get(entry.peer.public_key)))
    there = {entry.peer.public_key for entry in existing}
    fresh = tuple(entry for entry in conf.peers if entry.peer.public_key not in there)
    return Checked(gateway, fresh, existing, conf.unread)


def import_file(
    data: bytes,
    gateway: str,
    *,
    app: PeerlaneApp | None = None,
    dry_run: bool = False,
    timeout: float = TIMEOUT,
    counted: Counted = iter,
) -> Imported:
    """Import a file's peers into Redis and onto the device: all of them, or none. ``counted``: see ``check_file``.

    Raises:
        PeerlaneError: as ``check_file``, and as Gateway.create_peer: nothing was imported but for OutcomeUnknown.
    """
    checked = check_file(data, gateway, app=app, counted=counted)
    if dry_run:
        created, existing = len(checked.fresh), len(checked.existing)
        return checked.with_comments(
            Imported(outcome="would_import", gateway=gateway, created=created, existing=existing)
        )
    return carry_out(checked, app=app, timeout=timeout)


def import_live(
    gateway: str,
    *,
    app: PeerlaneApp | None = None,
    leave_out: bool = False,
    dry_run: bool = False,
    timeout: float = TIMEOUT,
) -> Imported:
    """Import the peers that the live device has and Redis does not know: all of them, or none.

    Peers without allowed IPs cannot be Peerlane's. They refuse the import, unless ``leave_out`` says to leave them on
    the device: then they are listed, and PEERLANE_UNKNOWN_PEERS says what becomes of them.

    Raises:
        AdoptionClash: lists those that cannot be taken, and why; a ``dry_run`` too.
        PeerlaneError: as Gateway.create_peer: nothing was imported but for OutcomeUnknown.
    """
    task = tasks.task_of(app or tasks.app, names.IMPORT_PEERS)

    def ask(**flags: bool) -> dict[str, Any]:
        sent = task.apply_async(kwargs={"gateway": gateway, "live": True, **flags}, expires=timeout)
        return sent.get(timeout=timeout)

    would = ask(dry_run=True)
    wrong = [NotTaken.model_validate(conflict) for conflict in would["conflicts"]]
    if not leave_out:
        wrong += [NotTaken.model_validate(conflict) for conflict in would["left_out"]]
    if wrong:
        raise AdoptionClash(wrong, int(would["unlisted"]))
    # Peers that come onto the device meanwhile are checked by the writer.
    return Imported.model_validate(would if dry_run else ask(leave_out=leave_out))


def _read(data: bytes) -> ParsedConf:
    if len(data) > MAX_BYTES:
        raise Invalid(f"the file is larger than {MAX_BYTES // 2**20} MiB")
    conf = parse_conf(data)
    if conf.problems:
        raise UnreadableConf(conf.problems)
    if not conf.peers:
        raise Invalid("the file has no [Peer]: there is nothing to import")
    if len(conf.peers) > MAX_IMPORT:
        raise Invalid(f"the file has {len(conf.peers)} peers; one import takes {MAX_IMPORT}: cut it into several files")
    return conf


def carry_out(checked: Checked, *, app: PeerlaneApp | None = None, timeout: float = TIMEOUT) -> Imported:
    """Import a checked file: all of it, or none.

    Raises:
        PeerlaneError: as Gateway.create_peer: nothing was imported but for OutcomeUnknown.
    """
    application = app or tasks.app
    task = tasks.task_of(application, names.IMPORT_PEERS)
    seal = partial(cipher_of(application.settings).encrypt, checked.gateway)
    entries = [staged(peer, seal) for peer in (*checked.fresh, *checked.existing)]
    digest = hashlib.sha256("".join(f"{entry}\n" for entry in entries).encode()).hexdigest()
    token = uuid.uuid4().hex
    lanes = lanes_of(application)
    key = names.staged_key(checked.gateway, token)
    try:
        _stage(lanes, key, entries)
        arguments = {"gateway": checked.gateway, "token": token, "count": len(entries), "digest": digest}
        sent = task.apply_async(kwargs=arguments, expires=timeout)
        try:
            return checked.with_comments(Imported.model_validate(sent.get(timeout=timeout)))
        except KeyboardInterrupt:  # cancelled now, or done already: either is an answer
            return checked.with_comments(Imported.model_validate(sent.get(timeout=0.01)))
    finally:
        with suppress(RedisError):  # it goes away by itself too
            lanes.redis.delete(key)


def staged(entry: ConfPeer, seal: Callable[[str, str | None], str | None] = lambda _, clear: clear) -> str:
    """The staged entry of a file's peer: the fields that the file sets (peerlane.tasks.wire.bulk.StagedPeer)."""
    peer = entry.peer
    fields: dict[str, Any] = {"public_key": peer.public_key, "allowed_ips": [str(p) for p in peer.allowed_ips]}
    fields |= {name: value for name in _FIELDS if name in entry.named and (value := getattr(peer, name)) is not None}
    if "preshared_key" in fields:
        fields["preshared_key"] = seal(peer.public_key, fields["preshared_key"])
    return json.dumps(fields, separators=(",", ":"))


def _stage(lanes: Lanes, key: str, entries: Sequence[str]) -> None:
    with reaching("nothing was imported"):
        for start in range(0, len(entries), PAGE):
            pipe = lanes.redis.pipeline(transaction=True)
            pipe.rpush(key, *entries[start : start + PAGE])
            pipe.expire(key, STAGED_FOR)
            pipe.execute()


def _addresses(entries: Iterable[tuple[bytes, bytes]], peers: Sequence[ConfPeer]) -> dict[Prefix, str]:
    """The owners of these peers' addresses, and the addresses that these peers hold already."""
    keys = {peer.peer.public_key for peer in peers}
    areas = Areas(prefix for peer in peers for prefix in peer.peer.allowed_ips)
    owners: dict[Prefix, str] = {}
    for text, name in entries:
        with suppress(ValueError):  # the writer reports those by itself
            prefix, owner = Prefix.parse(text.decode(errors="replace")), name.decode(errors="replace")
            if owner in keys or areas.touch(prefix):
                owners[prefix] = owner
    return owners
