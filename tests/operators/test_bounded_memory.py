"""Backup, restore, lists, export and import hold a few bytes of each peer, and not all that is stored of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import close, new_name
from keys import key_number
from redis import Redis
from servers import RedisServer

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import Settings, read
from peerlane.tasks.admin.backup import back_up, restore_state
from peerlane.tasks.admin.peer_import import check_file
from peerlane.tasks.wgfile.export import render_in_order

FEW, MANY = 2_000, 6_000

pytestmark = pytest.mark.slow("traces every allocation")


class Crowd:
    """A gateway that nobody serves, of so many peers."""

    def __init__(self, redis: Redis, settings: Settings, app: PeerlaneApp, directory: Path, count: int) -> None:
        self.settings, self.app, self.count = settings, app, count
        self.name = new_name()
        self.file = directory / f"{self.name}.backup"
        facts: Any = {"public_key": key_number(2**100), "pools": '["10.8.0.0/16"]', "state": "active"}
        redis.hset(names.gateway_key(self.name), mapping=facts)
        keys = {key_number(n): f"10.8.{n >> 8}.{n & 255}/32" for n in range(1, count + 1)}
        peers: Any = {key: f'{{"v":1,"allowed_ips":["{address}"],"created_at":5}}' for key, address in keys.items()}
        addresses: Any = {address: key for key, address in keys.items()}
        seen: Any = dict.fromkeys(keys, "1 5 6 7 8 9 10 192.0.2.1:51820")
        redis.hset(names.peers_key(self.name), mapping=peers)
        redis.hset(names.addresses_key(self.name), mapping=addresses)
        redis.hset(names.seen_key(self.name), mapping=seen)

    @property
    def client(self) -> Gateway:
        return Gateway(self.name, app=self.app)

    def back_up(self) -> int:
        return back_up(self.settings, self.name, self.file, replace=True).peers

    def restore(self) -> int:
        return restore_state(self.settings, self.name, self.file, force=True).peers

    def list_all(self) -> int:
        return sum(1 for _ in self.client.peers_with_activity())

    def export(self) -> int:
        lines = render_in_order(self.client.info(), self.client.peers_in_order())
        return sum(line.startswith("PublicKey") for line in lines)

    def check_an_import(self) -> int:
        conf = f"[Peer]\nPublicKey = {key_number(2**101)}\nAllowedIPs = 10.8.250.1/32\n"
        check_file(conf.encode(), self.name, app=self.app)
        return self.count


@pytest.fixture(scope="module")
def crowds(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Crowd, Crowd]]:
    directory = tmp_path_factory.mktemp("crowds")
    chosen = read(redis_url=redis_server.url)
    app = PeerlaneApp(chosen)
    few, many = (Crowd(redis_server.redis, chosen, app, directory, count) for count in (FEW, MANY))
    yield few, many
    close(app)


def peak(act: Callable[[], int]) -> tuple[int, int]:
    """What the act tells, and the most memory that it had in use."""
    tracemalloc.start()
    try:
        return act(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


#: Bytes of memory that each peer more may cost.
BOUNDS = {"back_up": 40, "restore": 160, "list_all": 200, "export": 250, "check_an_import": 200}


@pytest.mark.parametrize("act", BOUNDS)
def test_another_ten_thousand_peers_cost_few_bytes_each(crowds: tuple[Crowd, Crowd], act: str) -> None:
    few, _ = crowds
    if act == "restore":
        for crowd in crowds:
            crowd.back_up()
    getattr(few, act)()  # what is imported and cached once
    (count, before), (more, after) = (peak(getattr(crowd, act)) for crowd in crowds)
    assert (count, more) == (FEW, MANY)
    assert (after - before) / (MANY - FEW) <= BOUNDS[act]


def test_an_export_is_in_the_order_of_its_addresses_and_a_list_may_be_of_some_keys(
    crowds: tuple[Crowd, Crowd],
) -> None:
    client = crowds[0].client
    addresses = [peer.allowed_ips for peer in client.peers_in_order()]
    assert addresses == sorted(addresses)
    wanted = {key_number(3), key_number(FEW), key_number(2**90)}
    assert {peer.public_key for peer in client.peers(among=wanted)} == {key_number(3), key_number(FEW)}
