"""The command line: what it prints, how it ends, and what it never does."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Shell, document, ended, peerlane, spawned
from conftest import MakeGateway, new_name
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from gateways import ROOT, GatewayProcess
from keys import some_key
from servers import RedisServer
from waiting import Stopwatch, eventually

from peerlane.tasks.cli.output import Output
from peerlane.tasks.cli.parameters import Seconds, parse_duration
from peerlane.tasks.cli.session import Session
from peerlane.tasks.client.gateway import Gateway

PUBLIC = re.compile(r"[A-Za-z0-9+/]{43}=")


@pytest.fixture
def iad(shared_gateway: GatewayProcess) -> GatewayProcess:
    """A gateway that keeps its peers in memory."""
    return shared_gateway


@pytest.fixture
def shell(iad: GatewayProcess) -> Shell:
    """Commands for that gateway's Redis."""
    return Shell(iad)


def count(shell: Shell, iad: GatewayProcess) -> int:
    return len(shell.ask("peer", "list", iad.name)["peers"])


# Help, usage, settings


def test_help_and_all_that_it_imports_do_without_pyroute2() -> None:
    program = (
        "import sys; from peerlane.workers.cli.main import main; "
        "main(['gateway', 'run', '--help'], standalone_mode=False)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", f"{program}; sys.exit('pyroute2' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "--dataplane [kernel|memory]" in ran.stdout


@pytest.mark.parametrize(
    "words",
    [(), ("gateway",), ("peer",), ("peer", "create"), ("gateway", "run"), ("gateway", "export"), ("demo",), ("top",)],
)
def test_every_command_says_how_it_is_used(words: tuple[str, ...]) -> None:
    result = peerlane(*words, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800), ("1w", 604_800), (" 1h ", 3600)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "seconds"), [("0.5", 0.5), ("5", 5.0), ("5s", 5.0), ("2m", 120.0)])
def test_a_timeout_may_have_a_unit_too(text: str, seconds: float) -> None:
    assert Seconds(0, 600, min_open=True).convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "h", "1.5h", "-1h", "1 h", "1H", "1y", "٣h", "1h30m"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


USAGE = [
    (("peer", "create"), "name a GATEWAY"),
    (("peer", "create", "iad", "--ttl", "soon"), "no duration"),
    (("peer", "create", "iad", "--label", "ada"), "no label"),
    (("peer", "create", "iad", "--label", "a=1", "--label", "a=2"), "twice"),
    (("peer", "create", "iad", "--timeout", "0"), "--timeout"),
    (("peer", "create", "iad", "--timeout", "soon"), "no duration"),
    (("peer", "create", "iad", "--timeout", "1h"), "not in the range"),
    (("peer", "create", "iad", "--from", "/nonexistent"), "No such file"),
    (("peer", "create", "iad", "--from", "-", "--qr"), "--from"),
    (("peer", "create", "iad", "--from", "-", "--allowed-ip", "10.8.0.9"), "--allowed-ip is for one peer"),
    (("peer", "create", "iad", "--qr", "--public-key", some_key()), "only you have it"),
    (("peer", "create", "iad", "--from", "-", "--preshared-key-file", "-"), "--preshared-key-file is for one peer"),
    (("peer", "create", "iad", "--preshared-key", "--preshared-key-file", "-"), "give one of them"),
    (("peer", "delete", "iad", "KEY", "--from", "-"), "not both"),
    (("peer", "create", "Iad"), "a gateway's name"),
    (("peer", "delete", "iad"), "Missing argument"),
    (("peer", "create", "iad", "--region", "eu"), "name a GATEWAY, or choose by --region and --where, not both"),
    (("peer", "create", "iad", "--where", "a=1", "--from", "-"), "not both"),
    (("peer", "create", "--region", "eu", "--from", "-", "--request-id", "x"), "--request-id is of one GATEWAY"),
    (("peer", "create", "--from", "-"), "name a GATEWAY"),
    (("peer", "delete", "iad", "--region", "eu", "--from", "-"), "not both"),
    (("peer", "delete", "--region", "eu"), "Missing argument"),
    (("peer", "delete", "--from", "-"), "name a GATEWAY"),
    (("peer", "delete", "Iad", "KEY"), "a gateway's name"),
    (("gateway", "run", "iad", "--dataplane", "magic"), "--dataplane"),
    (("gateway", "frobnicate"), "No such command"),
    (("--frobnicate",), "No such option"),
    (("demo", "--peers", "0"), "--peers"),
]


