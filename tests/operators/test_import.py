"""Imports: a file's peers come in whole or not at all, every conflict is told, and an export is read back the same."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import cast

import preloaded
import pytest
from confs import rendered
from gateways import ROOT, GatewayProcess, MakeClient, MakeGateway, MakeSettings, clean_environment, close
from keys import key_number, some_key
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.client import connect
from peerlane.tasks.admin.import_conflicts import Clash
from peerlane.tasks.admin.import_refusals import AdoptionClash, ImportClash, NotTaken, UnreadableConf
from peerlane.tasks.admin.peer_import import (
    Imported,
    carry_out,
    check_file,
    import_file,
    import_live,
)
from peerlane.tasks.errors import (
    Conflict,
    Draining,
    Invalid,
    PeerlaneError,
    PoolExhausted,
    Refused,
    TimedOut,
    Unavailable,
)
from peerlane.tasks.lane import tasks
from peerlane.tasks.values.keys import make_key_pair, make_preshared_key
from peerlane.tasks.values.prefix import Prefix
from peerlane.tasks.wgfile.export import render_in_order
from peerlane.tasks.wgfile.parser import Problem
from peerlane.tasks.wire.stored_peer import Peer
from peerlane.workers.upkeep.lifetimes import lifetimes
from peerlane.workers.upkeep.sweep_policy import Limits, Sight, decide


@pytest.fixture
def app(settings: MakeSettings) -> Iterator[PeerlaneApp]:
    made = PeerlaneApp(settings(timeout=10))
    yield made
    close(made)


def peers(count: int, *, first: int = 0) -> list[Peer]:
    """So many that differ in everything."""
    now = int(time.time())
    return [
        Peer(
            public_key=key_number(first + number + 1),
            allowed_ips=(Prefix.host(4, (10 << 24) + (8 << 16) + 2 + first + number),),
            preshared_key=make_preshared_key() if number % 2 else None,
            keepalive=25 * (number % 3),
            ttl=3600 if number % 5 == 1 else None,
            expires_at=now + 1800 + number if number % 5 == 1 else None,
            labels={"name": f"peer {number}", "team": "ci"} if number % 2 else {},
            pinned=number % 5 == 2,
            created_at=now - 86_400 - number,
        )
        for number in range(count)
    ]


def a_file(*lines: str) -> bytes:
    return "\n".join(lines).encode()


def peer_lines(key: str, allowed_ips: str, *more: str) -> tuple[str, ...]:
    return ("[Peer]", f"PublicKey = {key}", f"AllowedIPs = {allowed_ips}", *more)


def as_wished(peers: Iterable[Peer]) -> dict[str, Peer]:
    """By public key, without what only the gateway knows of them."""
    return {peer.public_key: peer.model_copy(update={"imported_at": None}) for peer in peers}


def stored(server: RedisServer, gateway: GatewayProcess) -> dict[str, str]:
    """Everything of the gateway's peers that Redis holds."""
    hashes = (
        server.redis.hgetall(names.peers_key(gateway.name)),
        server.redis.hgetall(names.addresses_key(gateway.name)),
    )
    return {name: value for part in cast("tuple[dict[str, str], ...]", hashes) for name, value in part.items()}


# What comes in


def test_every_property_of_a_peer_comes_in(
    shared_gateway: GatewayProcess, client: MakeClient, app: PeerlaneApp
) -> None:
    iad, wanted = shared_gateway, peers(40)
    done = import_file(rendered(wanted), iad.name, app=app)
    assert done == Imported(outcome="imported", gateway=iad.name, created=40, existing=0)
    assert as_wished(client(iad).peers()) == as_wished(wanted)


