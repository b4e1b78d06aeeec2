"""Every way in which a start can fail: one document with --json, and the same sentence from `celery -A`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import preloaded
import pytest
from fenced import GATEWAYS, fenced, printed
from gateways import ROOT, clean_environment
from servers import RedisServer, serving
from waiting import eventually

from peerlane.config.settings import read
from peerlane.tasks.errors import NoDataPlane
from peerlane.workers.dataplane.factory import open_plane

NOBODY = "no-such-user"


@dataclass
class Case:
    """What a gateway is started with, and what is to be said of it."""

    status: int
    code: str
    says: str
    retryable: bool = False
    variables: dict[str, str] = field(default_factory=dict[str, str])
    #: Goes before the command.
    prefix: Sequence[str] = ()


@pytest.fixture
def stack() -> Generator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def away(_stack: ExitStack, tmp_path: Path) -> Case:
    url = f"unix://{tmp_path}/nothing.sock"
    return Case(
        3, "redis_away", "Redis cannot be used: there is no such socket", retryable=True, variables={"REDIS_URL": url}
    )


def nobody_listens(_stack: ExitStack, _tmp_path: Path) -> Case:
    url = f"redis://127.0.0.1:{free_port()}/0"
    return Case(
        3, "redis_away", "Redis cannot be used: nobody listens there", retryable=True, variables={"REDIS_URL": url}
    )


def wrong_password(stack: ExitStack, _tmp_path: Path) -> Case:
    server = stack.enter_context(serving(requirepass="correct-horse"))
    url = f"unix://:battery-staple@{server.socket}"
    return Case(3, "redis_refuses", "it knows no such user, or another password", variables={"REDIS_URL": url})


def a_cluster(stack: ExitStack, _tmp_path: Path) -> Case:
    port = free_port()
    server = stack.enter_context(serving(**{"cluster-enabled": "yes", "cluster-port": port}))
    return Case(1, "storage_error", "Redis runs as a cluster", variables={"REDIS_URL": server.url})


def a_replica(stack: ExitStack, _tmp_path: Path) -> Case:
    server = stack.enter_context(serving(replicaof=f"127.0.0.1 {free_port()}"))
    return Case(3, "redis_away", "Redis is a replica", retryable=True, variables={"REDIS_URL": server.url})


def one_that_evicts(stack: ExitStack, _tmp_path: Path) -> Case:
    server = stack.enter_context(serving(maxmemory="100mb", **{"maxmemory-policy": "allkeys-lru"}))
    return Case(1, "storage_error", "Redis may evict peers", variables={"REDIS_URL": server.url})


def one_that_forgets(stack: ExitStack, _tmp_path: Path) -> Case:
    server = stack.enter_context(serving(appendonly="no"))
    variables = {"REDIS_URL": server.url, "REQUIRE_DURABLE": "true"}
    return Case(1, "storage_error", "PEERLANE_REQUIRE_DURABLE forbids that", variables=variables)


def a_bad_setting(_stack: ExitStack, _tmp_path: Path) -> Case:
    return Case(2, "settings", "PEERLANE_ENDPOINT: an endpoint is host:port", variables={"ENDPOINT": "vpn.example.com"})


def a_misspelled_setting(_stack: ExitStack, _tmp_path: Path) -> Case:
    return Case(2, "settings", "did you mean PEERLANE_POOLS?", variables={"POOL": "10.0.0.0/8"})


def an_open_key_file(_stack: ExitStack, tmp_path: Path) -> Case:
    key = tmp_path / "open.key"
    key.write_text("x")
    key.chmod(0o644)
    return Case(2, "settings", "others may use it (mode 0644)", variables={"PRIVATE_KEY_FILE": str(key)})


def a_key_file_that_holds_none(_stack: ExitStack, tmp_path: Path) -> Case:
    key = tmp_path / "bad.key"
    key.write_bytes(b"\xffSECRETSECRET")
    key.chmod(0o600)
    return Case(2, "settings", "does not hold a WireGuard key", variables={"PRIVATE_KEY_FILE": str(key)})


def no_sealing_key(_stack: ExitStack, tmp_path: Path) -> Case:
    return Case(2, "settings", "No such file", variables={"PSK_KEY_FILE": str(tmp_path / "none")})


def nobodys_user(_stack: ExitStack, _tmp_path: Path) -> Case:
    return Case(2, "settings", f"there is no user {NOBODY} on this host", variables={"USER": NOBODY})


def no_right_to_devices(_stack: ExitStack, _tmp_path: Path) -> Case:
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"] if os.geteuid() == 0 else []
    return Case(1, "no_data_plane", "it lacks CAP_NET_ADMIN", variables={"DATAPLANE": "kernel"}, prefix=without)


def no_wireguard(_stack: ExitStack, _tmp_path: Path) -> Case:
    try:
        open_plane(read()).require()
    except NoDataPlane as error:
        return Case(1, "no_data_plane", error.message, variables={"DATAPLANE": "kernel"})
    pytest.skip("this host has WireGuard")


CASES = [
    *(away, nobody_listens, wrong_password, a_cluster, a_replica, one_that_evicts, one_that_forgets),
    *(a_bad_setting, a_misspelled_setting, an_open_key_file, a_key_file_that_holds_none, no_sealing_key),
    *(nobodys_user, no_right_to_devices, no_wireguard),
]


@dataclass(frozen=True)
class Started:
    """A process, and the files that it writes to."""

    process: preloaded.Running
    output: Path
    errors: Path

    def end(self) -> tuple[int, str, str]:
        """Its status, and what it said; ended by force where it does not end by itself."""
        try:
            status = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"it goes on: {self.output.read_text()}{self.errors.read_text()}")
        return status, self.output.read_text(), self.errors.read_text()


def started(
    words: Sequence[str], redis: str, variables: dict[str, str], tmp_path: Path, prefix: Sequence[str] = ()
) -> Started:
    """A process with these settings."""
    settings = {"REDIS_URL": redis, "DATAPLANE": "memory", "PRIVATE_KEY_FILE": str(tmp_path / "key"), **variables}
    environment = clean_environment() | {f"PEERLANE_{name}": value for name, value in settings.items()}
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    output, errors = directory / "output", directory / "errors"
    with output.open("wb") as out, errors.open("wb") as err:
        command = [*prefix, sys.executable, "-m", *words]
        return Started(preloaded.start(command, ROOT, environment, out, errors=err), output, errors)


def only_document(out: str) -> dict[str, Any]:
    """What stands on standard output, and nothing beside it."""
    (line,) = out.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize(
    "only",
    [
        pytest.param((), id="both", marks=pytest.mark.slow("starts three processes for each case, the other way one")),
        pytest.param(("--only", "writer"), id="writer"),
    ],
)
def test_a_start_that_fails_is_one_document(
    case: Any, only: Sequence[str], stack: ExitStack, redis_server: RedisServer, tmp_path: Path
) -> None:
    wanted: Case = case(stack, tmp_path)
    words = ("peerlane.workers.cli", "gateway", "run", "iad", "--json", *only)
    status, out, err = started(words, redis_server.url, wanted.variables, tmp_path, wanted.prefix).end()
    assert status == wanted.status, err
    error = only_document(out)["error"]
    assert (error["code"], error["retryable"]) == (wanted.code, wanted.retryable)
    assert wanted.says in error["message"]
    for text in (out, err):
        assert "Traceback" not in text
        assert "SECRET" not in text
        assert "battery-staple" not in text


@pytest.mark.slow("starts a process for each case once more, in another way")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_and_the_same_sentence_from_celery(
    case: Any, stack: ExitStack, redis_server: RedisServer, tmp_path: Path
) -> None:
    wanted: Case = case(stack, tmp_path)
    words = ("celery", "-A", "peerlane.workers.gateway", "worker", "-l", "info")
    variables = {"GATEWAY": "iad", **wanted.variables}
    status, out, err = started(words, redis_server.url, variables, tmp_path, wanted.prefix).end()
    assert status == wanted.status, err
    assert wanted.says in err
    assert "Traceback" not in out + err
    assert "battery-staple" not in out + err


@pytest.mark.parametrize("part", ["peerlane.workers.gateway", "peerlane.workers.observer"])
def test_celery_without_a_gateways_name_says_which_setting_is_missing(
    part: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    status, out, err = started(("celery", "-A", part, "worker"), redis_server.url, {}, tmp_path).end()
    assert (status, "PEERLANE_GATEWAY is not set" in err) == (2, True)
    assert "Traceback" not in out + err


@pytest.mark.parametrize("words", [("beat",), ("report",)])
def test_celery_on_any_host_says_what_is_wrong_with_the_settings(words: Sequence[str], tmp_path: Path) -> None:
    command = ("celery", "-A", "peerlane.config.celery.app", *words)
    status, out, err = started(command, "redis://h/zero", {}, tmp_path).end()
    assert (status, "PEERLANE_REDIS_URL: expected redis://HOST:PORT/DB" in err) == (2, True)
    assert "Traceback" not in out + err


@pytest.fixture(scope="module")
def first(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A writer and an observer that are there already, and end well once they are asked to; where their key is."""
    words, directory = ("peerlane.workers.cli", "gateway", "run", "second", "--json"), tmp_path_factory.mktemp("first")
    first = started(words, redis_server.url, {}, directory)
    try:
        eventually(lambda: _is_there("second", redis_server), "the first one")
        yield directory
    finally:
        first.process.send_signal(signal.SIGTERM)
        status, out, err = first.end()
    assert (status, only_document(out)) == (0, {"gateway": "second", "outcome": "ended"}), err