@pytest.mark.parametrize(("words", "reason"), USAGE)
def test_a_usage_error_is_a_sentence_and_status_2(words: tuple[str, ...], reason: str) -> None:
    result = peerlane(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert reason in result.stderr


@pytest.mark.parametrize(("words", "reason"), USAGE)
def test_with_json_a_usage_error_is_one_document(words: tuple[str, ...], reason: str) -> None:
    result = peerlane(*words, "--json")
    assert result.exit_code == 2
    error = document(result)["error"]
    assert (error["code"], error["retryable"]) == ("usage", False)
    assert reason in error["message"]


def test_a_group_without_a_command_is_a_usage_error_in_json_too() -> None:
    result = peerlane("--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (2, "usage")


@pytest.mark.parametrize("words", [("--json", "gateway", "list"), ("gateway", "--json", "list"), ("gateway", "list")])
def test_a_bad_setting_is_a_usage_error(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERLANE_REDIS_ULR", "redis://localhost")
    result = peerlane(*words)
    assert result.exit_code == 2
    if "--json" in words:
        assert document(result)["error"]["code"] == "settings"
    assert "PEERLANE_REDIS_ULR" in result.output


def test_a_bad_setting_in_the_environment_is_no_traceback_either() -> None:
    status, out, err = ended(spawned("gateway", "list", environment={"PEERLANE_NONSENSE": "1"}))
    assert (status, out) == (2, "")
    assert err == "error: no such setting: PEERLANE_NONSENSE (misspelled?)\n"


def test_what_nobody_foresaw_is_a_sentence_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Gateway) -> None:
        raise ZeroDivisionError("unheard of")

    monkeypatch.setattr(Gateway, "info", broken)
    result = peerlane("peer", "list", "iad", "--json")
    assert result.exit_code == 1
    error = document(result)["error"]
    assert error["code"] == "unforeseen"
    assert "ZeroDivisionError: unheard of" in error["message"]
    assert "Traceback" not in result.output


def test_where_redis_is_not_the_outcome_is_unknown_and_a_fresh_key_is_not_lost() -> None:
    result = peerlane("peer", "create", "iad", "--json")
    assert result.exit_code == 3
    error = document(result)["error"]
    assert (error["code"], error["retryable"], error["gateway"]) == ("outcome_unknown", True, "iad")
    assert PUBLIC.fullmatch(error["private_key"])
    assert error["request_id"].startswith("iad.")


@pytest.mark.parametrize("words", [("gateway", "list"), ("peer", "create", "iad")], ids=" ".join)
def test_where_redis_cannot_be_reached_people_are_told_which_one(words: tuple[str, ...]) -> None:
    url = "redis://ada:hidden-word@127.0.0.1:1/3"
    result = peerlane(*words, redis=url)
    assert result.exit_code == 3
    assert "Redis is redis://ada:(hidden)@127.0.0.1:1/3, as --redis says\n" in result.stderr
    assert "hidden-word" not in result.output
    assert not peerlane(*words, "--json", redis=url).stderr


def test_what_names_redis_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def told() -> str:
        session = Session(Output(json=False))
        session.name_redis()
        assert not capsys.readouterr().err, "it says nothing before the settings were read"
        assert session.settings
        session.name_redis()
        return capsys.readouterr().err

    monkeypatch.delenv("PEERLANE_REDIS_URL", raising=False)
    assert told() == "Redis is redis://127.0.0.1:6379/0, the default; PEERLANE_REDIS_URL or --redis names another\n"
    file = tmp_path / "peerlane.toml"
    file.write_text('redis_url = "redis://:hidden-word@db.example:6379/1"\n')
    monkeypatch.setenv("PEERLANE_SETTINGS", str(file))
    assert told() == "Redis is redis://:(hidden)@db.example:6379/1, as the settings file says\n"
    monkeypatch.setenv("PEERLANE_REDIS_URL", "redis://db.example:6379/2")
    assert told() == "Redis is redis://db.example:6379/2, as PEERLANE_REDIS_URL says\n"


def test_where_the_outcome_is_unknown_the_advice_repeats_the_whole_wish(tmp_path: Path) -> None:
    secret, key = tmp_path / "psk", some_key()
    secret.write_text(psk := some_key())
    options = ["--ttl", "3600", "--keepalive", "25", "--label", "user=ada lovelace", "--allowed-ip", "10.8.7.0/28"]
    words = ["peer", "create", "iad", "--public-key", key, *options, "--preshared-key-file", str(secret)]
    result = peerlane(*words)
    assert result.exit_code == 3
    advice = shlex.split(
        next(line for line in result.stderr.splitlines() if "ask again: " in line).split("ask again: ")[1]
    )
    assert advice[:4] == ["peerlane", "peer", "create", "iad"]
    said = dict(zip(advice[4::2], advice[5::2], strict=True))
    assert said.pop("--request-id").startswith("iad.")
    assert said == {
        **dict(zip(options[::2], options[1::2], strict=True)),
        "--public-key": key,
        "--preshared-key-file": "FILE",
    }
    assert psk not in result.output + " ".join(advice), "a key from a file is its caller's to keep"
    deleted = peerlane("peer", "delete", "iad", key)
    assert f"ask again: peerlane peer delete iad {key}" in deleted.stderr


def test_an_existing_preshared_key_is_read_from_a_file_or_from_standard_input(
    iad: GatewayProcess, shell: Shell, tmp_path: Path
) -> None:
    secret, conf = tmp_path / "psk", tmp_path / "client.conf"
    secret.write_text(f"{(psk := some_key())}\n")
    made = shell.ask("peer", "create", iad.name, "--preshared-key-file", secret, "--conf", conf)
    assert made["has_preshared_key"]
    assert psk in conf.read_text()
    again = shell.run(
        *("peer", "create", iad.name, "--public-key", made["public_key"], "--preshared-key-file", "-"), stdin=psk
    )
    assert again.exit_code == 0, again.output
    assert psk not in again.output
    other = ("peer", "create", iad.name, "--public-key", made["public_key"], "--preshared-key-file", "-")
    assert shell.ask(*other, stdin=some_key(), status=1)["error"]["code"] == "conflict"
    malformed = shell.run("peer", "create", iad.name, "--preshared-key-file", "-", stdin="no key at all")
    assert (malformed.exit_code, "no key at all" in malformed.output) == (1, False)


# Gateways


def test_a_gateway_is_shown_with_all_that_clients_need(iad: GatewayProcess, shell: Shell) -> None:
    shown = shell.ask("gateway", "show", iad.name)
    assert shown["state"] == "active"
    assert shown["endpoint"] == "vpn.example.com:51820"
    assert PUBLIC.fullmatch(shown["public_key"])
    assert shown["pools"] == ["10.8.0.0/16", "fd00:8::/64"]
    listed = shell.ask("gateway", "list")["gateways"]
    assert [row["public_key"] for row in listed if row["name"] == iad.name] == [shown["public_key"]]


def test_json_may_stand_before_the_command_or_behind_it(iad: GatewayProcess, shell: Shell) -> None:
    before = document(shell.run("--json", "peer", "list", iad.name))
    assert before == shell.ask("peer", "list", iad.name) == {"gateway": iad.name, "peers": []}


def test_a_gateway_that_nobody_registered_is_unavailable(shell: Shell) -> None:
    for words in (
        ("gateway", "show"),
        ("gateway", "export"),
        ("gateway", "poison"),
        ("peer", "list"),
        ("peer", "create"),
    ):
        assert shell.ask(*words, "nowhere", status=3)["error"]["code"] == "unavailable"
    assert shell.ask("gateway", "clear-alarm", "nowhere", "clock", status=3)["error"]["code"] == "unavailable"


def test_a_gateway_without_a_live_writer_is_down_and_refuses_at_once(gateway: MakeGateway) -> None:
    shell = Shell(iad := gateway())
    assert iad.stop() == 0
    assert shell.ask("gateway", "show", iad.name)["state"] == "down"
    watch = Stopwatch()
    error = shell.ask("peer", "create", iad.name, "--timeout", "30", status=3)["error"]
    assert (error["code"], error["retryable"]) == ("unavailable", True)
    assert watch.seconds < 15, "the timeout was not waited for"


def test_an_export_is_a_file_for_wg_without_any_private_key(iad: GatewayProcess, shell: Shell, tmp_path: Path) -> None:
    made = shell.ask("peer", "create", iad.name, "--preshared-key", "--keepalive", "25", "--label", "name=laptop")
    path = tmp_path / "wg.conf"
    assert shell.run("gateway", "export", iad.name, "--output", path).exit_code == 0
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"PublicKey = {made['public_key']}\n" in text
    assert f"PresharedKey = {made['preshared_key']}\n" in text
    assert f"AllowedIPs = {', '.join(made['allowed_ips'])}\n" in text
    assert "PersistentKeepalive = 25\n" in text
    assert "# friendly_name = laptop\n" in text
    assert "ListenPort = 51820\n" in text
    assert not re.search(r"^PrivateKey", text, flags=re.MULTILINE)
    assert made["private_key"] not in text
    assert shell.run("gateway", "export", iad.name).stdout == text
    assert shell.ask("gateway", "export", iad.name)["config"] == text
    error = shell.ask("gateway", "export", iad.name, "--output", path, status=1)["error"]
    assert error["code"] == "file_exists"


# One peer


def test_a_create_answers_with_the_peer_and_a_key_pair_made_here(iad: GatewayProcess, shell: Shell) -> None:
    made = shell.ask("peer", "create", iad.name, "--ttl", "1h", "--label", "user=ada", "--label", "team=x y")
    assert (made["outcome"], made["gateway"], made["ttl"]) == ("created", iad.name, 3600)
    assert made["allowed_ips"] == ["10.8.0.2/32", "fd00:8::2/128"]
    assert made["labels"] == {"team": "x y", "user": "ada"}
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(made["private_key"]))
    assert base64.b64encode(private.public_key().public_bytes_raw()).decode() == made["public_key"]


def test_no_private_key_is_made_or_shown_where_the_caller_has_one(iad: GatewayProcess, shell: Shell) -> None:
    key = some_key()
    made = shell.ask("peer", "create", iad.name, "--public-key", key, "--allowed-ip", "10.8.9.9")
    assert (made["public_key"], made["allowed_ips"]) == (key, ["10.8.9.9/32"])
    assert "private_key" not in made
    assert "preshared_key" not in made


def test_the_private_key_never_passes_through_redis_nor_into_a_log(
    own_redis: RedisServer, gateway: MakeGateway
) -> None:
    iad = gateway(redis=own_redis)
    shell = Shell(iad)
    made = shell.ask("peer", "create", iad.name, "--preshared-key", "--label", "user=ada")
    # The append-only file holds every write that Redis was ever sent: messages, records, results.
    written = b"".join(path.read_bytes() for path in (own_redis.directory / "appendonlydir").iterdir())
    bodies = [base64.b64decode(body) for body in re.findall(rb'"body": ?"([A-Za-z0-9+/=]+)"', written)]
    assert any(made["public_key"].encode() in body for body in bodies)
    assert made["public_key"].encode() in written
    assert not any(made["private_key"].encode() in part for part in [written, *bodies])
    assert made["private_key"] not in iad.log
    assert made["preshared_key"] not in iad.log


def test_to_a_person_the_private_key_is_shown_once_with_a_warning(iad: GatewayProcess, shell: Shell) -> None:
    result = shell.run("peer", "create", iad.name)
    assert result.exit_code == 0
    assert "created on" in result.stdout
    assert result.stdout.count("private key") == 1
    # Without these two it is of no use.
    info = shell.ask("gateway", "show", iad.name)
    assert f"gateway's key  {info['public_key']}\n" in result.stdout
    assert f"endpoint       {info['endpoint']}" in result.stdout
    assert result.stderr == "Shown this once, and never again: the private key.\n"


def test_a_configuration_is_written_once_for_its_owner_alone(iad: GatewayProcess, shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "laptop.conf"
    result = shell.run("peer", "create", iad.name, "--conf", path, "--preshared-key")
    assert result.exit_code == 0, result.output
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secrets = re.findall(r"^(?:PrivateKey|PresharedKey) = (.*)$", text, flags=re.MULTILINE)
    assert len(secrets) == 2
    assert not any(secret in result.output for secret in secrets)
    assert "Endpoint = vpn.example.com:51820\n" in text
    assert f"PublicKey = {shell.ask('gateway', 'show', iad.name)['public_key']}\n" in text

    error = shell.ask("peer", "create", iad.name, "--conf", path, status=1)["error"]
    assert error["code"] == "file_exists"
    assert path.read_text() == text
    assert count(shell, iad) == 1, "what cannot be written must not be created"

    made = shell.ask("peer", "create", iad.name, "--conf", path, "--force")
    assert made["conf_file"] == str(path)
    assert "private_key" not in made
    assert path.read_text() != text


def test_a_configuration_can_go_to_standard_output(iad: GatewayProcess, shell: Shell) -> None:
    result = shell.run("peer", "create", iad.name, "--conf", "-")
    assert result.stdout.startswith("[Interface]\nPrivateKey = ")
    assert "created on" in result.stderr
    made = shell.ask("peer", "create", iad.name, "--conf", "-")
    assert "private_key" not in made
    assert made["conf"].startswith("[Interface]\nPrivateKey = ")


def test_where_a_configuration_cannot_be_written_the_key_is_shown_all_the_same(
    iad: GatewayProcess, shell: Shell
) -> None:
    result = shell.run("peer", "create", iad.name, "--conf", "/proc/laptop.conf")
    assert result.exit_code == 1
    assert re.search(r"private key +[A-Za-z0-9+/]{43}=", result.stdout)
    assert "the peer is there, but no configuration was written" in result.stderr
    answer = shell.ask("peer", "create", iad.name, "--conf", "/proc/laptop.conf", status=1)
    assert (answer["outcome"], answer["error"]["code"]) == ("created", "not_written")
    assert PUBLIC.fullmatch(answer["private_key"])
    assert count(shell, iad) == 2


def test_a_qr_code_is_drawn_in_half_blocks(iad: GatewayProcess, shell: Shell) -> None:
    result = shell.run("peer", "create", iad.name, "--conf", "-", "--qr")
    drawn = [line for line in result.stdout.splitlines() if set(line) <= set("█▀▄ ") and line.strip()]
    assert len(drawn) > 20
    assert len({len(line) for line in drawn}) == 1
    assert len(drawn[0]) <= 80
    assert shell.ask("peer", "create", iad.name, "--qr", status=2)["error"]["code"] == "usage"


def test_the_same_wish_exists_and_another_one_is_a_conflict(iad: GatewayProcess, shell: Shell) -> None:
    wish = ("peer", "create", iad.name, "--public-key", some_key())
    assert shell.ask(*wish)["outcome"] == "created"
    assert shell.ask(*wish)["outcome"] == "existing"
    error = shell.ask(*wish, "--keepalive", "25", status=1)["error"]
    assert (error["code"], error["retryable"], error["gateway"]) == ("conflict", False, iad.name)
    result = shell.run(*wish, "--keepalive", "25")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: the peer is there already")
    assert result.stderr.count("\n") == 1


def test_the_same_request_id_is_the_same_request(iad: GatewayProcess, shell: Shell) -> None:
    wish = ("peer", "create", iad.name, "--public-key", some_key())
    first = shell.ask(*wish, "--request-id", "build-7")
    assert first["request_id"] == f"{iad.name}.build-7"
    assert shell.ask(*wish, "--request-id", f"{iad.name}.build-7")["outcome"] == "created"
    # Without the key another pair is made, and the answer to the first request is not about it.
    error = shell.ask("peer", "create", iad.name, "--request-id", "build-7", status=1)["error"]
    assert error["code"] == "conflict"
    assert shell.ask("peer", "create", iad.name, "--request-id", "b 7", status=1)["error"]["code"] == "invalid"


@pytest.mark.parametrize(
    "words",
    [
        ("--public-key", "short"),
        ("--allowed-ip", "10.8.0.1/16"),
        ("--allowed-ip", "203.0.113.0/24"),
        ("--ttl", "0"),
        ("--ttl", "999999w"),
        ("--label", "Ä=1"),
        ("--label", "a=" + "x" * 300),
    ],
)
def test_what_a_gateway_would_refuse_is_refused_in_a_sentence(
    words: tuple[str, ...], iad: GatewayProcess, shell: Shell
) -> None:
    assert shell.ask("peer", "create", iad.name, *words, status=1)["error"]["code"] == "invalid"
    assert count(shell, iad) == 0


def test_a_timeout_is_status_3_and_the_truth(iad: GatewayProcess, shell: Shell) -> None:
    key = some_key()
    iad.pause(alive=True)
    error = shell.ask("peer", "create", iad.name, "--public-key", key, "--timeout", "0.5", status=3)["error"]
    assert (error["code"], error["retryable"]) == ("timed_out", True)
    iad.resume()
    assert shell.ask("peer", "delete", iad.name, key, "--timeout", "30")["outcome"] == "absent"


def test_ctrl_c_cancels_the_request_for_good(own_redis: RedisServer, gateway: MakeGateway) -> None:
    iad, key = gateway(redis=own_redis), some_key()
    iad.pause(alive=True)
    command = ("peer", "create", iad.name, "--public-key", key, "--timeout", "60", "--json")
    process = spawned(*command, redis=own_redis.url)
    # It waits in the queue, or Redis has handed it to the frozen writer.
    eventually(lambda: _pushed(own_redis) > 0, "the request having been sent")
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process)
    iad.resume()
    assert status == 130, err
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "never take effect" in json.loads(out)["error"]["message"]
    assert Shell(iad).ask("peer", "delete", iad.name, key, "--timeout", "30")["outcome"] == "absent"


def _pushed(server: RedisServer) -> int:
    return int(server.redis.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))


