"""The client: one object per gateway; its calls return frozen results or raise errors of ``peerlane.tasks.errors``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Any, cast

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.drain import Switched, switch
from peerlane.tasks.admission.lane_state import unknown_gateway
from peerlane.tasks.admission.lanes import Lanes, lanes_of
from peerlane.tasks.client.peer_order import PeerOrder
from peerlane.tasks.errors import StorageError
from peerlane.tasks.lane import tasks
from peerlane.tasks.lane.ask import ask
from peerlane.tasks.lane.request import Timeout, plain, seconds_of
from peerlane.tasks.lane.slices import PeerAnswer, PeerWish, ask_list
from peerlane.tasks.lane.telemetry import counted
from peerlane.tasks.redis.errors import PAGE, reading, scan
from peerlane.tasks.status.fleet_snapshot import FleetReader
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.activity import PeerActivity
from peerlane.tasks.values.key_set import KeySet
from peerlane.tasks.wire.model import DeletePeer, PeerResult, check_public_key, parse, peer_result
from peerlane.tasks.wire.psk_cipher import Unsealable, cipher_of
from peerlane.tasks.wire.stored_peer import Peer


def create_arguments(  # noqa: PLR0917 - create_peer's own, in its order
    public_key: str,
    allowed_ips: Sequence[str] | None,
    preshared_key: str | None,
    keepalive: int,
    ttl: float | timedelta | None,
    labels: Mapping[str, str] | None,
    pinned: bool,  # noqa: FBT001 - the order is create_peer's own
) -> dict[str, Any]:
    """The arguments of a create as the task takes them, without those that are not set."""
    wish: dict[str, Any] = {
        "public_key": public_key,
        "allowed_ips": plain(allowed_ips),
        "preshared_key": preshared_key,
        "keepalive": keepalive or None,
        "ttl": ttl.total_seconds() if isinstance(ttl, timedelta) else ttl,
        "labels": plain(labels),
        "pinned": pinned or None,
    }
    return {name: value for name, value in wish.items() if value is not None}


class Gateway:
    """One gateway, seen from an API host. Threads may share it.

    Every call that asks the gateway's writer raises the errors of ``peerlane.tasks.errors``. ``timeout`` is in seconds,
    or a timedelta.
    """

    def __init__(self, name: str, *, app: PeerlaneApp | None = None, timeout: Timeout | None = None) -> None:
        """``timeout`` is for calls that name none; 0 is refused: a call waits for its outcome.

        ``app`` is made with ``config.celery.app.PeerlaneApp(settings)``; without it the process' own is used.
        """
        self.name = name
        self._app = app or tasks.app
        self._timeout: Timeout = self._app.settings.timeout if timeout is None else timeout
        self._create = tasks.task_of(self._app, names.CREATE_PEER)
        self._delete = tasks.task_of(self._app, names.DELETE_PEER)

    @property
    def _lanes(self) -> Lanes:
        return lanes_of(self._app)

    def create_peer(
        self,
        public_key: str,
        *,
        allowed_ips: Sequence[str] | None = None,
        preshared_key: str | None = None,
        keepalive: int = 0,
        ttl: float | timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        pinned: bool = False,
        timeout: Timeout | None = None,
        request_id: str | None = None,
        bulk: bool = False,
    ) -> PeerResult:
        """Create a peer: ``created``, or ``existing`` where the same wish was granted before.

        Without ``allowed_ips`` the gateway allocates one address per family. ``ttl`` is in seconds.

        Raises:
            Refused: Invalid, Conflict, PoolExhausted, Draining, Unavailable, TimedOut: nothing was changed.
                A Conflict too is a ``request_id`` that was used for another wish before.
            OutcomeUnknown: Redis could not be reached; ask again with the error's ``request_id``.
            KernelError: the kernel refused; nothing was changed.
        """
        wish = create_arguments(public_key, allowed_ips, preshared_key, keepalive, ttl, labels, pinned)
        with counted(self.name):
            return self._ask(self._create, wish, timeout, request_id, bulk=bulk)

    def delete_peer(
        self,
        public_key: str,
        *,
        timeout: Timeout | None = None,
        request_id: str | None = None,
        bulk: bool = False,
    ) -> PeerResult:
        """Delete a peer: ``deleted``, or ``absent`` where it was not there. Raises as ``create_peer`` does."""
        with counted(self.name):
            return self._ask(self._delete, {"public_key": public_key}, timeout, request_id, bulk=bulk)

    def create_peers(
        self,
        wishes: Iterable[PeerWish] | Iterable[Mapping[str, Any]],
        *,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> list[PeerAnswer]:
        """Create many peers. Returns for each, in order, its result or its error; raises none of these.

        ``wishes`` are mappings of what ``create_peer`` takes, as many as there are. They go in slices of up to 64, each
        one request on the lane's bulk queue and one commit, four of them on their way. A wish that is malformed is
        answered with Invalid and not sent; a wish that is refused does not touch the others. ``timeout`` is for each
        slice from when it is sent: one that is not answered by then is cancelled whole, and TimedOut for each of its
        wishes. The same list asked again with the same ``request_id`` is answered as before, the one of an
        OutcomeUnknown among the answers included. Left by an exception, it cancels what is on its way.

        Raises:
            Invalid: ``request_id`` is malformed.
        """
        with counted(self.name):
            return list(self._ask_list(names.CREATE_PEERS, wishes, timeout, request_id))

    def delete_peers(
        self, public_keys: Iterable[str], *, timeout: Timeout | None = None, request_id: str | None = None
    ) -> list[PeerAnswer]:
        """Delete many peers. Returns results and errors as ``create_peers`` does."""
        with counted(self.name):
            return list(self._ask_list(names.DELETE_PEERS, public_keys, timeout, request_id))

    def _ask_list(
        self, task: str, wishes: Iterable[object], timeout: Timeout | None, request_id: str | None
    ) -> Iterator[PeerAnswer]:
        within = seconds_of(timeout, self._timeout)
        return ask_list(self._app, task, self.name, wishes, timeout=within, request_id=request_id)

    def _ask(
        self,
        task: tasks.LaneTask,
        arguments: dict[str, Any],
        timeout: Timeout | None,
        request_id: str | None,
        *,
        bulk: bool,
    ) -> PeerResult:
        within = seconds_of(timeout, self._timeout)
        wish = {"gateway": self.name, **arguments}
        return peer_result(ask(self._lanes, task, wish, within=within, request_id=request_id, bulk=bulk))

    def drain(self) -> Switched:
        """Refuse new peers from now on; deletes and sweeps continue. Draining twice is no error.

        Raises:
            Unavailable: no such gateway is registered.
            OutcomeUnknown: Redis could not be reached; doing it again is harmless.
        """
        return switch(self._lanes, self.name, "draining")

    def resume(self) -> Switched:
        """Let a drained gateway take peers again. Raises as ``drain`` does."""
        return switch(self._lanes, self.name, "active")

    def info(self) -> GatewayInfo:
        """The gateway's facts, as its writer has stored them.

        Raises:
            Unavailable: no such gateway is registered.
            StorageError: Redis refuses to show it to this user.
            OutcomeUnknown: Redis could not be reached.
        """
        with reading():
            lane = self._lanes.look(self.name)
        if not lane.facts:
            raise unknown_gateway(self.name)
        return GatewayInfo.from_state(lane)

    def peer(self, public_key: str) -> Peer | None:
        """One peer as stored, None if there is none. Read from Redis; the writer is not asked.

        Raises:
            Invalid: not a public key.
            StorageError: its record does not parse, or Redis refuses to show it to this user.
            OutcomeUnknown: Redis could not be reached.
        """
        parse(DeletePeer, {"gateway": self.name, "public_key": public_key})
        with reading():
            record = cast("bytes | None", self._lanes.redis.hget(names.peers_key(self.name), public_key))
        return None if record is None else self._opened(Peer.from_record(public_key, record))

    def _opened(self, stored: Peer) -> Peer:
        """The peer with its preshared key in clear, if this host can decrypt it; else as stored."""
        try:
            return cipher_of(self._app.settings).opened(self.name, stored)
        except Unsealable:
            return stored

    def activity(self, public_key: str) -> PeerActivity | None:
        """When a peer was last seen and what it has sent and received; None where nothing is known of it.

        Kept by the gateway's observer, which reads the device every PEERLANE_OBSERVE_EVERY seconds.

        Raises:
            Invalid: not a public key.
            StorageError: Redis refuses to show it to this user (print its rights anew: ``peerlane acl``).
            OutcomeUnknown: Redis could not be reached.
        """
        parse(DeletePeer, {"gateway": self.name, "public_key": public_key})
        with reading():
            pipe = self._lanes.redis.pipeline(transaction=False)
            pipe.hget(names.peers_key(self.name), public_key)
            pipe.hget(names.seen_key(self.name), public_key)
            record, stored = cast("tuple[bytes | None, bytes | None]", tuple(pipe.execute()))
        created_at = Peer.from_record(public_key, record).created_at if record is not None else 0
        return PeerActivity.from_stored(stored, created_at)

    def peers(self, *, among: Collection[str] | None = None) -> Iterator[Peer]:
        """Every peer as stored, page by page, in no order; a record that does not parse is left out.

        ``among``: of these public keys only.

        Raises:
            StorageError: Redis refuses to show them to this user.
            OutcomeUnknown: Redis could not be reached.
        """
        for page in self._pages(among):
            yield from page

    def peers_in_order(self) -> Iterator[Peer]:
        """As ``peers``, in the order of their addresses; who goes or comes meanwhile may be left out."""
        order = PeerOrder()
        for key, record in scan(self._lanes.redis, names.peers_key(self.name)):
            order.take(key, record)
        for keys in order.pages(PAGE):
            with reading():
                pipe = self._lanes.redis.pipeline(transaction=False)
                for key in keys:
                    pipe.hget(names.peers_key(self.name), key)
                records = cast("list[bytes | None]", pipe.execute())
            for key, record in zip(keys, records, strict=True):
                if record is not None:
                    with suppress(StorageError):
                        yield self._opened(Peer.from_record(key, record))

    def peers_with_activity(self) -> Iterator[tuple[Peer, PeerActivity | None]]:
        """Every peer with what ``activity`` tells of it. Raises as ``peers`` and ``activity`` do."""
        for page in self._pages():
            with reading():
                fields = [peer.public_key for peer in page]
                stored = cast("list[bytes | None]", self._lanes.redis.hmget(names.seen_key(self.name), fields))
            for peer, activity in zip(page, stored, strict=True):
                yield peer, PeerActivity.from_stored(activity, peer.created_at)

    def _pages(self, among: Collection[str] | None = None) -> Iterator[list[Peer]]:
        """Pages of at least one peer, without records that do not parse."""
        seen = KeySet()  # a hash that grows while it is scanned shows some twice
        entries = scan(self._lanes.redis, names.peers_key(self.name))
        while entry_page := list(islice(entries, PAGE)):
            peers: list[Peer] = []
            for raw, record in entry_page:
                key = raw.decode(errors="replace")
                if (among is not None and key not in among) or not seen.add(key):
                    continue
                with suppress(ValueError, StorageError):
                    peers.append(self._opened(Peer.from_record(check_public_key(key), record)))
            if peers:
                yield peers


def gateways(app: PeerlaneApp | None = None) -> list[GatewayInfo]:
    """Every registered gateway, by name.

    Raises:
        StorageError: Redis refuses to show them to this user.
        OutcomeUnknown: Redis could not be reached.
    """
    lanes = lanes_of(app or tasks.app)
    snapshot = FleetReader(lanes.redis, lanes_only=True).read()
    with reading():
        for status in snapshot.gateways:
            lanes.believe(status.lane)
    return [status.info for status in snapshot.gateways]
