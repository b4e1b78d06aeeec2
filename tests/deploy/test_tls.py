"""TLS to Redis with a CA of our own: a real server that speaks nothing else, and every certificate that is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from certificates import HERE, Authority, Certificate, program_with_tls
from fenced import set_users
from flowers import flower
from gateways import GatewayProcess, MakeClient, MakeSettings, close
from keys import some_key
from loops import run_and_leave_nothing
from observers import beat, ending
from redis_refusals import Refusal, refused_in_asyncio
from servers import RedisServer, server_directory
from waiting import PATIENCE, eventually

from peerlane import AsyncGateway
from peerlane.config.celery.app import PeerlaneApp
from peerlane.config.settings import BadSettings, read
from peerlane.tasks.admin.acl import users
from peerlane.tasks.errors import OutcomeUnknown, RedisAway, Unavailable
from peerlane.workers.cli.main import main
from peerlane.workers.store import procedures as functions

PASSWORD = "only-for-these-tests"


@pytest.fixture(scope="module")
def program() -> Path:
    return program_with_tls()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    directory = server_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def authority(directory: Path) -> Authority:
    return Authority(directory)


@dataclass(frozen=True)
class TlsServer:
    """A server whose only port speaks TLS; its socket is for looking from the test."""

    port: int
    server: RedisServer

    @property
    def url(self) -> str:
        return self.url_at("127.0.0.1")

    def url_at(self, host: str, scheme: str = "rediss", user: str = "") -> str:
        return f"{scheme}://{f'{user}:{PASSWORD}@' if user else ''}{host}:{self.port}/0"


@contextmanager
def tls_server(
    program: Path, directory: Path, own: Certificate, authority: Authority, *, ask_clients: bool = False
) -> Generator[TlsServer]:
    """Run one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    here = Path(tempfile.mkdtemp(dir=directory))
    options = {
        "bind": "127.0.0.1",
        "tls-port": str(port),
        "tls-cert-file": str(own.certificate),
        "tls-key-file": str(own.key),
        "tls-ca-cert-file": str(authority.certificate),
        "tls-auth-clients": "yes" if ask_clients else "no",
    }
    server = RedisServer(here, program=program, **options)
    server.start()
    try:
        yield TlsServer(port, server)
    finally:
        server.kill()


@pytest.fixture(scope="module")
def sound(program: Path, directory: Path, authority: Authority) -> Iterator[TlsServer]:
    with tls_server(program, directory, authority.issue("sound", *HERE), authority) as sound:
        yield sound


# What works


@pytest.mark.parametrize("host", HERE)
def test_a_peer_is_created_over_tls(
    sound: TlsServer, authority: Authority, client: MakeClient, tmp_path: Path, host: str
) -> None:
    url = sound.url_at(host)
    name, ca = host.replace(".", "-"), authority.certificate
    writer = GatewayProcess(name, url, tmp_path, dataplane="memory", redis_ca=ca)
    writer.start()
    gateway = client(writer, redis_ca=ca)
    key = some_key()
    assert gateway.create_peer(key).outcome == "created"
    assert [peer.public_key for peer in gateway.peers()] == [key]
    assert writer.stop() == 0
    writer.finish()