def test_a_peer_is_shown_as_it_is_stored(iad: GatewayProcess, shell: Shell) -> None:
    made = shell.ask("peer", "create", iad.name, "--preshared-key", "--ttl", "1h")
    shown = shell.ask("peer", "show", iad.name, made["public_key"])
    assert shown["allowed_ips"] == made["allowed_ips"]
    assert shown["has_preshared_key"] is True
    person = shell.run("peer", "show", iad.name, made["public_key"])
    assert "(hidden)" in person.stdout
    assert made["preshared_key"] not in json.dumps(shown) + person.output
    assert shell.ask("peer", "show", iad.name, some_key(), status=1)["error"]["code"] == "not_there"
    assert shell.ask("peer", "show", iad.name, "short", status=1)["error"]["code"] == "invalid"


def test_a_delete_is_done_or_there_was_nothing_to_do(iad: GatewayProcess, shell: Shell) -> None:
    key = shell.ask("peer", "create", iad.name)["public_key"]
    gone = shell.ask("peer", "delete", iad.name, key)
    assert (gone["outcome"], gone["public_key"], gone["gateway"]) == ("deleted", key, iad.name)
    assert shell.ask("peer", "delete", iad.name, key)["outcome"] == "absent"


def test_many_are_deleted_at_once_and_each_is_answered(iad: GatewayProcess, shell: Shell) -> None:
    keys = [shell.ask("peer", "create", iad.name)["public_key"] for _ in range(3)]
    answer = shell.ask("peer", "delete", iad.name, *keys, some_key(), "short", status=1)
    assert [entry.get("outcome") for entry in answer["results"]] == ["deleted"] * 3 + ["absent", None]
    assert answer["results"][4]["error"]["code"] == "invalid"
    assert answer["summary"]["deleted"] == 3
    assert count(shell, iad) == 0


