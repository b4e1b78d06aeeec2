"""When a peer was last seen and what it has moved: as the observer stores it, by every way to read it."""

from __future__ import annotations

import asyncio
import time

import pytest
from commands import Shell, document, peerlane
from fenced import fenced, printed
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close
from keys import some_key
from rich.console import Console
from servers import RedisServer

from peerlane import AsyncGateway, Gateway, Invalid, PeerActivity, StorageError
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.cli.tables import activity_facts, peer_table, seen, size
from peerlane.tasks.wire.stored_peer import Peer
from peerlane.workers.store.activity import StoredActivity, encode


def store(redis: RedisServer, gateway: str, key: str, *, last_seen: int) -> PeerActivity:
    """What an observer would store of a peer."""
    entry = StoredActivity(last_seen, 5_300, 1_200_000, 1, 2, 3, "192.0.2.1:51820")
    redis.redis.hset(names.seen_key(gateway), key, encode(entry))
    return PeerActivity(last_seen or None, 5_300, 1_200_000, "192.0.2.1:51820")


class TestAPeersActivity:
    @pytest.fixture
    def site(self, gateway: MakeGateway) -> GatewayProcess:
        return gateway()

    def test_is_told_by_the_python_api(
        self, site: GatewayProcess, client: MakeClient, redis_server: RedisServer, settings: MakeSettings
    ) -> None:
        iad, key, other = client(site), some_key(), some_key()
        for public_key in (key, other):
            iad.create_peer(public_key)
        expected = store(redis_server, site.name, key, last_seen=int(time.time()) + 60)
        assert iad.activity(key) == expected
        assert iad.activity(other) is None
        assert {peer.public_key: activity for peer, activity in iad.peers_with_activity()} == {
            key: expected,
            other: None,
        }
        with pytest.raises(Invalid):
            iad.activity("short")

        async def ask() -> PeerActivity | None:
            async with AsyncGateway(site.name, app=app) as gateway:
                return await gateway.activity(key)

        app = PeerlaneApp(settings())
        assert asyncio.run(ask()) == expected
        close(app)

    def test_is_told_by_the_command_line(
        self, site: GatewayProcess, client: MakeClient, redis_server: RedisServer
    ) -> None:
        iad, shell, key, other = client(site), Shell(site), some_key(), some_key()
        for public_key in (key, other):
            iad.create_peer(public_key)
        at = int(time.time()) + 60  # after it was made, whatever Redis' clock says
        expected = store(redis_server, site.name, key, last_seen=at).as_dict()
        assert shell.ask("peer", "show", site.name, key)["activity"] == expected
        assert shell.ask("peer", "show", site.name, other)["activity"] is None
        listed = {row["public_key"]: row["activity"] for row in shell.ask("peer", "list", site.name)["peers"]}
        assert listed == {key: expected, other: None}
        rows = [line.split("\t") for line in shell.run("peer", "list", site.name).stdout.splitlines()]
        assert {row[0]: row[6:] for row in rows} == {
            key: [str(at), "5300", "1200000", "192.0.2.1:51820"],
            other: ["0", "0", "0", "(none)"],
        }
        shown = " ".join(shell.run("peer", "show", site.name, key).stdout.split())
        assert "received 5.3 kB sent 1.2 MB" in shown
        assert "endpoint 192.0.2.1:51820" in shown
        assert "last seen never" in " ".join(shell.run("peer", "show", site.name, other).stdout.split())

    def test_of_an_earlier_peer_with_its_key_is_not_its_own(
        self, site: GatewayProcess, client: MakeClient, redis_server: RedisServer
    ) -> None:
        iad, key = client(site), some_key()
        iad.create_peer(key)
        store(redis_server, site.name, key, last_seen=1_000)
        activity = iad.activity(key)
        assert activity is not None
        assert (activity.last_seen, activity.rx_bytes) == (None, 5_300)


def test_an_api_host_may_see_it_and_one_with_rights_of_an_earlier_version_is_told(
    capsys: pytest.CaptureFixture[str], settings: MakeSettings
) -> None:
    lines = printed(capsys, "iad", "--passwords")
    with fenced(lines) as server:
        key = some_key()
        record = Peer(public_key=key, allowed_ips=("10.8.0.2/32",)).record()  # pyright: ignore[reportArgumentType] - pydantic parses it
        server.redis.hset(names.gateway_key("iad"), "public_key", "k")
        server.redis.hset(names.peers_key("iad"), key, record)
        expected = store(server, "iad", key, last_seen=2_000)
        app = PeerlaneApp(settings(redis_url=server.url_of("api-iad")))
        assert Gateway("iad", app=app).activity(key) == expected
        close(app)
        # As `peerlane acl` printed it before activity was shown: the selector is not there.
        user = next(line for line in lines.splitlines() if line.startswith("user api-iad"))
        before = user.replace(f" (+hget +hmget %R~{names.seen_key('iad')})", "")
        assert before != user
        rules = before.removeprefix("user api-iad ").replace(" (", "\n(").replace(")", "")
        first, *selectors = rules.split("\n")
        words = [*first.split(), *(f"{selector})" for selector in selectors)]
        server.redis.execute_command("ACL", "SETUSER", "api-iad", "reset", *words)
        app = PeerlaneApp(settings(redis_url=server.url_of("api-iad")))
        with pytest.raises(StorageError, match="may not do that"):
            Gateway("iad", app=app).activity(key)
        close(app)
        for command in (("peer", "show", "iad", key), ("peer", "list", "iad")):
            result = peerlane(*command, redis=server.url_of("api-iad"))
            assert result.exit_code == 0, result.output
            assert key in result.stdout
            assert "not shown: Redis refuses" in result.stderr
        listed = document(peerlane("peer", "list", "iad", "--json", redis=server.url_of("api-iad")))["peers"]
        assert [row["activity"] for row in listed] == [None]


def test_a_table_has_its_columns_only_where_it_may_be_seen() -> None:
    peer = Peer(public_key=some_key(), allowed_ips=("10.8.0.2/32",))  # pyright: ignore[reportArgumentType] - pydantic parses it
    activity = PeerActivity(int(time.time()) - 600, 1_000, 25, None)

    def drawn(*, with_activity: bool) -> str:
        console = Console(width=160)
        with console.capture() as captured:
            table, left_out = peer_table([(peer, activity), (peer, None)], 160, with_activity=with_activity)
            console.print(table)
            assert left_out == []
        return captured.get()

    assert "10 min" in drawn(with_activity=True)
    assert "never" in drawn(with_activity=True)
    assert "seen" not in drawn(with_activity=False)
    assert seen(activity) == "10 min"
    assert (size(999), size(1_000), size(12_345_678), size(3 * 10**12)) == ("999 B", "1.0 kB", "12 MB", "3.0 TB")
    assert activity_facts(None, created=False) == {"last seen": None}


@pytest.mark.parametrize(
    "stored",
    [b"", b"2 1 1 1 1 1 1", b"1 1 1", b"1 x 1 1 1 1 1", b"1 -1 1 1 1 1 1", b"\xff", b"1 1 1 1 1 1 1 x\ty", None],
)
def test_what_is_not_readable_counts_as_never_stored(stored: bytes | None) -> None:
    assert PeerActivity.from_stored(stored) is None