def test_an_asyncio_client_uses_tls_too(
    sound: TlsServer, authority: Authority, settings: MakeSettings, tmp_path: Path
) -> None:
    writer = GatewayProcess("aio", sound.url, tmp_path, dataplane="memory", redis_ca=authority.certificate)
    writer.start()
    app = PeerlaneApp(settings(redis_url=sound.url, redis_ca=authority.certificate))

    async def create() -> str:
        async with AsyncGateway("aio", app=app) as gateway:
            return (await gateway.create_peer(some_key())).outcome

    assert run_and_leave_nothing(create) == "created"
    close(app)
    writer.finish()


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.4, 1.05])
@pytest.mark.parametrize("known", [True, False], ids=["after-a-call", "at-the-first-call"])
def test_an_asyncio_client_that_gives_up_on_a_frozen_server_leaves_no_connection(
    sound: TlsServer, authority: Authority, settings: MakeSettings, moment: float, *, known: bool
) -> None:
    app = PeerlaneApp(settings(redis_url=sound.url, redis_ca=authority.certificate))

    async def give_up() -> list[Any]:
        async with AsyncGateway("nowhere", app=app) as gateway:
            if known:
                with pytest.raises(Unavailable):
                    await gateway.create_peer(some_key())
            sound.server.pause()
            asked = [asyncio.create_task(gateway.create_peer(some_key(), timeout=0.5)) for _ in range(4)]
            await asyncio.sleep(moment)
            for task in asked[::2]:
                task.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    try:
        ends = run_and_leave_nothing(give_up)
    finally:
        sound.server.resume()
        close(app)
    assert {type(end) for end in ends} <= {asyncio.CancelledError, OutcomeUnknown}


def test_with_users_functions_client_certificates_beat_and_flower_everything_is_as_it_was(
    program: Path, directory: Path, authority: Authority, client: MakeClient, tmp_path: Path
) -> None:
    own = authority.issue("strict", *HERE)
    certificate_and_key = authority.client_file(tmp_path / "client.pem")
    tls: dict[str, Any] = {"redis_ca": authority.certificate, "redis_client_cert": certificate_and_key}
    with tls_server(program, directory, own, authority, ask_clients=True) as strict:
        functions.load(strict.server.redis)
        set_users(strict.server, users(["iad"], ["writer", "api", "beat", "flower"]), PASSWORD)
        url = {name: strict.url_at("127.0.0.1", user=name) for name in ("writer-iad", "api-iad", "beat", "flower")}
        writer = GatewayProcess("iad", url["writer-iad"], tmp_path, dataplane="memory", **tls)
        writer.start()
        variables = {f"PEERLANE_{name.upper()}": str(path) for name, path in tls.items()}
        beating = beat(url["beat"], tmp_path / "beat.log", sweep_every="1", **tls)
        with ending(beating), flower(url["flower"], tmp_path, **variables) as page:
            assert client("iad", redis_url=url["api-iad"], **tls).create_peer(some_key()).outcome == "created"
            eventually(lambda: "iad@" in page.text("/workers"), "the gateway among Flower's workers")
            assert page.status("/broker", user=page.USER) == 200
            eventually(lambda: strict.server.redis.llen("gateway.iad.observer"), "beat to ask the observer")
        noted = [entry["object"] for entry in strict.server.redis.acl_log()]
        assert set(noted) <= {"config|get"}
        writer.finish()


# What is refused


BAD = (
    Refusal("wrong-host", "certificate is refused: IP address mismatch, certificate is not valid for '127.0.0.1'"),
    Refusal("expired", "certificate is refused: certificate has expired"),
    Refusal("foreign-ca", "certificate is refused: "),
    Refusal("plain-to-tls", "if it expects TLS, the URL begins with rediss://"),
    Refusal("tls-to-plain", "does it speak TLS on this port?"),
    Refusal("no-client-certificate", "PEERLANE_REDIS_CLIENT_CERT"),
)


@pytest.fixture(params=BAD, ids=lambda bad: bad.name)
def bad(
    request: pytest.FixtureRequest, program: Path, directory: Path, authority: Authority
) -> Iterator[tuple[Refusal, dict[str, Any]]]:
    """One of them, with the settings of who connects."""
    bad: Refusal = request.param
    trust = {"redis_ca": authority.certificate}
    match bad.name:
        case "wrong-host":
            own, by = authority.issue("elsewhere", "redis.example"), authority
        case "expired":
            own, by = authority.issue("expired", *HERE, valid_for=timedelta(days=-1)), authority
        case "foreign-ca":
            by = Authority(directory, "foreign")
            own = by.issue("foreign-server", *HERE)
        case _:
            own, by = authority.issue("right", *HERE), authority
    if bad.name == "tls-to-plain":
        with plain_server(program, directory) as port:
            yield bad, {"redis_url": f"rediss://127.0.0.1:{port}/0", **trust}
        return
    with tls_server(program, directory, own, by, ask_clients=bad.name == "no-client-certificate") as server:
        if bad.name == "plain-to-tls":
            yield bad, {"redis_url": server.url_at("127.0.0.1", "redis")}
        else:
            yield bad, {"redis_url": server.url, **trust}