def test_a_list_through_a_pipe_is_one_line_each_as_wg_writes_them(iad: GatewayProcess, shell: Shell) -> None:
    made = shell.ask("peer", "create", iad.name, "--keepalive", "25", "--label", "user=ada", "--preshared-key")
    other = shell.ask("peer", "create", iad.name)
    unseen = ["0", "0", "0", "(none)"]
    lines = {
        line.split("\t")[0]: line.split("\t")[1:] for line in shell.run("peer", "list", iad.name).stdout.splitlines()
    }
    assert lines == {
        made["public_key"]: ["(hidden)", "10.8.0.2/32,fd00:8::2/128", "25", "0", "user=ada", *unseen],
        other["public_key"]: ["(none)", "10.8.0.3/32,fd00:8::3/128", "off", "0", "(none)", *unseen],
    }


def test_who_reads_only_the_first_line_of_a_list_gets_no_complaint(iad: GatewayProcess, shell: Shell) -> None:
    shell.ask("peer", "create", iad.name)
    read, write = os.pipe()
    process = spawned("peer", "list", iad.name, redis=shell.url, stdout=write)
    os.close(write)
    os.close(read)
    status, _, err = ended(process)
    assert (status, err) == (1, "")


def test_on_a_terminal_of_80_columns_nothing_is_wider(iad: GatewayProcess, shell: Shell) -> None:
    key = shell.ask("peer", "create", iad.name, "--ttl", "1h", "--label", "user=ada.lovelace")["public_key"]
    for words in (("peer", "list", iad.name), ("gateway", "list"), ("gateway", "show", iad.name)):
        lines = on_a_terminal(*words, redis=shell.url)
        assert max(map(len, lines)) <= 80, lines
        assert not any("…" in line for line in lines), "something is cut off"
        if words[0] == "peer":
            assert any(key in line and "10.8.0.2/32" in line for line in lines)


