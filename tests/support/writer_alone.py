"""One writer in this process, with all it needs: a real server and a device in memory that remembers what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gateways import new_name
from keys import some_key
from redis import Redis
from servers import RedisServer
from waiting import PATIENCE

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.stored_peer import Peer, StoredPeer
from peerlane.workers.dataplane import Change, DeviceSpec
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.peers.drift import Unknown
from peerlane.workers.peers.table import Policy
from peerlane.workers.request.request import Delivery
from peerlane.workers.store.store import Store
from peerlane.workers.writer.writer import Writer

POOLS = (Prefix.parse("10.8.0.0/24"), Prefix.parse("fd00:8::/64"))


def carry_out(
    writer: Writer, task: str, request_id: str, arguments: Mapping[str, Any], *, redelivered: bool = False
) -> dict[str, Any]:
    """Have a writer carry a request out that came by no message; its result. Raises its refusal."""
    result = writer.carry_out(task, Delivery(request_id, redelivered=redelivered), arguments).result
    if isinstance(result, PeerlaneError):
        raise result
    return dict(result)


def create_peer(writer: Writer, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return carry_out(writer, names.CREATE_PEER, request_id, arguments)


def delete_peer(writer: Writer, request_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return carry_out(writer, names.DELETE_PEER, request_id, arguments)


class WatchedPlane(MemoryDataPlane):
    """A device that remembers what was done to it, and can break in a way that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Change] = []
        self.breaks = False

    def apply(self, changes: Sequence[Change]) -> None:
        self.made += changes
        super().apply(changes)
        if self.breaks:
            self.breaks = False
            raise ZeroDivisionError("nobody foresaw this")


class WriterAlone:
    """One writer with all it needs, started as a gateway starts it."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.server = server
        self.name = new_name()
        self.raw = Redis.from_url(server.url, decode_responses=True)
        self.spec = DeviceSpec(
            "wg0", directory / "key", 51820, addresses=tuple((pool.network + 1, pool) for pool in POOLS), routes=POOLS
        )
        self.plane = WatchedPlane()
        self.public_key = self.plane.open(self.spec).public_key
        self.policy = Policy(
            self.name,
            self.public_key,
            POOLS,
            (Prefix.parse("192.168.0.0/16"),),
            tuple(Prefix.host(pool.version, pool.network + 1) for pool in POOLS),
        )
        self.stopping = False
        #: What becomes of peers that only the device knows, for the next writer.
        self.unknown: Unknown = "remove"
        self._clients: list[Redis] = []
        self.writer = self.new_writer()
        self._requests = 0

    def new_writer(self) -> Writer:
        """A writer of a new epoch on the same device; recovered."""
        redis = Redis.from_url(self.server.url, socket_timeout=PATIENCE)
        self._clients.append(redis)
        store = Store(redis, self.name, result_ttl=600)
        store.open_epoch()
        writer = Writer(
            self.policy,
            store,
            self.plane,
            {"gateway_public_key": self.public_key, "endpoint": "gw:51820"},
            unknown=self.unknown,
            shutdown_requested=lambda: self.stopping,
        )
        writer.recover()
        store.heartbeat(began=store.clock.now_ms() // 1000)
        self.plane.made.clear()
        return writer

    def close(self) -> None:
        for client in (self.raw, *self._clients):
            client.close()

    def request(self) -> str:
        self._requests += 1
        return names.request_id(self.name, f"r{self._requests}")

    def create(self, key: str | None = None, *, request: str | None = None, **arguments: Any) -> dict[str, Any]:
        key = key or some_key()
        wish = {"gateway": self.name, "public_key": key, **arguments}
        return create_peer(self.writer, request or self.request(), wish)

    def delete(self, key: str, *, request: str | None = None, **arguments: Any) -> dict[str, Any]:
        wish = {"gateway": self.name, "public_key": key, **arguments}
        return delete_peer(self.writer, request or self.request(), wish)

    def now(self) -> int:
        return self.writer.store.clock.now_ms()

    def outcome(self, request: str) -> dict[str, Any]:
        """What a caller of this request learns from Redis."""
        stored = cast("str | None", self.raw.get(names.result_key(request)))
        assert stored is not None, "the request has no outcome"
        return commit_record.decode(stored)

    @property
    def peers_key(self) -> str:
        return names.peers_key(self.name)

    @property
    def records(self) -> dict[str, str]:
        return cast("dict[str, str]", self.raw.hgetall(self.peers_key))

    @property
    def addresses(self) -> dict[str, str]:
        return cast("dict[str, str]", self.raw.hgetall(names.addresses_key(self.name)))

    def agree(self) -> None:
        """AssertionError unless Redis, the device and the table hold the same."""
        stored = {key: StoredPeer.of(Peer.from_record(key, record)) for key, record in self.records.items()}
        assert dict(self.writer.table.peers) == stored
        assert not self.writer.table.coming, "peers are still coming"
        assert {key: peer.allowed_ips for key, peer in self.plane.peers().items()} == {
            key: frozenset(peer.allowed_ips) for key, peer in stored.items()
        }
        assert self.addresses == {str(p): key for key, peer in stored.items() for p in peer.allowed_ips}
        outside = {p for peer in stored.values() for p in peer.allowed_ips if self.writer.table.needs_route(p)}
        assert self.plane.routes() == outside
        assert self.writer.recovery_needed is None