@contextmanager
def plain_server(program: Path, directory: Path) -> Generator[int]:
    """A server without TLS, on a port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = RedisServer(Path(tempfile.mkdtemp(dir=directory)), program=program, port=str(port), bind="127.0.0.1")
    server.start()
    yield port
    server.kill()


def test_a_client_is_told_why_it_does_not_connect(bad: tuple[Refusal, dict[str, Any]], client: MakeClient) -> None:
    with pytest.raises(OutcomeUnknown) as caught:
        # A server that says nothing is asked again while there is time.
        client("iad", **bad[1]).create_peer(some_key(), timeout=3.0)
    assert bad[0].says in str(caught.value)
    assert "nothing was sent" in str(caught.value)


def test_an_asyncio_client_is_told_too(bad: tuple[Refusal, dict[str, Any]], settings: MakeSettings) -> None:
    refused_in_asyncio(settings, bad[1])


def test_a_writer_says_why_and_ends_without_a_traceback(bad: tuple[Refusal, dict[str, Any]], tmp_path: Path) -> None:
    url = str(bad[1]["redis_url"])
    rest = {name: value for name, value in bad[1].items() if name != "redis_url"}
    writer = GatewayProcess("iad", url, tmp_path, dataplane="memory", **rest)
    writer.start(wait=False)
    assert writer.await_end() == RedisAway.exit_code
    assert bad[0].says in writer.log
    writer.finish()


def test_the_command_line_says_why(
    bad: tuple[Refusal, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in bad[1].items():
        monkeypatch.setenv(f"PEERLANE_{name.upper()}", str(value))
    assert main.main(["gateway", "list", "--json"], standalone_mode=False) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "outcome_unknown"
    assert bad[0].says in error["message"]


# Settings


def test_without_a_ca_of_ours_the_systems_decide(sound: TlsServer, client: MakeClient) -> None:
    with pytest.raises(OutcomeUnknown, match=r"certificate is refused: (unable to get local issuer|self-signed)"):
        client("iad", redis_url=sound.url).create_peer(some_key(), timeout=PATIENCE)


@pytest.mark.parametrize("query", ["ssl_cert_reqs=none", "ssl_check_hostname=false", "ssl_ca_certs=/tmp/any.pem"])
def test_a_url_cannot_weaken_tls(query: str) -> None:
    with pytest.raises(BadSettings, match=r"PEERLANE_REDIS_URL: TLS is set by PEERLANE_REDIS_CA"):
        read(redis_url=f"rediss://db.example:6379/0?{query}")


@pytest.mark.parametrize("url", ["redis://db.example:6379/0", "unix:///run/redis.sock"])
def test_a_ca_for_a_connection_without_tls_is_a_mistake(url: str, authority: Authority) -> None:
    with pytest.raises(BadSettings, match="PEERLANE_REDIS_CA: it is for TLS, and PEERLANE_REDIS_URL does not begin"):
        read(redis_url=url, redis_ca=authority.certificate)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(BadSettings, match=r"PEERLANE_REDIS_CA: /nowhere/ca.pem is not a file"):
        read(redis_url="rediss://db.example:6379/0", redis_ca="/nowhere/ca.pem")


def test_a_clients_key_needs_its_certificate(authority: Authority) -> None:
    with pytest.raises(BadSettings, match="PEERLANE_REDIS_CLIENT_KEY: a key without PEERLANE_REDIS_CLIENT_CERT"):
        read(redis_url="rediss://db.example:6379/0", redis_client_key=authority.issue("alone").key)