def on_a_terminal(*words: str, redis: str) -> list[str]:
    """What a command shows on a terminal of 80 columns, without colours."""
    ours, its = pty.openpty()
    terminal = {"COLUMNS": "80", "TERM": "xterm"}
    process = spawned(*words, redis=redis, stdout=its, environment=terminal)
    os.close(its)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # a terminal's end of file
        pass
    finally:
        os.close(ours)
    status, _, err = ended(process)
    assert status == 0, err
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).splitlines()


# Lists


def test_a_csv_is_answered_line_by_line_and_a_bad_line_stops_no_other(
    iad: GatewayProcess, shell: Shell, tmp_path: Path
) -> None:
    first, second, third, fourth = (some_key() for _ in range(4))
    path = tmp_path / "peers.csv"
    path.write_text(
        "public_key,allowed_ips,ttl,labels,keepalive,pinned\n"
        f"{first},,1h,user=ada;team=a b,,no\n"
        f"{second},10.8.7.0/28 fd00:8::77/128,,,25,yes\n"
        "short,,,,,\n"
        "\n"
        f"{third},10.8.7.3,,,,\n"
        f"{fourth},,5 years,,,\n"
        f"{fourth},,,,often,\n"
        f"{fourth},,,,,,,\n"
        ",10.8.7.77,,,,\n",
        encoding="utf-8-sig",
    )
    answer = shell.ask("peer", "create", iad.name, "--from", path, status=1)
    outcomes = [(entry["line"], entry.get("outcome") or entry["error"]["code"]) for entry in answer["results"]]
    assert outcomes == [
        (2, "created"),
        (3, "created"),
        (4, "invalid"),
        (6, "conflict"),
        (7, "invalid"),
        (8, "invalid"),
        (9, "invalid"),
        (10, "invalid"),
    ]
    assert answer["results"][0]["labels"] == {"team": "a b", "user": "ada"}
    assert [(entry["ttl"], entry["pinned"]) for entry in answer["results"][:2]] == [(3600, False), (None, True)]
    assert answer["results"][1]["allowed_ips"] == ["10.8.7.0/28", "fd00:8::77/128"]
    assert answer["summary"] | {"seconds": 0} == {"asked": 8, "answered": 8, "created": 2, "failed": 6, "seconds": 0}
    assert count(shell, iad) == 2


