"""Sentinels and servers that speak TLS only, with users of least rights on both: what works, and every refusal."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from certificates import HERE, Authority, program_with_tls
from fenced import set_users
from gateways import GatewayProcess, MakeClient, MakeSettings, close
from keys import some_key
from loops import run_and_leave_nothing
from redis_refusals import Refusal, refused_in_asyncio
from replicated import Replicated, Tls
from servers import server_directory
from waiting import PATIENCE, eventually

from peerlane import AsyncGateway, PeerlaneError
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.redis.sentinels import sentinels
from peerlane.config.settings import read
from peerlane.tasks.admin.acl import users
from peerlane.tasks.errors import OutcomeUnknown, RedisAway
from peerlane.tasks.lane.tasks import task_of
from peerlane.workers.cli.main import main
from peerlane.workers.store import procedures as functions

PASSWORD, WATCHED, WATCHING = "only-for-these-tests", "data-pw", "watch-pw"
pytestmark = pytest.mark.slow("five servers, and a failover that takes seconds")

#: What docs/security.md tells to give Peerlane's user on the Sentinels; and a user that may not ask.
SENTINEL_USERS = (
    "peerlane on >sentinel-pw resetchannels -@all +sentinel|masters",
    "nobody on >nobody-pw resetchannels -@all +ping",
)


@dataclass(frozen=True)
class Scene:
    """The servers, and the settings of who trusts them."""

    servers: Replicated
    directory: Path
    trust: dict[str, Any]

    def url(self, user: str, **named: Any) -> str:
        login: dict[str, Any] = {"sentinel_user": "peerlane", "sentinel_password": "sentinel-pw"} | named
        return self.servers.url_as(user, login.pop("password", PASSWORD), **login)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    program, directory = program_with_tls(), server_directory()
    authority = Authority(directory)
    certificate_and_key = authority.client_file(directory / "client.pem")
    tls = Tls(program, authority.certificate, authority.issue("server", *HERE))
    made = Replicated(directory, password=WATCHED, sentinel_password=WATCHING, sentinel_users=SENTINEL_USERS, tls=tls)
    functions.load(made.primary.redis)
    for server in (made.primary, made.replica):
        set_users(server, users(["iad"], ["writer", "api", "operator"]), PASSWORD)
    yield Scene(made, directory, {"redis_ca": authority.certificate, "redis_client_cert": certificate_and_key})
    made.end()
    shutil.rmtree(directory, ignore_errors=True)


# What is refused


BAD = (
    Refusal("foreign-ca", ": its TLS certificate is refused: "),
    Refusal("no-client-certificate", "PEERLANE_REDIS_CLIENT_CERT"),
    Refusal("plain-to-tls", "if it expects TLS, the URL begins with rediss://"),
    Refusal("silent-sentinel", "does it speak TLS on this port?"),
    Refusal("sentinel-password", ": it knows no such user, or another password"),
    Refusal("sentinel-right", ": its user may not call SENTINEL MASTERS"),
    Refusal("service", ": it knows no such service"),
    Refusal("server-password", "Redis refuses (it knows no such user, or another password)"),
)


@pytest.fixture(params=BAD, ids=lambda bad: bad.name)
def bad(request: pytest.FixtureRequest, scene: Scene) -> Iterator[tuple[Refusal, dict[str, Any]]]:
    """One of them, with the settings of who connects."""
    bad: Refusal = request.param
    settings = {"redis_url": scene.url("api-iad"), **scene.trust}
    match bad.name:
        case "foreign-ca":
            settings["redis_ca"] = Authority(scene.directory, "foreign").certificate
        case "no-client-certificate":
            del settings["redis_client_cert"]
        case "plain-to-tls":
            settings = {"redis_url": scene.url("api-iad", tls=False)}
        case "silent-sentinel":
            with socket.socket() as silent:
                silent.bind(("127.0.0.1", 0))
                silent.listen()
                yield bad, settings | {"redis_url": f"rediss+sentinel://127.0.0.1:{silent.getsockname()[1]}/peers"}
            return
        case "sentinel-password":
            settings["redis_url"] = scene.url("api-iad", sentinel_password="other-pw")
        case "sentinel-right":
            settings["redis_url"] = scene.url("api-iad", sentinel_user="nobody", sentinel_password="nobody-pw")
        case "service":
            settings["redis_url"] = scene.url("api-iad", service="others")
        case _:
            settings["redis_url"] = scene.url("api-iad", password="other-pw")
    yield bad, settings


def check_refusal(bad: Refusal, message: str) -> None:
    assert bad.says in message
    assert ("no Sentinel names a primary of the service" in message) == (bad.name != "server-password")
    for secret in (PASSWORD, WATCHED, WATCHING, "other-pw", "sentinel-pw", "nobody-pw"):
        assert secret not in message


def test_a_client_is_told_why_it_does_not_connect(bad: tuple[Refusal, dict[str, Any]], client: MakeClient) -> None:
    with pytest.raises(OutcomeUnknown, match="nothing was sent") as caught:
        client("iad", **bad[1]).create_peer(some_key(), timeout=PATIENCE)
    check_refusal(bad[0], str(caught.value))


def test_an_asyncio_client_is_told_too(bad: tuple[Refusal, dict[str, Any]], settings: MakeSettings) -> None:
    refused_in_asyncio(settings, bad[1])


def test_a_writer_and_a_command_say_why_and_end(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trust: dict[str, Any] = scene.trust | {"redis_ca": Authority(tmp_path, "foreign").certificate}
    writer = GatewayProcess("iad", scene.url("writer-iad"), tmp_path, dataplane="memory", **trust)
    writer.start(wait=False)
    assert writer.await_end() == RedisAway.exit_code
    check_refusal(BAD[0], writer.log)
    writer.finish()
    for name, value in (trust | {"redis_url": scene.url("operator-iad")}).items():
        monkeypatch.setenv(f"PEERLANE_{name.upper()}", str(value))
    assert main.main(["gateway", "list", "--json"], standalone_mode=False) == RedisAway.exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "outcome_unknown"
    check_refusal(BAD[0], error["message"])


# What works


def test_sentinels_that_stand_still_hold_nobody_up_for_ever(scene: Scene, settings: MakeSettings) -> None:
    app = PeerlaneApp(settings(redis_url=scene.url("api-iad"), **scene.trust))

    async def give_up() -> list[Any]:
        async with AsyncGateway("iad", app=app) as gateway:
            asked = [asyncio.create_task(gateway.create_peer(some_key(), timeout=1)) for _ in range(3)]
            await asyncio.sleep(0.3)
            asked[0].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    for each in scene.servers.sentinels:
        each.process.send_signal(signal.SIGSTOP)
    try:
        ends = run_and_leave_nothing(give_up)
    finally:
        for each in scene.servers.sentinels:
            each.process.send_signal(signal.SIGCONT)
        close(app)
    assert {type(end) for end in ends} <= {asyncio.CancelledError, OutcomeUnknown}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_a_sentinel_that_does_not_answer_is_asked_once(scene: Scene, *, asynchronous: bool) -> None:
    """Its host may be gone for long, and each new connection would wait for it."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(0)
        asked = sentinels(read(redis_url=scene.url("api-iad"), **scene.trust))
        assert asked is not None
        watched = replace(asked, hosts=(("127.0.0.1", int(silent.getsockname()[1])), *asked.hosts))
        addresses = [
            run_and_leave_nothing(watched.primary_async) if asynchronous else watched.primary() for _ in range(3)
        ]
        assert len(set(addresses)) == 1
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_creates_are_answered_before_and_after_a_failover(
    scene: Scene, client: MakeClient, settings: MakeSettings, tmp_path: Path
) -> None:
    """The primary vanishes: its connections stay open, and silent."""
    writer = GatewayProcess("iad", scene.url("writer-iad"), tmp_path, dataplane="memory", **scene.trust)
    writer.start()
    api: dict[str, Any] = {"redis_url": scene.url("api-iad"), **scene.trust}
    app = PeerlaneApp(settings(**api))
    lane = client("iad", **api)

    def celery() -> str:
        wish = {"gateway": "iad", "public_key": some_key()}
        return str(task_of(app, names.CREATE_PEER).apply_async(kwargs=wish, expires=5).get(timeout=5)["outcome"])

    ways: list[Callable[[], str]] = [lambda: lane.create_peer(some_key(), timeout=5).outcome, celery]
    first = scene.servers.sentinels[0].process
    first.send_signal(signal.SIGSTOP)  # the others are asked
    try:
        assert [ask() for ask in ways] == ["created"] * 2
    finally:
        first.send_signal(signal.SIGCONT)

    def fail_over() -> None:
        scene.servers.primary.pause()
        scene.servers.await_failover()

    async def through() -> None:
        async with AsyncGateway("iad", app=app) as gateway:
            assert (await gateway.create_peer(some_key(), timeout=5)).outcome == "created"
            await asyncio.to_thread(fail_over)
            async with asyncio.timeout(PATIENCE):
                while True:
                    with suppress(PeerlaneError):
                        assert (await gateway.create_peer(some_key(), timeout=5)).outcome == "created"
                        return
                    await asyncio.sleep(0.1)

    run_and_leave_nothing(through)

    def created(ask: Callable[[], str]) -> bool:
        with suppress(PeerlaneError):
            return ask() == "created"
        return False

    for ask in ways:
        eventually(lambda ask=ask: created(ask), "a create after the failover")
    assert len(list(lane.peers())) >= 6
    assert writer.stop() == 0
    writer.finish()
    close(app)
    logs: list[Any] = [
        scene.servers.replica.redis.acl_log(),
        *(each.redis.acl_log() for each in scene.servers.sentinels),
    ]
    refused = [entry for log in logs for entry in log if entry["reason"] == "command" and entry["username"] != "nobody"]
    assert {entry["object"] for entry in refused} <= {"config|get"}
    assert not any(secret in writer.log for secret in (PASSWORD, WATCHED, WATCHING, "sentinel-pw"))
