"""A gateway's state goes into a file and comes back the same; a file that is not whole changes nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import stat
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import asked, peerlane
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close, new_name
from keys import some_key
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import Settings, read
from peerlane.tasks.admin.archive import entries, read_header
from peerlane.tasks.admin.backup import back_up, check_archive, restore_state
from peerlane.tasks.errors import Conflict, Invalid, OutcomeUnknown, PeerlaneError, Unavailable
from peerlane.tasks.values.keys import make_preshared_key
from peerlane.tasks.wgfile.client_config import FileExists


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "iad.backup"


def state(server: RedisServer, name: str) -> dict[str, Mapping[str, str]]:
    """All that a restore may change."""
    redis: Any = server.redis
    hashes = (names.peers_key(name), names.addresses_key(name), names.seen_key(name))
    content: dict[str, Mapping[str, str]] = {key: redis.hgetall(key) for key in hashes}
    return content | {"epoch": {"": redis.get(names.epoch_key(name))}}


def peers(server: RedisServer, name: str) -> Mapping[str, str]:
    return state(server, name)[names.peers_key(name)]


def no_leftovers(server: RedisServer, name: str) -> bool:
    redis: Any = server.redis
    return not list(redis.scan_iter(names.snapshot_key(name, "*", "*")))


def furnish(site: GatewayProcess, client: Gateway, server: RedisServer) -> GatewayProcess:
    """Give a gateway a few peers, and end its writer in good order."""
    for number in range(5):
        client.create_peer(some_key(), preshared_key=make_preshared_key(), labels={"n": str(number)})
    client.create_peer(some_key(), ttl=3600)
    server.redis.hset(names.seen_key(site.name), some_key(), "1 5 6 7 8 9 10")
    assert site.stop() == 0
    return site


@pytest.fixture
def stopped(gateway: MakeGateway, client: MakeClient, redis_server: RedisServer) -> GatewayProcess:
    """A gateway with a few peers, whose writer has ended."""
    site = gateway()
    return furnish(site, client(site), redis_server)


@pytest.fixture(scope="module")
def untouched(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The same for tests that must not change anything: one gateway for all of them."""
    site = GatewayProcess(new_name(), redis_server.url, tmp_path_factory.mktemp("gateway"), dataplane="memory")
    site.start()
    app = PeerlaneApp(read(redis_url=redis_server.url))
    yield furnish(site, Gateway(site.name, app=app), redis_server)
    close(app)
    site.finish()


