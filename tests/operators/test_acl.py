"""Peerlane behind the Redis users that ``peerlane acl`` prints: its whole life goes on, each part with its rights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fenced import GATEWAYS, FencedServer, fenced, printed
from flowers import flower
from gateways import GatewayProcess, MakeClient, MakeSettings, close
from keys import some_key
from observers import Observer, beat, ending
from redis.exceptions import ResponseError
from waiting import PATIENCE, eventually

from peerlane import AsyncGateway, Gateway, gateways
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admin import poison_messages
from peerlane.tasks.admin.acl import PLACEHOLDER, User, users
from peerlane.tasks.admin.backup import back_up, restore_state
from peerlane.tasks.admin.maintenance import sweep
from peerlane.tasks.admin.peer_import import import_file
from peerlane.tasks.admin.removal import Removed, remove_gateway
from peerlane.tasks.admission.lanes import lanes_of
from peerlane.tasks.errors import Conflict, OutcomeUnknown, RedisAway, StorageError, TimedOut, Unavailable
from peerlane.workers.cli.main import main


@pytest.fixture
def server(capsys: pytest.CaptureFixture[str]) -> Iterator[FencedServer]:
    with fenced(printed(capsys, *GATEWAYS, "--passwords")) as server:
        yield server


@pytest.fixture
def writer(server: FencedServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    writer = GatewayProcess(
        "iad",
        server.url_of("writer-iad"),
        tmp_path,
        dataplane="memory",
        sweep_every="1",
        test_failpoints=tmp_path / "failpoints",
    )
    writer.start()
    yield writer
    writer.finish()
    assert_nobody_was_refused(server)


@pytest.fixture
def api(server: FencedServer, client: MakeClient) -> Gateway:
    return client("iad", redis_url=server.url_of("api"))


def assert_nobody_was_refused(server: FencedServer) -> None:
    """Redis notes what it refuses to whom. A writer asks for appendfsync, and takes no for an answer."""
    noted = [(entry["username"], entry["reason"], entry["object"]) for entry in server.redis.acl_log()]
    assert [entry for entry in noted if entry[1:] != ("command", "config|get")] == []


# What is printed


def test_without_passwords_redis_refuses_to_load_what_is_printed(server: FencedServer) -> None:
    (user,) = users(["iad"], ["api"])
    assert PLACEHOLDER in user.line()
    with pytest.raises(ResponseError):
        server.redis.execute_command(*user.line("setuser").split(" "))


def test_the_commands_make_the_same_users_as_the_file(server: FencedServer, capsys: pytest.CaptureFixture[str]) -> None:
    before = server.redis.acl_list()
    for line in printed(capsys, *GATEWAYS, "--passwords", "--form", "setuser").splitlines():
        server.redis.execute_command(*_words(line))

    def rights(lines: Sequence[object]) -> list[str]:
        return sorted(" ".join(word for word in str(line).split() if not word.startswith("#")) for line in lines)

    assert rights(server.redis.acl_list()) == rights(before)


def _words(line: str) -> list[str]:
    """A command's words; a selector in brackets is one."""
    joined: list[str] = []
    for word in line.split(" "):
        if joined and joined[-1].startswith("(") and not joined[-1].endswith(")"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def test_one_gateways_users_have_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "iad").splitlines()
    assert [line.split()[1] for line in lines] == [
        *("writer-iad", "observer-iad", "api-iad", "operator-iad", "restorer-iad", "beat", "flower", "exporter"),
        *("admin", "default"),
    ]
    assert lines[-1] == "user default off"


def test_one_role_alone_is_printed_as_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    (user,) = json.loads(printed(capsys, "iad", "--role", "beat", "--passwords", "--json"))["users"]
    assert (user["user"], user["role"]) == ("beat", "beat")
    assert f" on >{user['password']} " in user["line"]