@pytest.mark.parametrize(
    ("only", "says"),
    [
        (("--only", "writer"), "has a writer"),
        (("--only", "observer"), "has an observer"),
        ((), "has a"),
    ],
    ids=["writer", "observer", "both"],
)
def test_a_second_one_names_the_first(only: Sequence[str], says: str, redis_server: RedisServer, first: Path) -> None:
    words = ("peerlane.workers.cli", "gateway", "run", "second", "--json", *only)
    status, out, _ = started(words, redis_server.url, {}, first).end()
    error = only_document(out)["error"]
    assert (status, error["code"], error["retryable"]) == (1, "lane_held", True)
    assert says in error["message"]
    assert "process" in error["message"]


def _is_there(name: str, server: RedisServer) -> bool:
    beats = (server.redis.hget(f"peerlane:{{{name}}}:{part}", "heartbeat") for part in ("gateway", "observer"))
    return all(beat not in (None, "0") for beat in beats)


def test_a_user_without_rights_and_missing_functions_are_told_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with fenced(printed(capsys, *GATEWAYS, "--passwords"), load=False) as server:
        for user, says in (("writer-iad", "`peerlane functions --load`"), ("beat", "see `peerlane acl`")):
            words = ("peerlane.workers.cli", "gateway", "run", "iad", "--json")
            status, out, err = started(words, server.url_of(user), {}, tmp_path).end()
            error = only_document(out)["error"]
            assert (status, error["code"], error["retryable"]) == (3, "redis_refuses", False), err
            assert says in error["message"]