def test_how_far_the_check_of_a_large_gateway_is_can_be_told(shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    import_file(rendered(peers(30)), shared_gateway.name, app=app)
    counted: list[bytes] = []

    def counting(entries: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for entry in entries:
            counted.append(entry[0])
            yield entry

    import_file(rendered(peers(3, first=40)), shared_gateway.name, app=app, counted=counting)
    assert {address.decode() for address in counted} >= {str(peer.allowed_ips[0]) for peer in peers(30)}


def test_an_export_is_read_back_by_another_gateway_to_the_same_state(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, own_redis: RedisServer, settings: MakeSettings
) -> None:
    site, other = gateway(), gateway(redis=own_redis)
    import_file(rendered(peers(40)), site.name, app=app)
    source = client(site)
    text = "\n".join(render_in_order(source.info(), source.peers())).encode()
    target = client(other, redis=own_redis)
    elsewhere = PeerlaneApp(settings(redis_url=own_redis.url))
    assert import_file(text, other.name, app=elsewhere).created == 40
    close(elsewhere)
    assert as_wished(target.peers()) == as_wished(source.peers())


def test_a_peer_that_a_file_dates_back_is_not_taken_for_one_that_never_came(
    shared_gateway: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer, settings: MakeSettings
) -> None:
    iad, (old,) = shared_gateway, peers(1)
    import_file(rendered([old]), iad.name, app=app)
    redis = connect(settings())
    lives = dict(chain.from_iterable(page.items() for page in lifetimes(redis, iad.name)))
    redis.close()
    assert lives[old.public_key].created_at == old.created_at
    now = int(redis_server.redis.time()[0])
    watched = Sight(frozenset(lives), complete=True, since=0)
    assert decide(lives, {}, now, Limits(), watched) == []
    assert [victim.reason for victim in decide(lives, {}, now + 86_401, Limits(), watched)] == ["never"]


def test_importing_twice_changes_nothing(
    shared_gateway: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad, data = shared_gateway, rendered(peers(30))
    import_file(data, iad.name, app=app)
    before = stored(redis_server, iad)
    assert import_file(data, iad.name, app=app) == Imported(
        outcome="imported", gateway=iad.name, created=0, existing=30
    )
    assert stored(redis_server, iad) == before


def test_what_a_file_does_not_name_is_left_to_redis(
    shared_gateway: GatewayProcess, client: MakeClient, app: PeerlaneApp
) -> None:
    iad = shared_gateway
    import_file(rendered(peers(30)), iad.name, app=app)
    for peer in client(iad).peers():
        # As `wg showconf` tells it: with its preshared key, without a comment.
        plain = b"\n".join(line for line in rendered([peer]).split(b"\n") if not line.startswith(b"#"))
        assert import_file(plain, iad.name, app=app).existing == 1


def test_a_plain_peer_gets_the_times_of_its_import(
    shared_gateway: GatewayProcess, client: MakeClient, app: PeerlaneApp
) -> None:
    iad, began = shared_gateway, int(time.time())
    ttl = peer_lines(key_number(2), "10.8.0.3", "# peerlane.ttl = 60")
    import_file(a_file(*peer_lines(key_number(1), "10.8.0.2"), *ttl), iad.name, app=app)
    plain, mortal = sorted(client(iad).peers(), key=lambda peer: peer.public_key)
    assert began - 1 <= plain.created_at <= began + 30
    assert (plain.expires_at, mortal.expires_at) == (None, mortal.created_at + 60)


def test_imported_peers_can_be_created_again_and_their_addresses_are_taken(
    shared_gateway: GatewayProcess, client: MakeClient, app: PeerlaneApp
) -> None:
    iad = shared_gateway
    import_file(a_file(*peer_lines(key_number(1), "10.8.0.2")), iad.name, app=app)
    assert client(iad).create_peer(key_number(1)).outcome == "existing"
    assert "10.8.0.3/32" in client(iad).create_peer(some_key()).allowed_ips


def test_a_dry_run_says_what_would_come_in_and_changes_nothing(
    shared_gateway: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    result = import_file(rendered(peers(5)), iad.name, app=app, dry_run=True)
    assert (result.outcome, result.created, result.existing) == ("would_import", 5, 0)
    assert not stored(redis_server, iad)


def test_nothing_staged_is_left_behind(
    shared_gateway: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    import_file(rendered(peers(5)), iad.name, app=app)
    assert not redis_server.redis.keys(names.staged_key("*", "*").replace("{*}", f"{{{iad.name}}}"))


# What does not


def test_every_conflict_is_listed_and_nothing_comes_in(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad = gateway(serves=("192.0.2.0/24",))
    redis = client(iad)
    redis.create_peer(key_number(1), allowed_ips=["10.8.0.2/32"])
    redis.create_peer(key_number(2), allowed_ips=["10.8.1.0/24"])
    redis.create_peer(key_number(7), allowed_ips=["10.8.5.5/32"])
    before = stored(redis_server, iad)
    data = a_file(
        *peer_lines(key_number(1), "10.8.0.2", "PersistentKeepalive = 5"),
        *peer_lines(key_number(3), "10.8.1.7, 10.8.5.0/24"),
        *peer_lines(key_number(4), "203.0.113.0/24"),
        *peer_lines(key_number(5), "10.8.0.0/31"),
        *peer_lines(redis.info().public_key, "10.8.9.9"),
        *peer_lines(key_number(6), "192.0.2.128/25, 10.8.7.7"),
    )
    with pytest.raises(ImportClash) as caught:
        import_file(data, iad.name, app=app)
    assert [(clash.line, clash.kind) for clash in caught.value.clashes] == [
        (1, "another_wish"),
        (5, "overlap"),
        (5, "overlap"),
        (8, "not_served"),
        (11, "own_address"),
        (14, "own_key"),
    ]
    served = caught.value.clashes[3].sentence
    assert "203.0.113.0/24 is outside" in served
    assert "PEERLANE_SERVES" in served
    assert stored(redis_server, iad) == before


def test_a_file_of_another_gateway_is_refused_by_its_key(
    shared_gateway: GatewayProcess, client: MakeClient, app: PeerlaneApp
) -> None:
    iad, pair = shared_gateway, make_key_pair()
    data = a_file("[Interface]", f"PrivateKey = {pair.private_key}", *peer_lines(key_number(1), "10.8.0.2"))
    with pytest.raises(Conflict) as caught:
        import_file(data, iad.name, app=app)
    assert pair.public_key in str(caught.value)
    assert client(iad).info().public_key in str(caught.value)
    assert pair.private_key not in str(caught.value)


def test_the_gateways_own_file_is_taken(gateway: MakeGateway, app: PeerlaneApp) -> None:
    iad = gateway()
    key = Path(iad.settings["private_key_file"]).read_text().strip()
    data = a_file("[Interface]", f"PrivateKey = {key}", *peer_lines(key_number(1), "10.8.0.2"))
    assert import_file(data, iad.name, app=app).created == 1


def test_a_file_with_problems_is_refused_with_all_of_them(
    shared_gateway: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    data = a_file(*peer_lines(key_number(1), "10.8.0.2"), *peer_lines("x", "10.8.0.3"), "[Interface]", "[Interface]")
    with pytest.raises(UnreadableConf) as caught:
        import_file(data, iad.name, app=app)
    assert [problem.line for problem in caught.value.problems] == [5, 8]
    assert not stored(redis_server, iad)


@pytest.mark.parametrize("data", [b"", b"[Interface]\nListenPort = 1\n", b"# nothing\n"])
def test_a_file_without_peers_is_refused(shared_gateway: GatewayProcess, app: PeerlaneApp, data: bytes) -> None:
    with pytest.raises(Invalid, match="no \\[Peer\\]"):
        import_file(data, shared_gateway.name, app=app)


def test_a_drained_or_full_or_absent_gateway_takes_no_import(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    data = rendered(peers(5))
    drained, small = gateway(), gateway(max_peers=4)
    client(drained).drain()
    with pytest.raises(Draining):
        import_file(data, drained.name, app=app)
    with pytest.raises(PoolExhausted, match="nothing was imported"):
        import_file(data, small.name, app=app)
    with pytest.raises(Unavailable):
        import_file(data, "nobody", app=app)
    assert not stored(redis_server, drained)
    assert not stored(redis_server, small)


def test_the_writer_refuses_what_came_between_looking_and_importing(
    shared_gateway: GatewayProcess, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    checked = check_file(rendered(peers(5)), iad.name, app=app)
    client(iad).create_peer(some_key(), allowed_ips=["10.8.0.4/32"])
    before = stored(redis_server, iad)
    with pytest.raises(Conflict, match=r"overlaps 10\.8\.0\.4/32"):
        carry_out(checked, app=app, timeout=10)
    assert stored(redis_server, iad) == before


def test_what_was_staged_and_changed_is_refused(
    shared_gateway: GatewayProcess, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    task = tasks.task_of(app, names.IMPORT_PEERS)
    redis_server.redis.rpush(names.staged_key(iad.name, "t"), "{}")
    for arguments in (
        {"token": "t", "count": 1, "digest": "0" * 64},
        {"token": "other", "count": 1, "digest": "0" * 64},
        {"token": "t", "count": 1},
        {"token": "t", "live": True},
        {},
    ):
        with pytest.raises(Invalid):
            task.apply_async(kwargs={"gateway": iad.name, **arguments}, expires=5).get(timeout=5)
    assert not stored(redis_server, iad)


# Whole or not at all


@pytest.mark.parametrize(
    "point", ["before_apply", "after_apply", "before_commit", "after_commit", "before_acknowledge"]
)
def test_a_writer_killed_in_the_middle_leaves_all_or_nothing(
    gateway: MakeGateway, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer, tmp_path: Path, point: str
) -> None:
    switch = tmp_path / "failpoints"
    switch.write_text(f"{point}:kill")
    iad = gateway(test_failpoints=switch)
    wanted = peers(300)
    outcome: Imported | Refused
    try:
        outcome = import_file(rendered(wanted), iad.name, app=app, timeout=3)
    except TimedOut as error:
        outcome = error
    eventually(lambda: iad.status is not None, "the writer being killed")
    iad.start()
    by_key = {peer.public_key: peer for peer in client(iad).peers()}
    if isinstance(outcome, Imported):
        assert point in ("after_commit", "before_acknowledge")
        assert as_wished(by_key.values()) == as_wished(wanted)
    else:
        assert point in ("before_apply", "after_apply", "before_commit")
        assert not stored(redis_server, iad)
        # Not even later: the request was cancelled.
        assert client(iad).create_peer(wanted[0].public_key).outcome == "created"


def test_an_import_that_is_given_up_never_comes_in(
    shared_gateway: GatewayProcess, client: MakeClient, app: PeerlaneApp, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    iad.pause(alive=True)
    with pytest.raises(TimedOut):
        import_file(rendered(peers(5)), iad.name, app=app, timeout=1)
    iad.resume()
    client(iad).delete_peer(some_key(), timeout=10, bulk=True)  # behind it in the lane
    assert not stored(redis_server, iad)


def test_a_live_import_where_nothing_is_unknown_takes_nothing(shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    iad = shared_gateway
    import_file(rendered(peers(3)), iad.name, app=app)
    assert import_live(iad.name, app=app) == Imported(outcome="imported", gateway=iad.name, created=0, existing=0)


# From the command line


def peerlane(server: RedisServer, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    command = [sys.executable, "-m", "peerlane.workers.cli", *arguments]
    done = preloaded.run(command, ROOT, clean_environment() | {"PEERLANE_REDIS_URL": server.url}, source=stdin)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_command_line_imports_and_exports(
    shared_gateway: GatewayProcess, redis_server: RedisServer, tmp_path: Path
) -> None:
    iad, file = shared_gateway, tmp_path / "wg0.conf"
    file.write_bytes(rendered(peers(5)))
    status, out, _ = peerlane(redis_server, "gateway", "import", iad.name, str(file), "--dry-run", "--json")
    assert (status, json.loads(out)["outcome"]) == (0, "would_import")
    status, out, _ = peerlane(redis_server, "gateway", "import", iad.name, str(file), "--json")
    assert (status, json.loads(out)["created"]) == (0, 5)
    status, out, _ = peerlane(redis_server, "gateway", "export", iad.name)
    assert status == 0
    status, out, error = peerlane(redis_server, "gateway", "import", iad.name, "-", stdin=out.encode())
    assert (status, "5 were there already" in out, error) == (0, True, "")


@pytest.mark.needs("jq")
def test_peers_are_moved_to_another_gateway_as_the_readme_says(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer, tmp_path: Path
) -> None:
    lon, iad = gateway(), gateway()
    for number in range(3):
        client(lon).create_peer(
            key_number(number + 1), labels={"name": f"peer {number}"}, keepalive=25, pinned=not number
        )
    client(iad).create_peer(key_number(9))  # it has the address of a peer that moves
    moving = client(lon).peers()
    readme = (ROOT / "README.md").read_text()
    (chosen,) = re.findall(r"peer list lon --json \| jq '([^']+)'", readme)
    _, listed, _ = peerlane(redis_server, "peer", "list", lon.name, "--json")
    file = tmp_path / "moving.json"
    file.write_bytes(subprocess.run(["jq", chosen], input=listed.encode(), capture_output=True, check=True).stdout)
    status, out, _ = peerlane(redis_server, "peer", "create", iad.name, "--from", str(file), "--json")
    assert status == 0, out
    status, _, _ = peerlane(redis_server, "peer", "delete", lon.name, "--from", str(file))
    assert (status, list(client(lon).peers())) == (0, [])
    there = {peer.public_key: peer for peer in client(iad).peers()}
    for before in moving:
        after = there[before.public_key]
        assert (after.labels, after.keepalive, after.pinned) == (before.labels, before.keepalive, before.pinned)
    assert len({prefix for peer in there.values() for prefix in peer.allowed_ips}) == 2 * 4


def test_names_of_generators_come_in_and_what_else_they_wrote_is_told(
    shared_gateway: GatewayProcess, client: MakeClient, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    data = a_file(
        *("# Client: anna (5b7f9ab1-6f0c-4d8e-9a51-0d2c3b4a5e6f)", *peer_lines(key_number(1), "10.8.0.2")),
        *("", "# her second phone", "# Name:   bob", *peer_lines(key_number(2), "10.8.0.3")),
    )
    _, out, error = peerlane(redis_server, "gateway", "import", iad.name, "-", "--dry-run", stdin=data)
    assert "2 peers would be imported" in out
    assert "of 1 comments nothing is kept (lines 6)" in " ".join(error.split())
    status, out, _ = peerlane(redis_server, "gateway", "import", iad.name, "-", "--json", stdin=data)
    answer = json.loads(out)
    assert (status, answer["comments_left_out"], answer["comment_lines"]) == (0, 1, [6])
    assert {peer.public_key: peer.labels for peer in client(iad).peers()} == {
        key_number(1): {"name": "anna"},
        key_number(2): {"name": "bob"},
    }


def test_the_command_line_lists_conflicts_for_people_and_programs(
    shared_gateway: GatewayProcess, client: MakeClient, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    client(iad).create_peer(key_number(9), allowed_ips=["10.8.0.2/32"])
    data = rendered(peers(2))
    status, out, error = peerlane(redis_server, "gateway", "import", iad.name, "-", stdin=data)
    assert status == 1
    assert "10.8.0.2/32 overlaps 10.8.0.2/32" in out
    assert "nothing was imported: 1 conflicts" in error
    status, out, _ = peerlane(redis_server, "gateway", "import", iad.name, "-", "--json", stdin=data)
    (conflict,) = json.loads(out)["error"]["conflicts"]
    assert (status, conflict["kind"], conflict["public_key"]) == (1, "overlap", key_number(1))


def test_the_command_line_lists_problems_without_a_secret(
    shared_gateway: GatewayProcess, redis_server: RedisServer
) -> None:
    iad, secret = shared_gateway, make_preshared_key()
    data = a_file("[Peer]", f"PresharedKey {secret}", f"PublicKey = {secret[:-3]}", "AllowedIPs = 10.8.0.2/8")
    for options in ([], ["--json"]):
        status, out, error = peerlane(redis_server, "gateway", "import", iad.name, "-", *options, stdin=data)
        assert status == 1
        assert "did you mean 10.0.0.0/8?" in out
        assert secret[:20] not in out + error


def test_the_command_line_drains_resumes_and_shows_it(gateway: MakeGateway, redis_server: RedisServer) -> None:
    iad = gateway()
    status, out, _ = peerlane(redis_server, "gateway", "drain", iad.name, "--json")
    assert (status, json.loads(out)) == (0, {"gateway": iad.name, "before": "active", "after": "draining"})
    status, out, _ = peerlane(redis_server, "gateway", "list", "--json")
    assert {row["name"]: row["state"] for row in json.loads(out)["gateways"]}[iad.name] == "draining"
    status, out, _ = peerlane(redis_server, "peer", "create", iad.name, "--json")
    assert (status, json.loads(out)["error"]["code"]) == (1, "draining")
    status, out, _ = peerlane(redis_server, "gateway", "resume", iad.name)
    assert (status, "takes peers again" in out) == (0, True)
    status, _, error = peerlane(redis_server, "gateway", "drain", "nobody")
    assert (status, "no gateway nobody" in error) == (3, True)


@pytest.mark.parametrize(
    "error",
    [
        UnreadableConf([Problem(1, "no such section"), Problem(2, "no key")]),
        ImportClash([Clash(1, "k", "overlap", "10.8.0.2/32 overlaps")]),
        AdoptionClash([NotTaken(public_key="k", kind="no_allowed_ips", message="none")], 2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_lists_conflicts_can_be_pickled(error: PeerlaneError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), again.as_dict(), str(again)) == (type(error), error.as_dict(), str(error))