def test_the_channels_follow_the_database_of_the_url(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERLANE_REDIS_URL", "redis://:hidden-word@db.example/3")
    line = printed(capsys, "iad", "--role", "flower")
    assert "&/3.celeryev/*" in line
    assert "hidden-word" not in line


@pytest.mark.parametrize("password", ["short", "has a space in its midst", "brackets)(+@all ~*abcdefgh", ""])
def test_a_password_that_could_be_more_rules_is_refused(password: str) -> None:
    (user,) = users(["iad"], ["api"])
    with pytest.raises(ValueError, match="letters, digits"):
        User.line(user, "aclfile", password)


# The functions that writers call


def test_without_its_functions_a_writer_says_what_to_do_and_starts_once_it_is_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with fenced(printed(capsys, *GATEWAYS, "--passwords"), load=False) as server:
        writer = GatewayProcess("iad", server.url_of("writer-iad"), tmp_path, dataplane="memory")
        writer.start(wait=False)
        assert writer.await_end() == RedisAway.exit_code
        assert "an administrator runs `peerlane functions --load`" in writer.log
        assert main.main(["--redis", server.url_of("admin"), "functions", "--load"], standalone_mode=False) == 0
        writer.start()
        writer.finish()


def test_a_restart_of_redis_keeps_the_functions(server: FencedServer, writer: GatewayProcess, api: Gateway) -> None:
    server.restart()
    writer.await_serving()
    assert eventually(lambda: _created(api), "a peer after the restart")


def _created(api: Gateway) -> bool:
    try:
        return api.create_peer(some_key()).outcome == "created"
    except Unavailable:
        return False


def test_loading_them_takes_an_administrator(server: FencedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--redis", server.url_of("writer-iad"), "functions", "--load"], standalone_mode=False) == 1
    assert "this user may not do that" in capsys.readouterr().err


# The whole of a normal life


def test_an_api_creates_reads_lists_and_deletes(writer: GatewayProcess, api: Gateway) -> None:
    key = some_key()
    assert api.create_peer(key, preshared_key=some_key(), labels={"user": "ada"}).outcome == "created"
    assert api.create_peer(some_key(), bulk=True).outcome == "created"
    stored = api.peer(key)
    assert stored is not None
    assert key in [peer.public_key for peer in api.peers()]
    assert api.info().state == "active"
    assert api.delete_peer(key).outcome == "deleted"
    assert writer.status is None


@pytest.mark.usefixtures("writer")
def test_an_api_lists_all_gateways_that_there_are(server: FencedServer, settings: MakeSettings) -> None:
    app = PeerlaneApp(settings(redis_url=server.url_of("api")))
    assert [info.name for info in gateways(app)] == ["iad"]
    close(app)


def test_an_asyncio_client_works_too(server: FencedServer, writer: GatewayProcess, settings: MakeSettings) -> None:
    app = PeerlaneApp(settings(redis_url=server.url_of("api")))

    async def life() -> None:
        async with AsyncGateway("iad", app=app) as gateway:
            key = some_key()
            assert (await gateway.create_peer(key)).outcome == "created"
            assert (await gateway.delete_peer(key)).outcome == "deleted"
            writer.pause()
            with pytest.raises(TimedOut):
                await gateway.create_peer(some_key(), timeout=0.3)
            writer.resume()

    asyncio.run(life())
    close(app)


def test_a_tenant_has_its_share_counted(server: FencedServer, api: Gateway, tmp_path: Path) -> None:
    writer = GatewayProcess("iad", server.url_of("writer-iad"), tmp_path, dataplane="memory", fair_label="user")
    writer.start()
    assert api.create_peer(some_key(), labels={"user": "ada"}).outcome == "created"
    writer.finish()
    assert server.redis.keys("peerlane:{iad}:share:*") == []
    assert_nobody_was_refused(server)


def test_a_caller_that_gives_up_has_cancelled(writer: GatewayProcess, api: Gateway) -> None:
    key = some_key()
    api.info()
    writer.pause()
    with pytest.raises(TimedOut):
        api.create_peer(key, timeout=0.3)
    writer.resume()
    assert api.create_peer(some_key(), timeout=PATIENCE).outcome == "created"
    assert api.peer(key) is None


def test_what_a_killed_writer_had_taken_is_carried_out_by_the_next(
    server: FencedServer, writer: GatewayProcess, api: Gateway, tmp_path: Path
) -> None:
    (tmp_path / "failpoints").write_text("before_commit:kill\n")
    key = some_key()
    with pytest.raises(TimedOut):
        api.create_peer(key, timeout=1, request_id="iad.given-up")
    assert writer.await_end() == -9
    # Delivered again after its visibility timeout: here its time is over, and its caller has cancelled.
    index = names.unacked_key("iad", "_index")
    (tag,) = server.redis.zrange(index, 0, -1)
    server.redis.zadd(index, {str(tag): 1})
    writer.start()
    eventually(lambda: server.redis.zcard(index) == 0, "the message to be delivered again and acknowledged")
    assert api.peer(key) is None
    assert "Traceback" not in writer.log


def test_beat_asks_the_observer_which_has_the_writer_remove_what_expired(
    server: FencedServer, writer: GatewayProcess, api: Gateway, tmp_path: Path
) -> None:
    observer = Observer(writer, redis_url=server.url_of("observer-iad"))
    with ending(observer, beat(server.url_of("beat"), tmp_path / "beat.log", sweep_every="1")):
        key = some_key()
        api.create_peer(key, ttl=1)
        eventually(lambda: api.peer(key) is None, "the expired peer to be swept")


def test_an_operator_sweeps_drains_resumes_and_imports(
    server: FencedServer, writer: GatewayProcess, settings: MakeSettings
) -> None:
    app = PeerlaneApp(settings(redis_url=server.url_of("operator")))
    iad = Gateway("iad", app=app)
    with ending(Observer(writer, redis_url=server.url_of("observer-iad"))):
        assert sweep(app, "iad", timeout=PATIENCE)["outcome"] == "swept"
    assert (iad.drain().after, iad.resume().after) == ("draining", "active")
    conf = f"[Peer]\nPublicKey = {some_key()}\nAllowedIPs = 10.8.0.77/32\n".encode()
    assert import_file(conf, "iad", app=app, timeout=PATIENCE).created == 1
    close(app)


def test_an_operator_backs_up_and_a_restorer_restores(
    server: FencedServer, writer: GatewayProcess, api: Gateway, settings: MakeSettings, tmp_path: Path
) -> None:
    key, file = some_key(), tmp_path / "iad.backup"
    api.create_peer(key, preshared_key=some_key(), labels={"user": "ada"})
    records = server.redis.hgetall(names.peers_key("iad"))
    operator, restorer = (settings(redis_url=server.url_of(user)) for user in ("operator", "restorer"))
    assert back_up(operator, "iad", file).peers == 1
    api.delete_peer(key)
    api.create_peer(some_key())
    with pytest.raises(Unavailable, match="has a live writer"):
        restore_state(restorer, "iad", file, force=True)
    writer.stop()
    with pytest.raises(Conflict, match="--force"):
        restore_state(restorer, "iad", file)
    assert restore_state(restorer, "iad", file, force=True).replaced == 1
    assert server.redis.hgetall(names.peers_key("iad")) == records
    writer.start()
    assert api.peer(key) is not None
    assert server.redis.keys("peerlane:{iad}:snapshot:*") == []


def test_a_gateway_whose_redis_is_lost_is_restored_by_the_restorer_alone(
    server: FencedServer, writer: GatewayProcess, api: Gateway, settings: MakeSettings, tmp_path: Path
) -> None:
    key, file = some_key(), tmp_path / "iad.backup"
    api.create_peer(key)
    back_up(settings(redis_url=server.url_of("operator")), "iad", file)
    writer.stop()
    for lost in server.redis.keys("peerlane:*"):
        server.redis.delete(str(lost))
    assert restore_state(settings(redis_url=server.url_of("restorer")), "iad", file).peers == 1
    writer.start()
    assert api.peer(key) is not None


@pytest.mark.parametrize("user", ["operator", "api", "writer-iad"])
def test_only_the_restorer_restores(
    server: FencedServer, settings: MakeSettings, client: MakeClient, tmp_path: Path, user: str
) -> None:
    writer, file = GatewayProcess("iad", server.url_of("writer-iad"), tmp_path, dataplane="memory"), tmp_path / "b"
    writer.start()
    client("iad", redis_url=server.url_of("api")).create_peer(some_key())
    back_up(settings(redis_url=server.url_of("operator")), "iad", file)
    writer.stop()
    before = {str(key): server.redis.dump(str(key)) for key in server.redis.keys("peerlane:{iad}:*")}
    with pytest.raises(StorageError, match="this user may not do that"):
        restore_state(settings(redis_url=server.url_of(user)), "iad", file, force=True)
    after = {str(key): server.redis.dump(str(key)) for key in server.redis.keys("peerlane:{iad}:*")}
    assert set(after) == set(before)
    writer.finish()


@pytest.mark.parametrize("user", ["api", "observer-iad", "restorer", "beat", "flower"])
def test_only_the_operator_backs_up(server: FencedServer, settings: MakeSettings, tmp_path: Path, user: str) -> None:
    server.redis.hset(names.gateway_key("iad"), "public_key", "x")
    with pytest.raises((StorageError, OutcomeUnknown)):
        back_up(settings(redis_url=server.url_of(user)), "iad", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_operator_removes_a_gateway_that_has_stopped_and_is_refused_nothing_but_a_look_at_all_keys(
    server: FencedServer, writer: GatewayProcess, api: Gateway, settings: MakeSettings
) -> None:
    api.create_peer(some_key())
    operator = settings(redis_url=server.url_of("operator"))
    with pytest.raises(Unavailable, match="has a live writer"):
        remove_gateway(operator, "iad", force=True)
    writer.stop()
    with pytest.raises(Conflict, match="--force"):
        remove_gateway(operator, "iad")
    assert_nobody_was_refused(server)
    assert remove_gateway(operator, "iad", force=True) == Removed("iad", 1, 0)
    assert server.redis.keys("peerlane:*") == [names.epoch_key("iad")]
    assert not server.redis.keys("gateway.*")
    assert not server.redis.smembers(names.GATEWAYS_KEY)
    refused = {(entry["username"], entry["object"]) for entry in server.redis.acl_log()}
    assert refused - {("writer-iad", "config|get")} == {("operator", "scan")}
    server.redis.acl_log_reset()
    writer.start()
    assert api.create_peer(some_key()).outcome == "created"


@pytest.mark.parametrize("user", ["api", "writer-iad", "observer-iad", "restorer", "beat", "flower"])
def test_only_the_operator_removes(server: FencedServer, settings: MakeSettings, user: str) -> None:
    server.redis.hset(names.gateway_key("iad"), "public_key", "x")
    server.redis.sadd(names.GATEWAYS_KEY, "iad")
    before = sorted(map(str, server.redis.keys("*")))
    with pytest.raises(StorageError, match="this user may not do that"):
        remove_gateway(settings(redis_url=server.url_of(user)), "iad", force=True)
    assert sorted(map(str, server.redis.keys("*"))) == before


def test_beat_takes_back_what_it_asked_of_a_gateway_that_was_removed(server: FencedServer, tmp_path: Path) -> None:
    server.redis.hset(names.gateway_key("iad"), mapping={"public_key": "x", "sweep_every": "1"})
    server.redis.sadd(names.GATEWAYS_KEY, "iad")
    queue = names.observer_queue("iad")
    with ending(asking := beat(server.url_of("beat"), tmp_path / "beat.log")):
        eventually(lambda: server.redis.llen(queue) > 0, "beat asking")
        server.redis.srem(names.GATEWAYS_KEY, "iad")
        asking.says("0 gateways are looked after")
    assert not server.redis.exists(queue)
    assert_nobody_was_refused(server)


def test_what_is_no_request_is_set_aside_for_the_operator(
    server: FencedServer, writer: GatewayProcess, settings: MakeSettings
) -> None:
    server.redis.lpush(names.lane_queue("iad"), "no request at all")
    app = PeerlaneApp(settings(redis_url=server.url_of("operator")))
    redis = lanes_of(app).redis
    (message,) = eventually(lambda: poison_messages.set_aside_messages(redis, "iad"), "what was set aside")
    assert (message.size, message.request) == (len(b"no request at all"), None)
    poison_messages.drop(redis, "iad", message.id)
    assert poison_messages.set_aside_messages(redis, "iad") == []
    close(app)
    assert writer.status is None


@pytest.mark.usefixtures("writer")
def test_flower_shows_the_gateway_by_its_events(server: FencedServer, api: Gateway, tmp_path: Path) -> None:
    with flower(server.url_of("flower"), tmp_path) as page:
        eventually(lambda: "iad@" in page.text("/workers"), "the gateway among Flower's workers")
        key = some_key()
        api.create_peer(key)
        eventually(lambda: key in page.text("/api/tasks"), "the create among Flower's tasks")


@pytest.mark.usefixtures("writer")
def test_flower_asks_no_gateway_anything(server: FencedServer, tmp_path: Path) -> None:
    with flower(server.url_of("flower"), tmp_path) as page:
        assert page.status("/api/workers?refresh=1", user=page.USER) == 200
        assert server.redis.pubsub_numsub("/0.celery.pidbox") == [("/0.celery.pidbox", 0)]
