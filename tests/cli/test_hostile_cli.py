"""Every command, used as nobody should: no traceback, a status that is documented, one document where one was asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import preloaded
import pytest
from commands import Shell, peerlane
from gateways import ROOT, GatewayProcess, MakeClient, MakeGateway, clean_environment
from keys import some_key
from servers import RedisServer

from peerlane import OutcomeUnknown
from peerlane.config import names
from peerlane.config.settings import BadSettings, read
from peerlane.tasks.cli.output import Output
from peerlane.workers.cli.main import main

NOT_UTF8 = os.fsdecode(b"\xff\xfe")
DOCUMENTED = (0, 1, 2, 3)


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, by its words."""
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            subcommand = command.get_command(click.Context(command), name)
            assert subcommand is not None
            yield from commands(subcommand, (*path, name))


EVERY = list(commands())
named = pytest.mark.parametrize("path", EVERY, ids=lambda path: " ".join(path) or "peerlane")


def run(
    words: Sequence[str], *, environment: Mapping[str, str] | None = None, streams: str | None = None, drop: str = ""
) -> tuple[int, bytes, bytes]:
    """A command as a process; with ``streams``, what is done to its streams, as in ``"$@" | head``."""
    command = [sys.executable, "-m", "peerlane.workers.cli", *words]
    settings = {"PEERLANE_REDIS_URL": "unix:///nonexistent/redis.sock", **(environment or {})}
    variables = {name: value for name, value in (clean_environment() | settings).items() if name not in drop.split()}
    if streams is None:
        done = preloaded.run(command, ROOT, variables)
    else:
        command = ["bash", "-c", streams, "sh", *command]
        done = subprocess.run(command, env=variables, input=b"", capture_output=True, check=False, timeout=90, cwd=ROOT)
    for text in (done.stdout, done.stderr):
        assert b"Traceback" not in text
        assert b"Exception ignored" not in text
        assert b"nobody foresaw" not in text, text
    return done.returncode, done.stdout, done.stderr


