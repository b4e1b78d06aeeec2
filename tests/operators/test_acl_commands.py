"""Every command of the command line by every user that ``peerlane acl`` prints: done, or refused by a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from commands import peerlane
from fenced import FencedServer, fenced
from gateways import GatewayProcess
from keys import key_number
from observers import Observer, ending

from peerlane.config import names
from peerlane.tasks.admin.acl import ROLES, Role, users

KEY, CONF = key_number(7_001), key_number(7_002)
USERS: Mapping[Role, str] = {
    role: f"{role}-iad" if role in ("writer", "observer", "api", "operator", "restorer") else role for role in ROLES
}

#: The command → the roles that may use it. DIRECTORY stands for a directory of the test.
COMMANDS: Mapping[str, tuple[Role, ...]] = {
    "gateway list": ("api", "operator", "exporter", "flower", "admin"),
    "gateway show iad": ("api", "operator", "exporter", "flower", "admin"),
    "top --once --interval 0.2": ("api", "operator", "exporter", "flower", "admin"),
    f"peer create iad --public-key {KEY} --timeout 20": ("api", "operator", "admin"),
    # A gateway's writer keeps its peers, and its observer reads them: their users can read them too.
    f"peer show iad {KEY}": ("writer", "observer", "api", "operator", "admin"),
    "peer list iad": ("writer", "observer", "api", "operator", "admin"),
    "gateway export iad": ("writer", "observer", "api", "operator", "admin"),
    f"peer delete iad {KEY} --timeout 20": ("api", "operator", "admin"),
    "gateway drain iad": ("operator", "admin"),
    "gateway resume iad": ("operator", "admin"),
    "gateway sweep iad --timeout 20": ("operator", "admin"),
    "gateway reconcile iad --timeout 20": ("operator", "admin"),
    "gateway import iad DIRECTORY/iad.conf": ("operator", "admin"),
    "gateway poison iad": ("operator", "admin"),
    "gateway backup iad DIRECTORY/ROLE.backup": ("operator", "admin"),
    "functions --load": ("admin",),
}
#: By the time of these the gateway has stopped.
OFFLINE: Mapping[str, tuple[Role, ...]] = {
    "gateway restore iad DIRECTORY/admin.backup --force": ("restorer", "admin"),
    "gateway remove iad --force": ("operator", "admin"),
}
_PASSWORD = "only-for-these-tests"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("roles")
    (made / "iad.conf").write_text(f"[Peer]\nPublicKey = {CONF}\nAllowedIPs = 10.8.0.77/32\n")
    return made


@pytest.fixture(scope="module")
def server() -> Iterator[FencedServer]:
    lines = [user.line(password=_PASSWORD) for user in users(["iad"])]
    with fenced("\n".join([*lines, "user default off"]) + "\n") as server:
        yield server


@pytest.fixture(scope="module")
def writer(server: FencedServer, directory: Path) -> Iterator[GatewayProcess]:
    """The gateway, with its observer, both with their printed rights."""
    site = GatewayProcess("iad", server.url_of("writer-iad"), directory, dataplane="memory")
    site.start()
    try:
        with ending(observer := Observer(site, wait=False, redis_url=server.url_of("observer-iad"))):
            observer.says("ready.")
            yield site
    finally:
        site.finish()


def run(server: FencedServer, directory: Path, command: str, role: Role) -> tuple[int, str]:
    """The status, and what a program is told."""
    words = command.replace("DIRECTORY", str(directory)).replace("ROLE", role).split(" ")
    result = peerlane(*words, "--json", redis=server.url_of(USERS[role]))
    return result.exit_code, result.output


def assert_allowed_or_refused(server: FencedServer, directory: Path, command: str, roles: tuple[Role, ...]) -> None:
    """Those who may not come first: what they are refused changes nothing."""
    for role in sorted(ROLES, key=lambda role: role in roles):
        status, said = run(server, directory, command, role)
        if role in roles:
            # An observer cannot read a device in its writer's memory, and skips a reconciliation.
            assert status == 0 or json.loads(said)["outcome"] == "skipped", f"{role} may use `{command}`: {said}"
            continue
        assert status in (1, 3), f"{role} may not use `{command}`: {said}"
        error = json.loads(said.splitlines()[-1])["error"]
        assert "this user may not do that" in error["message"], f"{role}, `{command}`: {error}"
        assert error["code"] != "unforeseen"


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_done_or_refused_with_a_sentence(server: FencedServer, directory: Path, command: str) -> None:
    assert_allowed_or_refused(server, directory, command, COMMANDS[command])


@pytest.mark.parametrize("role", ["operator", "api"])
def test_what_a_reader_is_refused_is_not_told_as_an_outage(
    server: FencedServer, writer: GatewayProcess, directory: Path, role: Role
) -> None:
    for command in ("gateway list", "gateway show iad", "peer list iad", "top --once --interval 0.2"):
        status, said = run(server, directory, command, role)
        assert (status, "could not be reached" in said) == (0, False), said
        status, said = run(server, directory, command, "beat")
        assert (status != 0, "could not be reached" in said) == (True, False), said
    for command in ("gateway clear-alarm iad clock", "gateway poison iad", "gateway poison iad --drop-all"):
        status, said = run(server, directory, command, "beat")
        assert (status, json.loads(said)["error"]["code"]) == (1, "storage_error"), said
    for command in ("gateway drain iad", "gateway resume iad"):
        status, said = run(server, directory, command, "api")
        error = json.loads(said)["error"]
        assert (status, error["code"]) == (1, "storage_error"), said
        assert error["message"].endswith("nothing was changed")
    assert writer.status is None


@pytest.mark.usefixtures("writer")
def test_a_doctor_that_may_not_ask_redis_everything_does_not_call_it_unusable(
    server: FencedServer, directory: Path
) -> None:
    status, said = run(server, directory, "doctor", "api")
    verdicts = {check["what"]: (check["verdict"], check["sentence"]) for check in json.loads(said)["checks"]}
    assert status == 0, said
    assert verdicts["Redis"][0] == "ok"
    assert verdicts["Redis"][1].startswith("answers in ")
    assert verdicts["durability"][0] == "warning"
    assert "may not call INFO" in verdicts["durability"][1]
    assert "gateway iad" in verdicts


def test_a_stopped_gateway_is_restored_and_removed_by_those_who_may(
    server: FencedServer, writer: GatewayProcess, directory: Path
) -> None:
    run(server, directory, "gateway backup iad DIRECTORY/admin.backup", "admin")
    writer.stop()
    for command, roles in OFFLINE.items():
        for role in ROLES:
            server.redis.hset(names.gateway_key("iad"), mapping={"public_key": "k", "heartbeat": "0"})
            server.redis.hset(names.observer_key("iad"), "heartbeat", "0")
            server.redis.sadd(names.GATEWAYS_KEY, "iad")
            status, said = run(server, directory, command, role)
            assert (status == 0) == (role in roles), f"{role}, `{command}`: {said}"
            if role not in roles:
                assert "this user may not do that" in said, f"{role}, `{command}`: {said}"
