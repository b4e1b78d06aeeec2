"""Records in Redis that nobody wrote by hand: what a writer, a client and an observer make of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, cast

from fuzz_messages import PREFIXES, STRANGE, dumped
from gateways import new_name
from keys import key_number, some_key
from redis import Redis
from redis.exceptions import RedisError
from servers import RedisServer
from writer_alone import create_peer

from peerlane.config import names
from peerlane.tasks.admin.poison_messages import set_aside_messages, shown
from peerlane.tasks.admission.lanes import Lanes
from peerlane.tasks.errors import PeerlaneError, PoolExhausted
from peerlane.tasks.status.alarms import read_alarms
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.stored_peer import Peer
from peerlane.workers.dataplane import DeviceSpec
from peerlane.workers.dataplane.memory import MemoryDataPlane
from peerlane.workers.peers.table import Policy
from peerlane.workers.store.activity import decode
from peerlane.workers.store.store import Store
from peerlane.workers.upkeep.lifetimes import lifetimes
from peerlane.workers.writer.writer import Writer

POOLS = (Prefix.parse("10.8.0.0/16"), Prefix.parse("fd00:8::/64"))
FACTS = (
    *("public_key", "endpoint", "listen_port", "pools", "serves", "addresses", "region", "labels", "dns", "state"),
    *("client_allowed_ips", "mtu", "max_peers", "lane_cap", "fair_label", "fair_share", "epoch", "heartbeat", "phase"),
)
#: Records put into Redis for one start of a writer.
PAGE = 20


class FuzzedRecords:
    """One gateway whose records somebody else has written."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.name = new_name()
        self.redis = Redis.from_url(server.url, socket_timeout=5)
        self._lanes = Lanes(self.redis, result_ttl=600)
        self._spec = DeviceSpec(
            "wg0", directory / f"{self.name}.key", 51820, tuple((pool.network + 1, pool) for pool in POOLS), POOLS
        )
        self.records = 0

    def start_of_a_writer(self, seed: int) -> None:
        """Strange peers and addresses: a writer starts on them, keeps what it cannot read, and serves.

        What is on the device afterwards is in Redis, in a record that parses; no address is given twice.
        """
        chance = random.Random(seed)
        self._clear()
        for _ in range(PAGE):
            key = self._peer_key(chance)
            self.redis.hset(names.peers_key(self.name), cast("str", key), cast("str", self._record(chance)))
            owner = key if chance.random() < 0.7 else self._peer_key(chance)
            prefix = chance.choice((*PREFIXES, chance.randbytes(9), f"10.8.{chance.randrange(99)}.7/32"))
            self.redis.hset(names.addresses_key(self.name), cast("str", prefix), cast("str", owner))
        self.records += 2 * PAGE
        before = self._state()
        writer, plane = self._writer()
        owners: dict[Prefix, str] = {}
        for key, peer in plane.peers().items():
            stored = cast("bytes | None", self.redis.hget(names.peers_key(self.name), key))
            assert stored is not None, "the device holds a peer that Redis does not"
            parsed = Peer.from_record(key, stored)
            assert peer.allowed_ips <= frozenset(parsed.allowed_ips), "the device holds what no record says"
            for prefix in peer.allowed_ips:
                assert owners.setdefault(prefix, key) == key, "two peers have one address"
        records, addresses = self._state()
        assert records == before[0], "a start changes no record"
        assert addresses.items() <= before[1].items(), "a start assigns no address"
        for prefix, owner in before[1].items() - addresses.items():
            if owner in records:
                peer = Peer.from_record(owner.decode(), records[owner])
                assert Prefix.parse(prefix.decode()) not in peer.allowed_ips, "a start frees what a peer has"
        wish = {"gateway": self.name, "public_key": some_key()}
        with suppress(PoolExhausted):  # one strange record may hold all addresses there are
            made = create_peer(writer, f"{self.name}.r{seed}", wish)
            assert made["outcome"] == "created"
            assert not set(map(Prefix.parse, made["allowed_ips"])) & owners.keys(), "an address is given twice"
        self._read_by_others()

    def what_a_gateway_says(self, seed: int) -> None:
        """Strange facts, activity, alarms, poison: whoever reads them gets an answer or a refusal of ours."""
        chance = random.Random(seed)
        for key in (names.gateway_key, names.seen_key, names.alarms_key, names.poison_key):
            self.redis.delete(key(self.name))
        for _ in range(PAGE):
            self.redis.hset(names.gateway_key(self.name), chance.choice(FACTS), cast("str", self._value(chance)))
            self.redis.hset(
                names.seen_key(self.name), cast("str", self._peer_key(chance)), cast("str", self._seen(chance))
            )
            self.redis.hset(names.alarms_key(self.name), "odd", cast("str", self._value(chance)))
            self.redis.lpush(names.poison_key(self.name), cast("str", self._value(chance)))
        self.records += 4 * PAGE
        lane = self._lanes.look(self.name)
        GatewayInfo.from_state(lane)
        for bulk in (True, False):
            lane.refusal(waiting=lane.waiting_bulk if bulk else lane.waiting, create=True)
        for stored in cast("list[bytes]", self.redis.hvals(names.seen_key(self.name))):
            decode(stored)
        read_alarms(self.redis, self.name)
        for message in set_aside_messages(self.redis, self.name):
            shown(message)
        Store(self.redis, self.name, result_ttl=600).facts()

    def results_and_epochs(self, seed: int) -> None:
        """Strange commit records and epochs: the writer answers with an error of ours, and takes nothing for done."""
        chance = random.Random(seed)
        self._clear()
        self.redis.hset(names.gateway_key(self.name), "state", cast("str", self._value(chance)))
        writer, plane = self._writer()
        for number in range(PAGE):
            request, wish = f"{self.name}.s{seed}x{number}", {"gateway": self.name, "public_key": some_key()}
            key = names.result_key(request)
            if chance.random() < 0.1:
                self.redis.lpush(key, "a list")
            else:
                self.redis.set(key, cast("str", self._value(chance)), ex=60)
            with suppress(PeerlaneError):
                commit_record.decode(cast("str", self._value(chance)))
            with suppress(PeerlaneError):
                create_peer(writer, request, wish)
            assert wish["public_key"] not in plane.peers(), "a request with an outcome is carried out again"
            self.redis.delete(key)
        self.redis.set(names.epoch_key(self.name), cast("str", self._value(chance)))
        with suppress(PeerlaneError):
            create_peer(writer, f"{self.name}.e{seed}", {"gateway": self.name, "public_key": some_key()})
        with suppress(RedisError):
            Store(self.redis, self.name, result_ttl=600).open_epoch()
        self.redis.delete(names.epoch_key(self.name))
        self.records += PAGE + 1

    def _clear(self) -> None:
        keys = (names.peers_key, names.addresses_key, names.epoch_key, names.gateway_key)
        self.redis.delete(*(key(self.name) for key in keys))

    def _writer(self) -> tuple[Writer, MemoryDataPlane]:
        plane = MemoryDataPlane()
        public_key = plane.open(self._spec).public_key
        own = tuple(Prefix.host(pool.version, pool.network + 1) for pool in POOLS)
        store = Store(self.redis, self.name, result_ttl=600)
        store.open_epoch()
        writer = Writer(Policy(self.name, public_key, POOLS, (), own), store, plane)
        writer.recover()
        return writer, plane

    def _state(self) -> tuple[Any, Any]:
        return self.redis.hgetall(names.peers_key(self.name)), self.redis.hgetall(names.addresses_key(self.name))

    def _read_by_others(self) -> None:
        for key, life in chain.from_iterable(page.items() for page in lifetimes(self.redis, self.name)):
            assert isinstance(life.created_at, int), key
        for name, record in cast("dict[bytes, bytes]", self.redis.hgetall(names.peers_key(self.name))).items():
            with suppress(PeerlaneError):
                Peer.from_record(name.decode(errors="replace"), record)

    # Values

    @staticmethod
    def _peer_key(chance: random.Random) -> str | bytes:
        sound = key_number(chance.randrange(1, 60))
        return sound if chance.random() < 0.8 else chance.choice((b"", b"x", sound[:-1], chance.randbytes(44), "\n"))

    @staticmethod
    def _record(chance: random.Random) -> str | bytes:
        record: dict[str, Any] = {"v": 1, "allowed_ips": [f"10.8.{chance.randrange(99)}.{chance.randrange(9)}/32"]}
        changes: tuple[Callable[[], object], ...] = (
            lambda: record.update({chance.choice([*record, "ttl", "labels", "pinned", "x"]): chance.choice(STRANGE)}),
            lambda: record.pop(chance.choice(list(record))),
            lambda: record.update(allowed_ips=[chance.choice(PREFIXES) for _ in range(chance.randrange(4))]),
            lambda: record.update(v=chance.choice((0, 2, "1", None, 10**400, 1.0, True))),
            lambda: record.update(preshared_key=chance.choice(("A" * 43 + "=", "A" * 44, 7))),
            lambda: None,
        )
        chance.choice(changes)()
        whole = json.dumps(record).encode(errors="surrogatepass")
        at = chance.randrange(len(whole))
        return chance.choice((whole, whole, whole, whole[:at], whole[:at] + b"\xff" + whole[at:], chance.randbytes(20)))

    @staticmethod
    def _value(chance: random.Random) -> str | bytes:
        record = commit_record.encode("x.y", {"outcome": "created"})
        return chance.choice(
            (
                *(dumped(chance.choice(STRANGE)), chance.randbytes(chance.randrange(30)), record, record[:-5]),
                *(record.replace("SUCCESS", "FAILURE"), record.replace("created", "\0"), b"9" * 5000, b"-1", b"1e5"),
                *(b"\xd9\xa3", b"{}", b"[]", dumped({"status": "FAILURE", "result": chance.choice(STRANGE)})),
                *(dumped({"status": "SUCCESS", "result": chance.choice(STRANGE)}), b"active", b"NaN", "²".encode()),
            )
        )

    @staticmethod
    def _seen(chance: random.Random) -> str | bytes:
        fields = [str(chance.randrange(10**9)) for _ in range(chance.choice((6, 7, 7, 7, 8)))]
        fields[chance.randrange(len(fields))] = chance.choice(("-1", "x", "", "9" * 400, "²", "1", "1.5"))
        return " ".join(fields) if chance.random() < 0.8 else chance.randbytes(20)

    def close(self) -> None:
        """Let go."""
        self.redis.close()