@pytest.mark.parametrize("only", ["writer", "observer"])
def test_one_of_the_two_alone_ends_with_one_document_too(only: str, redis_server: RedisServer, tmp_path: Path) -> None:
    words = ("peerlane.workers.cli", "gateway", "run", f"alone-{only}", "--json", "--only", only)
    process = started(words, redis_server.url, {}, tmp_path)
    part = "gateway" if only == "writer" else "observer"
    key = f"peerlane:{{alone-{only}}}:{part}"
    eventually(lambda: redis_server.redis.hget(key, "heartbeat"), "its sign of life")
    process.process.send_signal(signal.SIGTERM)
    status, out, err = process.end()
    assert (status, only_document(out)["outcome"]) == (0, "ended"), err


def test_a_writer_that_is_replaced_ends_with_a_document(redis_server: RedisServer, tmp_path: Path) -> None:
    words = ("peerlane.workers.cli", "gateway", "run", "replaced", "--json", "--only", "writer")
    process = started(words, redis_server.url, {}, tmp_path)
    eventually(lambda: redis_server.redis.hget("peerlane:{replaced}:gateway", "phase") == "serving", "a writer")
    redis_server.redis.incr("peerlane:{replaced}:epoch")
    status, out, err = process.end()
    assert (status, only_document(out)["error"]["code"]) == (1, "fenced"), err


def test_without_json_it_waits_for_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    server = own_redis
    server.stop()
    process = started(("peerlane.workers.cli", "gateway", "run", "patient"), server.url, {}, tmp_path)
    try:
        eventually(lambda: "Redis is away (there is no such socket)" in process.errors.read_text(), "it saying so")
        server.start()
        eventually(lambda: _is_there("patient", server), "the gateway, once Redis is there")
    finally:
        process.process.send_signal(signal.SIGTERM)
        status, out, err = process.end()
    assert status == 0, err
    assert "{" not in out
    assert "Traceback" not in err
