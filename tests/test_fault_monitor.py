"""The fault runs' view of what Redis was told sees the commits of a real writer, and what each of them changed."""

from __future__ import annotations

from collections.abc import Sequence

from fault_checker import Commit
from fault_monitor import Monitor
from gateways import MakeClient, MakeGateway
from keys import some_key
from servers import RedisServer
from waiting import eventually

from config import names


def test_every_commit_is_seen_with_its_epoch_and_what_it_wrote(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
) -> None:
    site = gateway(start=False)
    monitor = Monitor(redis_server.socket, site.name)
    try:
        assert monitor.listening.wait(5)
        site.start()
        api, key = client(site), some_key()
        for act in (api.create_peer, api.delete_peer, api.delete_peer):
            act(key)
        site.pause()
        redis_server.redis.incr(names.epoch_key(site.name))
        site.resume()
        seen: list[Commit] = []

        def enough() -> Sequence[Commit]:
            # A script that the server does not know yet is sent again: the first try wrote nothing.
            seen.extend(commit for commit in monitor.taken() if commit.wrote)
            return seen if len(seen) >= 3 else []

        eventually(enough, "three commits")
    finally:
        monitor.close()
    created, deleted, absent = seen
    assert len({commit.request for commit in (created, deleted, absent)}) == 3
    assert {(commit.epoch, commit.wrote) for commit in (created, deleted, absent)} == {(1, True)}
    assert (created.changed, deleted.changed, absent.changed) == (True, True, False)