@named
def test_help_is_there_whatever_the_terminal_is(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("1", "40", "x"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("NO_COLOR", "1")
        result = peerlane(*path, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
        assert "\x1b" not in result.stdout


@named
def test_what_is_missing_or_wrong_is_one_document(path: tuple[str, ...]) -> None:
    tries = [
        ["--nope"],
        ["--", "\n"],
        ["iad"] * 9,
        ["x" * 300] * 9,
        ["", ""],
        ["a\nb", "a\x1b[31mb", ""],
        [NOT_UTF8] * 9,
    ]
    if path == ("top",):
        tries = tries[:1]  # it watches until Ctrl-C, with any names
    for words in [*tries, *([[]] if path in {(), ("gateway",), ("peer",)} else [])]:
        result = peerlane(*path, "--json", *words)
        assert result.exit_code in DOCUMENTED
        document = json.loads(result.stdout)
        assert '"unforeseen"' not in result.stdout
        # A list of peers has an answer for each.
        if result.exit_code and (path != ("peer", "delete") or "error" in document):
            assert isinstance(document["error"]["message"], str)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("words", [("gateway", "import", "--help"), ("peer", "delete", "iad", "é…", "--json")])
def test_a_terminal_that_cannot_show_a_character_gets_its_number(words: tuple[str, ...], encoding: str) -> None:
    status, out, _ = run(words, environment={"PYTHONIOENCODING": encoding})
    assert status in DOCUMENTED
    out.decode("utf-8" if encoding == "ascii" else encoding)  # click takes a terminal in ASCII for one set up wrongly
    if "--json" in words:
        assert json.loads(out)["error"]


def test_without_a_home_a_user_or_a_path_it_works() -> None:
    status, _, err = run(("gateway", "list"), drop="HOME USER LOGNAME PATH TERM LANG")
    assert status == 3, err


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ('"$@" | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}', (0, 1)),
        ('"$@" | true; exit ${PIPESTATUS[0]}', (0, 1)),
        ('"$@" > /dev/full', (1,)),
        ('"$@" >&-', (0,)),
        ('"$@" 2>&-', (0,)),
        ('"$@" <&- >&- 2>&-', (0,)),
    ],
    ids=["head", "true", "full", "no-stdout", "no-stderr", "none"],
)
@pytest.mark.parametrize("words", [("--help",), ("acl", "iad"), ("functions", "--json")], ids=" ".join)
def test_an_output_that_is_closed_or_full_is_no_accident(
    words: tuple[str, ...], shell: str, status: tuple[int, ...]
) -> None:
    ended, _, err = run(words, streams=shell)
    assert ended in status
    if status == (1,):
        assert err == b"error: standard output cannot be written: No space left on device\n"


def test_a_closed_stream_is_not_taken_for_a_connection(
    shared_gateway: GatewayProcess, redis_server: RedisServer
) -> None:
    iad = shared_gateway
    status, _, _ = run(
        ("peer", "create", iad.name), environment={"PEERLANE_REDIS_URL": redis_server.url}, streams='"$@" <&- >&- 2>&-'
    )
    assert status == 0
    assert redis_server.redis.hlen(names.peers_key(iad.name)) == 1


FILES = {
    "not text": b"\xff\xfe\x00garbage\n",
    "empty": b"",
    "one line": b"x" * 100_000,
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", [*FILES, "a directory", "a loop", "missing", "too long", "not utf-8", "/dev/full"])
@pytest.mark.parametrize(
    "words",
    [
        ("gateway", "import", "iad"),
        ("gateway", "restore", "iad"),
        ("peer", "create", "iad", "--from"),
    ],
    ids=" ".join,
)
def test_a_file_that_is_none_of_ours_is_refused(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if name in FILES:
        file.write_bytes(FILES[name])
    elif name == "a directory":
        file.mkdir()
    elif name == "a loop":
        file.symlink_to(file)
    file = {"too long": Path("a" * 300), "not utf-8": Path(NOT_UTF8), "/dev/full": Path("/dev/full")}.get(name, file)
    result = peerlane(*words, file, "--json")
    assert result.exit_code in (1, 2, 3)
    error = json.loads(result.stdout)["error"]
    assert error["code"] != "unforeseen", error


@pytest.mark.parametrize(
    "words",
    [
        ("gateway", "backup", "iad", "{}/file"),
        ("gateway", "export", "iad", "--output", "{}/file"),
        ("peer", "create", "iad", "--conf", "{}/file"),
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_made_is_refused(
    words: tuple[str, ...], shared_gateway: GatewayProcess, tmp_path: Path
) -> None:
    iad = shared_gateway
    (tmp_path / "plain").write_text("a file, no directory")
    for directory in (tmp_path / "nowhere", tmp_path / "plain", Path("/proc")):
        command = [iad.name if word == "iad" else word.format(directory) for word in words]
        error = Shell(iad).ask(*command, status=1)["error"]
        assert error["code"] in {"not_written", "file_exists"}, error


@pytest.mark.parametrize("timeout", ["nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "x", ""])
@pytest.mark.parametrize(
    "words",
    [
        ("peer", "delete", "iad", some_key()),
        ("gateway", "sweep", "iad"),
        ("gateway", "import", "iad", "--live"),
        ("gateway", "poison", "iad", "--replay", "x"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_timeout_that_is_none_is_a_usage_error(words: tuple[str, ...], timeout: str) -> None:
    result = peerlane(*words, "--timeout", timeout, "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "usage")


@pytest.mark.parametrize(
    "words",
    [
        ("--redis", NOT_UTF8, "gateway", "list"),
        ("peer", "create", "iad", "--request-id", NOT_UTF8),
        ("peer", "create", "iad", "--label", f"name={NOT_UTF8}"),
        ("peer", "delete", "iad", NOT_UTF8),
        ("gateway", "poison", "iad", "--show", NOT_UTF8),
    ],
)
def test_an_argument_that_is_no_text_is_a_usage_error(words: tuple[str, ...]) -> None:
    result = peerlane(*words, "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "usage")
    assert "it is not UTF-8" in result.stdout


@pytest.mark.parametrize("name", ["POOLS", "REDIS_CA", "ENDPOINT", "LABELS", "GATEWAY", "USER"])
def test_a_variable_that_is_no_text_is_a_settings_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PEERLANE_{name}", NOT_UTF8)
    if name == "REDIS_CA":
        monkeypatch.setenv("PEERLANE_REDIS_URL", "rediss://h/0")
    with pytest.raises(BadSettings):
        read()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutcomeUnknown("Redis is away")], ids=["interrupted", "failed"])
def test_a_list_that_is_not_written_to_its_end_is_one_document(error: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def items() -> Iterator[dict[str, Any]]:
        yield {"number": 1}
        raise error

    output = Output(json=True)
    with pytest.raises((KeyboardInterrupt, OutcomeUnknown)) as caught:
        output.listing({"gateway": "iad"}, "peers", items())
    output.error({"message": type(caught.value).__name__})
    written = json.loads(capsys.readouterr().out)
    assert written == {"gateway": "iad", "peers": [{"number": 1}], "error": {"message": type(caught.value).__name__}}


@pytest.mark.parametrize(
    "port", ["65536", "9" * 5000, "x", "", "-1"], ids=["one-too-many", "huge", "word", "none", "minus"]
)
def test_a_port_that_is_none_is_a_usage_error(port: str) -> None:
    result = peerlane("exporter", "--listen", f"127.0.0.1:{port}", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "usage")


@pytest.mark.parametrize("words", [("top", "--once", "--interval", "0.2"), ("gateway", "list")], ids=" ".join)
def test_a_document_is_sound_where_the_output_takes_only_ascii(
    words: tuple[str, ...], shared_gateway: GatewayProcess, redis_server: RedisServer
) -> None:
    alarms = names.alarms_key(shared_gateway.name)
    redis_server.redis.hset(alarms, "clock", '{"message": "caf\\u00e9", "since": 1, "detail": {}}')
    environment = {"PEERLANE_REDIS_URL": redis_server.url, "PYTHONIOENCODING": "ascii"}
    status, out, _ = run((*words, "--json"), environment=environment)
    redis_server.redis.delete(alarms)
    assert status == 0
    assert "caf\u00e9" in json.dumps(json.loads(out), ensure_ascii=False)


def test_what_others_wrote_moves_no_cursor(gateway: MakeGateway, client: MakeClient, redis_server: RedisServer) -> None:
    iad: GatewayProcess = gateway()
    client(iad).create_peer(some_key())
    redis_server.redis.hset(names.gateway_key(iad.name), "endpoint", "\x1b]0;title\x07\x1b[31mred\x9b2J\u202e:51820")
    redis_server.redis.hset(names.gateway_key(iad.name), "region", "a\rb")
    for words in (("gateway", "list"), ("gateway", "show", iad.name), ("peer", "list", iad.name), ("doctor",)):
        result = Shell(iad).run(*words)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", result.stdout), result.stdout


def test_every_command_is_tried_here() -> None:
    assert {("gateway", "run"), ("peer", "create"), ("doctor",), ("acl",), ("demo",)} <= set(EVERY)