def test_json_lines_are_read_from_standard_input_and_options_fill_what_they_leave_out(
    iad: GatewayProcess, shell: Shell
) -> None:
    first, second = some_key(), some_key()
    lines = [
        json.dumps({"public_key": first, "ttl": "2h", "labels": {"user": "ada"}}),
        json.dumps({"public_key": second, "keepalive": 5}),
        json.dumps({"public_key": some_key(), "pinned": True}),
        json.dumps({"public_key": 7}),
        json.dumps({"public_key": some_key(), "deadline": 1}),
        "[]",
        "{nonsense",
    ]
    options = ("--ttl", "1h", "--label", "batch=7", "--keepalive", "25")
    answer = shell.ask("peer", "create", iad.name, "--from", "-", *options, status=1, stdin="\n".join(lines))
    made = answer["results"]
    assert (made[0]["ttl"], made[0]["keepalive"], made[0]["labels"]) == (7200, 25, {"batch": "7", "user": "ada"})
    assert (made[1]["ttl"], made[1]["keepalive"], made[1]["labels"]) == (3600, 5, {"batch": "7"})
    assert (made[2]["ttl"], made[2]["pinned"]) == (None, True), "a pinned peer never expires"
    assert [entry["error"]["code"] for entry in made[3:]] == ["invalid"] * 4