def test_what_was_backed_up_comes_back_and_the_writer_serves_it(
    stopped: GatewayProcess, client: MakeClient, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    before = state(redis_server, stopped.name)
    done = back_up(settings(), stopped.name, file)
    assert (done.peers, done.unreadable) == (6, ())
    redis_server.redis.delete(*[key for key in before if key != "epoch"], names.gateway_key(stopped.name))
    assert restore_state(settings(), stopped.name, file).peers == 6
    after = state(redis_server, stopped.name)
    assert {key: after[key] for key in after if key != "epoch"} == {
        key: before[key] for key in before if key != "epoch"
    }
    assert redis_server.redis.ttl(names.peers_key(stopped.name)) == -1
    assert no_leftovers(redis_server, stopped.name)

    stopped.start()
    eventually(lambda: client(stopped).info().peers == 6, "a heartbeat that tells of the peers")
    for peer in list(client(stopped).peers()):
        again = client(stopped).create_peer(
            peer.public_key, preshared_key=peer.preshared_key, labels=peer.labels, ttl=peer.ttl
        )
        assert again.outcome == "existing"
        assert again.allowed_ips == tuple(map(str, peer.allowed_ips))
    assert client(stopped).create_peer(some_key()).allowed_ips[0] == "10.8.0.8/32", "no address is given twice"


def test_a_fresh_server_takes_over_with_the_state_that_operators_had_set(
    stopped: GatewayProcess,
    gateway: MakeGateway,
    client: MakeClient,
    settings: MakeSettings,
    own_redis: RedisServer,
    file: Path,
) -> None:
    client(stopped).drain()
    here = client(stopped).info()
    back_up(settings(), stopped.name, file)
    restore_state(settings(redis_url=own_redis.url), stopped.name, file)
    there = client(stopped.name, redis=own_redis).info()
    assert (there.public_key, there.pools, there.endpoint) == (here.public_key, here.pools, here.endpoint)
    assert (there.state, there.peers) == ("down", 6)
    shown = peerlane("gateway", "show", stopped.name, redis=own_redis.url).stdout
    assert "6 of at most" in shown
    assert "none has started yet" in shown
    # The private key is no part of a backup: its file moves with the gateway.
    moved = gateway(stopped.name, redis=own_redis, private_key_file=stopped.settings["private_key_file"])
    assert client(moved).info().state == "draining"
    eventually(lambda: client(moved).info().peers == 6, "a heartbeat that tells of the peers")


def test_the_epoch_is_never_lowered_and_a_writer_that_slept_is_refused(
    stopped: GatewayProcess, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    back_up(settings(), stopped.name, file)
    epoch = names.epoch_key(stopped.name)
    redis_server.redis.set(epoch, 41)
    restore_state(settings(), stopped.name, file, force=True)
    assert redis_server.redis.get(epoch) == "42"
    redis_server.redis.delete(epoch)
    restore_state(settings(), stopped.name, file, force=True)
    assert redis_server.redis.get(epoch) == "2", "the backup's own, and one"


def test_a_backup_taken_while_peers_come_and_go_is_of_one_moment(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer, tmp_path: Path
) -> None:
    site = gateway()
    ended = threading.Event()
    confirmed: list[str] = []

    def busy(seed: int) -> None:
        mine, here, chance = client(site), list[str](), random.Random(seed)
        while not ended.is_set():
            if here and chance.random() < 0.4:
                mine.delete_peer(here.pop())
            else:
                here.append(mine.create_peer(some_key()).public_key)
                confirmed.append(here[-1])

    callers = [threading.Thread(target=busy, args=(seed,)) for seed in (1, 2)]
    for caller in callers:
        caller.start()
    try:
        counts: list[int] = []
        for number in range(20):
            file = tmp_path / f"{number}"
            counts.append(back_up(settings(), site.name, file).peers)
            check_archive(file, read_header(file))  # each address is its peer's, and each peer's address is taken
            there = {name for part, name, _ in entries(file) if part == "peers"}
            assert there <= set(confirmed) | set(peers(redis_server, site.name))
    finally:
        ended.set()
        for caller in callers:
            caller.join(30)
    assert len(set(counts)) > 1, "the gateway went on meanwhile"
    assert no_leftovers(redis_server, site.name)


def test_a_live_writer_is_never_restored_over(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    site = gateway()
    client(site).create_peer(some_key())
    back_up(settings(), site.name, file)
    client(site).create_peer(some_key())
    before = peers(redis_server, site.name)
    with pytest.raises(Unavailable, match="has a live writer"):
        restore_state(settings(), site.name, file, force=True)
    assert peers(redis_server, site.name) == before


def test_what_is_there_is_replaced_only_where_that_is_said(
    stopped: GatewayProcess, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    back_up(settings(), stopped.name, file)
    redis_server.redis.hset(names.peers_key(stopped.name), some_key(), "{}")
    before = state(redis_server, stopped.name)
    with pytest.raises(Conflict, match=r"holds 7 peers: --force"):
        restore_state(settings(), stopped.name, file)
    assert state(redis_server, stopped.name) == before
    assert restore_state(settings(), stopped.name, file, force=True).replaced == 7
    assert len(peers(redis_server, stopped.name)) == 6


def test_a_writer_that_starts_in_the_middle_of_a_restore_makes_it_fail(
    stopped: GatewayProcess, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    back_up(settings(), stopped.name, file)
    redis_server.redis.delete(names.peers_key(stopped.name))
    before = state(redis_server, stopped.name)

    def start_a_writer(done: int, total: int) -> None:
        if done == total:
            redis_server.redis.eval(
                "local now = redis.call('TIME'); redis.call('HSET', KEYS[1], 'heartbeat', now[1] * 1000)",
                1,
                names.gateway_key(stopped.name),
            )

    with pytest.raises(Unavailable, match="has a live writer"):
        restore_state(settings(), stopped.name, file, force=True, progress=start_a_writer)
    assert state(redis_server, stopped.name) == before
    assert no_leftovers(redis_server, stopped.name)


def test_a_record_that_nobody_can_read_is_kept_as_it_is(
    stopped: GatewayProcess, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    odd, key = b"\xff\x00 no record", some_key()
    raw: Any = redis_server.redis
    raw.hset(names.peers_key(stopped.name), key, odd)
    raw.hset(names.addresses_key(stopped.name), "10.8.9.9/32", key)
    assert back_up(settings(), stopped.name, file).unreadable == (key,)
    raw.delete(names.peers_key(stopped.name), names.addresses_key(stopped.name))
    assert restore_state(settings(), stopped.name, file, force=True).unreadable == (key,)
    assert raw.eval(
        "return redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2]", 1, names.peers_key(stopped.name), key, odd
    )
    assert raw.hget(names.addresses_key(stopped.name), "10.8.9.9/32") == key


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def rewritten(file: Path, change: Callable[[list[Any]], object]) -> bytes:
    """A file with other content and a checksum that fits it."""
    lines = lines_of(file)[:-1]
    change(lines)
    content = "".join(json.dumps(line) + "\n" for line in lines)
    return gzip.compress(
        (content + json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest()}) + "\n").encode()
    )


def first(lines: list[Any], part: str) -> int:
    return next(number for number, line in enumerate(lines[1:], 1) if line[0] == part)


def twice_the_same_address(lines: list[Any]) -> None:
    lines[first(lines, "peers")][2] = lines[first(lines, "peers") + 1][2]


DAMAGED: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"[Interface]\nPrivateKey = no\n",
    "another gzip": lambda _: gzip.compress(b"{}\n{}\n"),
    "nothing in a gzip": lambda _: gzip.compress(b""),
    "half": lambda file: file.read_bytes()[: len(file.read_bytes()) // 2],
    "without its last byte": lambda file: file.read_bytes()[:-1],
    "without its trailer": lambda file: gzip.compress(gzip.decompress(file.read_bytes()).rsplit(b"\n", 2)[0] + b"\n"),
    "a letter changed": lambda file: gzip.compress(gzip.decompress(file.read_bytes()).replace(b"labels", b"labelz", 1)),
    "a later version": lambda file: rewritten(file, lambda lines: lines[0].update(version=2)),
    "no version": lambda file: rewritten(file, lambda lines: lines[0].pop("version")),
    "another format": lambda file: rewritten(file, lambda lines: lines[0].update(format="tar")),
    "another gateway's": lambda file: rewritten(file, lambda lines: lines[0].update(gateway="elsewhere")),
    "a gateway that is none": lambda file: rewritten(file, lambda lines: lines[0].update(gateway="*")),
    "a line less": lambda file: rewritten(file, lambda lines: lines.pop()),
    "a line twice": lambda file: rewritten(file, lambda lines: lines.append(lines[-1])),
    "a line that is none": lambda file: rewritten(file, lambda lines: lines.append(["peers"])),
    "a part that nobody knows": lambda file: rewritten(file, lambda lines: lines.append(["epoch", "", "1"])),
    "a record that does not parse": lambda file: rewritten(file, lambda lines: lines[1].__setitem__(2, '{"v":1}')),
    "a key that is none": lambda file: rewritten(file, lambda lines: lines[1].__setitem__(1, "x")),
    "an address that is another's": lambda file: rewritten(
        file, lambda lines: lines[first(lines, "addresses")].__setitem__(2, some_key())
    ),
    "a date after all dates": lambda file: rewritten(file, lambda lines: lines[0].update(taken_at=10**18)),
    "an epoch without end": lambda file: rewritten(file, lambda lines: lines[0].update(epoch=float("inf"))),
    "an epoch that Redis cannot count": lambda file: rewritten(file, lambda lines: lines[0].update(epoch=2**63)),
    "one address twice": lambda file: rewritten(file, twice_the_same_address),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_changes_nothing(
    untouched: GatewayProcess,
    settings: MakeSettings,
    redis_server: RedisServer,
    file: Path,
    damage: Callable[[Path], bytes],
) -> None:
    back_up(settings(), untouched.name, file)
    before = state(redis_server, untouched.name)
    file.write_bytes(damage(file))
    with pytest.raises(Invalid):
        restore_state(settings(), untouched.name, file, force=True)
    assert state(redis_server, untouched.name) == before
    assert no_leftovers(redis_server, untouched.name)


def test_what_a_file_says_of_a_process_is_not_restored(
    stopped: GatewayProcess, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    """A gateway that nobody serves must not seem alive."""
    back_up(settings(), stopped.name, file)
    file.write_bytes(rewritten(file, lambda lines: lines[0]["facts"].update(heartbeat="9" * 15, region="eu")))
    redis_server.redis.delete(names.gateway_key(stopped.name))
    restore_state(settings(), stopped.name, file, force=True)
    facts = redis_server.redis.hgetall(names.gateway_key(stopped.name))
    assert (facts.get("heartbeat"), facts["region"], facts["phase"]) == (None, "eu", "stopped")


def test_a_pipe_is_refused_instead_of_waited_for(settings: MakeSettings, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Invalid, match="no regular file, and it is read more than once"):
        restore_state(settings(), "iad", tmp_path / "pipe")


def test_any_flipped_bit_is_found(
    untouched: GatewayProcess, settings: MakeSettings, redis_server: RedisServer, file: Path
) -> None:
    back_up(settings(), untouched.name, file)
    before, whole, chance = state(redis_server, untouched.name), file.read_bytes(), random.Random(4)
    chosen: Settings = settings()
    for _ in range(300):
        at = chance.randrange(10, len(whole))  # what comes before is gzip's own header: time and system
        flipped = whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :]
        with suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(flipped) == gzip.decompress(whole):
                continue  # a bit that compression leaves unused
        file.write_bytes(flipped)
        with pytest.raises(Invalid):
            restore_state(chosen, untouched.name, file, force=True)
    assert state(redis_server, untouched.name) == before


def test_the_file_is_its_owners_alone_and_replaces_no_other_unasked(
    stopped: GatewayProcess, settings: MakeSettings, file: Path
) -> None:
    back_up(settings(), stopped.name, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(FileExists):
        back_up(settings(), stopped.name, file)
    back_up(settings(), stopped.name, file, replace=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_gateway_that_nobody_knows_and_a_server_that_is_away_are_told(
    settings: MakeSettings, own_redis: RedisServer, file: Path
) -> None:
    with pytest.raises(Unavailable, match="no gateway nobody is registered"):
        back_up(settings(), "nobody", file)
    own_redis.stop()
    with pytest.raises(OutcomeUnknown):
        back_up(settings(redis_url=own_redis.url), "nobody", file)
    assert not file.exists()


def test_no_error_shows_a_preshared_key(stopped: GatewayProcess, settings: MakeSettings, file: Path) -> None:
    back_up(settings(), stopped.name, file)
    secret = next(json.loads(line[2])["preshared_key"] for line in lines_of(file)[1:] if "preshared_key" in line[2])
    file.write_bytes(rewritten(file, lambda lines: lines[1].__setitem__(2, lines[1][2].replace('"v":1', '"v":9'))))
    with pytest.raises(PeerlaneError) as error:
        restore_state(settings(), stopped.name, file, force=True)
    assert secret not in str(error.value)


def test_both_are_one_command_each(stopped: GatewayProcess, redis_server: RedisServer, file: Path) -> None:
    answer = asked("gateway", "backup", stopped.name, str(file), redis_url=redis_server.url)
    assert answer["peers"] == 6
    redis_server.redis.delete(names.peers_key(stopped.name))
    refusal = asked("gateway", "restore", stopped.name, str(file), redis_url=redis_server.url, expect=1)
    assert refusal["error"]["code"] == "conflict"
    answer = asked("gateway", "restore", stopped.name, str(file), "--force", redis_url=redis_server.url)
    assert answer["peers"] == 6
    assert len(peers(redis_server, stopped.name)) == 6
    redis_server.redis.hset(names.gateway_key(stopped.name), "peers", 9)
    asked("gateway", "restore", stopped.name, str(file), "--force", redis_url=redis_server.url)
    assert asked("gateway", "show", stopped.name, redis_url=redis_server.url)["peers"] == 6