def test_deletes_are_read_from_a_list_too(iad: GatewayProcess, shell: Shell) -> None:
    keys = [some_key() for _ in range(70)]
    wishes = "\n".join(json.dumps({"public_key": key}) for key in keys)
    assert shell.run("peer", "create", iad.name, "--from", "-", stdin=wishes).exit_code == 0
    lines = "\n".join([*keys[:66], "short", some_key()])
    answer = shell.ask("peer", "delete", iad.name, "--from", "-", stdin=lines, status=1)
    assert answer["summary"] | {"seconds": 0} == {
        "asked": 68,
        "answered": 68,
        "deleted": 66,
        "absent": 1,
        "failed": 1,
        "seconds": 0,
    }
    assert [entry["line"] for entry in answer["results"]] == list(range(1, 69))
    assert answer["results"][66]["error"]["code"] == "invalid"
    as_array = json.dumps([keys[66], {"public_key": keys[67], "ttl": 60}])
    assert shell.ask("peer", "delete", iad.name, "--from", "-", stdin=as_array)["summary"]["deleted"] == 2
    as_csv = f"public_key;ttl\n{keys[68]};\n"
    assert shell.ask("peer", "delete", iad.name, "--from", "-", stdin=as_csv)["summary"]["deleted"] == 1
    assert count(shell, iad) == 1


def test_a_list_asked_for_twice_is_there_already(iad: GatewayProcess, shell: Shell) -> None:
    lines = "\n".join(json.dumps({"public_key": some_key()}) for _ in range(200))
    first = shell.run("peer", "create", iad.name, "--from", "-", stdin=lines)
    assert first.exit_code == 0, first.output
    assert len(first.stdout.splitlines()) == 200
    assert "200 created" in first.stderr
    assert shell.ask("peer", "create", iad.name, "--from", "-", stdin=lines)["summary"]["existing"] == 200
    assert count(shell, iad) == 200


def test_no_line_gets_more_than_its_timeout_where_the_writer_is_frozen(iad: GatewayProcess, shell: Shell) -> None:
    lines = "\n".join(json.dumps({"public_key": some_key()}) for _ in range(20))
    iad.pause(alive=True)
    watch = Stopwatch()
    answer = shell.ask(
        "peer", "create", iad.name, "--from", "-", "--timeout", "1", "--window", "20", stdin=lines, status=3
    )
    assert watch.seconds < 15, "they wait side by side"
    iad.resume()
    assert {entry["error"]["code"] for entry in answer["results"]} == {"timed_out"}
    assert shell.ask("peer", "create", iad.name, "--timeout", "30")["outcome"] == "created"
    assert count(shell, iad) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"key,ttl\n", "'key' is none"),
        (b"", "public_key is missing"),
        (b"ttl\n1h\n", "public_key is missing"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_is_refused_whole(text: bytes, reason: str, iad: GatewayProcess, shell: Shell) -> None:
    error = shell.ask("peer", "create", iad.name, "--from", "-", status=1, stdin=text)["error"]
    assert error["code"] == "invalid"
    assert reason in error["message"]


# Running a gateway


def test_a_gateway_runs_in_the_foreground_and_ends_when_asked(redis_server: RedisServer, tmp_path: Path) -> None:
    name = new_name()
    command = ("gateway", "run", name, "--dataplane", "memory", "--private-key-file", tmp_path / "key")
    own = ("--pool", "10.77.0.0/24", "--serves", "192.168.0.0/16", "--endpoint", "[2001:db8::1]:51820")
    process = spawned(*command, *own, "--listen-port", "4500", "--redis", redis_server.url)
    try:
        shown = eventually(lambda: _shown_active(name, redis_server.url), "the gateway being active")
        assert shown is not None
        assert (shown["endpoint"], shown["pools"], shown["listen_port"]) == (
            "[2001:db8::1]:51820",
            ["10.77.0.0/24"],
            4500,
        )
        asked = peerlane(*("peer", "create", name, "--allowed-ip", "192.168.7.0/24", "--json"), redis=redis_server.url)
        assert document(asked)["outcome"] == "created"
        process.send_signal(signal.SIGTERM)
        status, out, err = ended(process)
        assert status == 0, err
        assert "Traceback" not in out + err
        assert "SecurityWarning" not in out + err
    finally:
        if process.poll() is None:
            process.terminate()
            ended(process)


def _shown_active(name: str, redis: str) -> dict[str, Any] | None:
    shown = document(peerlane("gateway", "show", name, "--json", redis=redis))
    return shown if shown.get("state") == "active" else None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--endpoint", "vpn.example.com"), "PEERLANE_ENDPOINT: an endpoint is host:port"),
        (("--pool", "10.8.0.1/16"), "did you mean 10.8.0.0/16?"),
        (("--pool", "10.8.0.0/16", "--serves", "10.8.0.0/24"), "overlap"),
        (("--interface", "a very long name"), "PEERLANE_INTERFACE"),
    ],
)
def test_a_gateway_with_a_bad_setting_does_not_start(words: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    command = ("gateway", "run", "iad", "--dataplane", "memory", "--private-key-file", tmp_path / "key")
    status, out, err = ended(spawned(*command, *words))
    assert (status, out) == (2, ""), err
    assert reason in err
    assert "Traceback" not in err


def test_a_configuration_that_no_qr_code_holds_is_told_and_its_peer_kept(gateway: MakeGateway) -> None:
    site = gateway(
        endpoint="vpn.example.com:51820", client_allowed_ips=",".join(f"10.{number}.0.0/16" for number in range(250))
    )
    drawn = Shell(site).run("peer", "create", site.name, "--qr")
    assert drawn.exit_code == 0, drawn.output
    assert "no QR code holds this configuration" in drawn.stderr
    assert "private key" in drawn.stdout
    assert len(Shell(site).ask("peer", "list", site.name)["peers"]) == 1


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("unix:///run/redis.sock?db=3", 3),
        ("unix:///run/redis.sock", 0),
        ("redis://h:6379/4", 4),
        ("redis+sentinel://a,b/lanes/5", 5),
    ],
)
def test_rights_are_for_the_database_of_the_url(url: str, database: int) -> None:
    result = peerlane("acl", "iad", "--role", "writer", redis=url)
    assert f"&/{database}.celeryev/*" in result.stdout
