"""``peerlane top``: what it shows of real gateways, through a pipe, on a terminal, as documents; and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from commands import Shell, document, ended, peerlane, spawned
from fenced import fenced, printed
from gateways import GatewayProcess, MakeClient, MakeGateway
from keys import some_key
from observers import Observer, ending
from rich.console import Console
from servers import RedisServer, serving
from waiting import eventually

from peerlane.config import names
from peerlane.config.redis.client import connect
from peerlane.config.settings import read
from peerlane.tasks.cli.top.screen import frame, table
from peerlane.tasks.status.alarms import Alarm
from peerlane.tasks.status.fleet_snapshot import FleetReader
from peerlane.tasks.status.rates import Row, Wait

ROW = Row(
    gateway="iad",
    state="active",
    peers=48_213,
    max_peers=100_000,
    waiting=12,
    waiting_bulk=3_200,
    wait=Wait(0.012, "about"),
    created_per_second=812.0,
    deleted_per_second=2.5,
    refused_per_second=0.0,
    rx_per_second=123_400_000,
    tx_per_second=1_234,
    silent_for=0.5,
    stopped=False,
    observer_silent_for=0.5,
    beat_silent_for=None,
    beat_missing=False,
    visible=True,
    recovered="",
    sweep={"outcome": "swept", "removed": {"expired": 20, "idle": 5}, "ago": 40},
    alarms=(),
    lane_cap=20_000,
    set_aside=0,
    region="eu",
    epoch=3,
    coming=0,
    writer_age=9_000.0,
    restarted=False,
)


EVERYTHING = [
    *("gateway", "state", "peers", "of", "lane", "bulk", "wait", "+/s", "-/s", "ref/s", "rx/s", "tx/s"),
    *("writer", "observer", "last", "sweep"),
]


def drawn(*rows: Row, width: int, height: int | None = None, trouble: str | None = None) -> list[str]:
    """A frame's lines, without colours."""
    console = Console(width=width, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(frame(rows, at=1_800_000_000, width=width, height=height, trouble=trouble))
    return [line.rstrip() for line in captured.get().splitlines()]


# How it looks


@pytest.mark.parametrize(
    ("waiting", "refused", "colour"),
    [(12, 0.0, ""), (16_000, 0.0, "33"), (20_000, 0.0, "1;31"), (12, 3.0, "33")],
)
def test_a_lane_that_fills_and_refusals_have_a_colour(waiting: int, refused: float, colour: str) -> None:
    row = replace(ROW, waiting=waiting, refused_per_second=refused)
    console = Console(width=120, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as captured:
        console.print(table([row], 120))
    coloured = re.findall(r"\x1b\[([\d;]+)m *([\d,]+)", captured.get())
    expected = f"{waiting:,}" if waiting != 12 else "3"
    assert [(code, text) for code, text in coloured if code in ("33", "1;31")] == (
        [(colour, expected)] if colour else []
    )


def test_eighty_columns_have_room_for_what_matters() -> None:
    assert drawn(ROW, width=80) == [
        "08:00:00 UTC  1 gateway: 1 active; 48,213 peers, +812/s -2/s, 3,212 waiting",
        "gateway  state    peers  full  lane   bulk   wait  +/s  -/s  beats  swept",
        "iad      active  48,213   48%    12  3,200  ~12ms  812  2.5  1s/1s    -25",
    ]


def test_what_has_no_room_in_sixty_columns_is_named_and_nothing_else_is_cut() -> None:
    lines = drawn(_named("a-gateway-with-a-long-name", ()), width=60)
    assert lines[2:] == [
        "gateway   state   peers full lane  bulk  wait +/s -/s beats",
        "a-gatewa… active 48,213  48%   12 3,200 ~12ms 812 2.5 1s/1s",
        "no room for swept",
    ]


def test_a_fleet_without_gateways_says_how_to_start_one() -> None:
    assert "`peerlane gateway run NAME` starts one" in drawn(width=80)[1]


def test_a_hundred_and_twenty_columns_have_room_for_all() -> None:
    _, head, row = drawn(ROW, width=120)
    assert head.split() == EVERYTHING
    assert row.split()[:9] == ["iad", "active", "48,213", "100,000", "12", "3,200", "~12ms", "812", "2.5"]
    assert row.endswith("123 MB  1.2 kB      1s        1s  -25, 40s ago")


def test_alarms_stand_above_the_table_and_fit_on_the_terminal_with_it() -> None:
    alarm = Alarm("sweep", "stale " * 60, 1_799_999_400, {})
    rows = [*(_named(f"gw-{number}", (alarm,)) for number in range(9)), *(_named(f"ok-{n}", ()) for n in range(40))]
    lines = drawn(*rows, width=80, height=24)
    assert len(lines) <= 24
    assert lines[2].startswith("ALARM gw-0 sweep, for 10 min: stale")
    assert "and 5 more alarms: see `peerlane gateway list`" in lines
    assert lines[-1].endswith("more, in less trouble")
    assert max(map(len, lines)) <= 80
    everything = "\n".join(drawn(*rows, width=4096))
    assert everything.count("ALARM") == 9
    assert "ok-39" in everything


def _named(name: str, alarms: tuple[Alarm, ...]) -> Row:
    return replace(ROW, gateway=name, alarms=alarms)


def test_a_long_name_gives_way_before_any_number_does() -> None:
    lines = drawn(_named("a-gateway-with-a-name-of-many-words-and-more", ()), width=80)
    assert lines[-1].startswith("a-gat")
    assert lines[-1].endswith("-25")
    assert "…" in lines[-1]


# What it tells of real gateways


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One for all tests that do no harm to it."""
    with serving() as server:
        site = GatewayProcess("iad", server.url, tmp_path_factory.mktemp("top"), dataplane="memory")
        site.start()
        with ending(Observer(site, observe_every=1)):
            eventually(lambda: "created" in site.look().facts, "the writer telling what it has done")
            yield site
        site.finish()


@pytest.fixture
def iad(own_redis: RedisServer, gateway: MakeGateway) -> Iterator[GatewayProcess]:
    """A gateway with an observer, alone on its server."""
    site = gateway("iad", redis=own_redis)
    with ending(Observer(site, observe_every=1)):
        yield site


def test_once_is_one_table_with_rates(lasting: GatewayProcess) -> None:
    result = Shell(lasting).run("top", "--once", "--interval", "1.2")
    assert result.exit_code == 0, result.output
    summary, head, row = result.stdout.splitlines()
    assert summary.endswith("1 gateway: 1 active; 0 peers, +0/s -0/s, 0 waiting")
    assert head.split() == EVERYTHING
    assert re.fullmatch(r"iad +active +0 +100,000 +0 +0 +0 +0 +0 +- +- +1s +\d+s +0, \d+s ago *", row), row


def test_creates_and_deletes_are_seen_as_they_happen(lasting: GatewayProcess, client: MakeClient) -> None:
    process = spawned("top", "iad", "--json", "--interval", "0.3", redis=str(lasting.settings["redis_url"]))
    peers = client(lasting)
    try:
        assert process.stdout is not None
        seen: set[str] = set()
        for line in process.stdout:
            (row,) = json.loads(line)["gateways"]
            seen |= {name for name in ("created_per_second", "deleted_per_second") if row[name]}
            if len(seen) == 2:
                break
            key = some_key()
            peers.create_peer(key)
            peers.delete_peer(key)
    finally:
        process.send_signal(signal.SIGINT)
        status, _, err = ended(process)
    assert (status, err) == (0, "")


def test_a_frozen_writer_with_a_full_lane_stands_first(
    iad: GatewayProcess, own_redis: RedisServer, gateway: MakeGateway
) -> None:
    gateway("fra", redis=own_redis)
    iad.hold()
    try:
        iad.fall_silent()
        own_redis.redis.lpush(names.lane_queue("iad"), "a", "b")
        first, second = Shell(iad).ask("top", "--once", "--interval", "1.5")["gateways"]
    finally:
        own_redis.redis.delete(names.lane_queue("iad"))
        iad.resume()
    assert (first["gateway"], first["state"], first["waiting"]) == ("iad", "down", 2)
    assert first["wait"]["kind"] == "at_least"
    assert 1 < first["wait"]["seconds"] < 60
    assert first["silent_for"] > 5
    assert (second["gateway"], second["state"], second["observer_silent_for"]) == ("fra", "active", None)


@pytest.mark.usefixtures("iad")
def test_it_costs_by_the_gateway_and_never_by_the_peer(own_redis: RedisServer) -> None:
    redis = connect(read(redis_url=own_redis.url))

    def cost() -> tuple[int, int]:
        """Commands and bytes of twenty looks."""
        before = own_redis.redis.info("stats")
        for _ in range(20):
            FleetReader(redis).read()
        after = own_redis.redis.info("stats")
        commands, sent = (int(after[name]) - int(before[name]) for name in _COST)
        return commands, sent

    commands, sent = cost()
    own_redis.redis.hset(names.peers_key("iad"), mapping={f"key-{number}": "{}" for number in range(5_000)})
    own_redis.redis.hset(names.seen_key("iad"), mapping={f"key-{number}": "" for number in range(5_000)})
    commands_of_many, sent_of_many = cost()
    redis.close()
    # Gateway and observer beat in between.
    assert commands <= 20 * 8 + 40
    assert abs(commands_of_many - commands) <= 40
    assert sent_of_many < sent * 2


_COST = ("total_commands_processed", "total_net_output_bytes")


def test_an_unknown_gateway_ends_it_with_3(lasting: GatewayProcess) -> None:
    for words in (("--once",), ()):
        result = Shell(lasting).run("top", "nowhere", "--json", *words)
        assert result.exit_code == 3
        assert document(result)["error"]["code"] == "unavailable"


# Who may look


def test_least_rights_show_what_they_allow(capsys: pytest.CaptureFixture[str]) -> None:
    with fenced(printed(capsys, "iad", "fra", "--passwords")) as server:
        server.redis.sadd(names.GATEWAYS_KEY, "iad", "fra")
        server.redis.hset(names.alarms_key("iad"), "odd", "by hand")
        rows = document(peerlane("top", "--once", "--json", "--interval", "0.2", redis=server.url_of("operator")))
        assert [(row["gateway"], row["visible"], len(row["alarms"])) for row in rows["gateways"]] == [
            ("iad", True, 1),
            ("fra", True, 0),
        ]
        assert server.redis.acl_log() == []
        output = peerlane("top", "--once", "--interval", "0.2", redis=server.url_of("api")).stdout
        assert "alarms, sweeps and observers of 2 are not for this Redis user to see" in output
        assert re.search(r"^fra +down ", output, flags=re.MULTILINE)
        refused: list[dict[str, Any]] = server.redis.acl_log()
        assert sum(entry["count"] for entry in refused) <= 6, "it asks once, not at every look"


# While Redis is away


def test_once_without_redis_ends_with_3() -> None:
    result = peerlane("top", "--once", "--interval", "0.2", "--json")
    assert result.exit_code == 3
    assert document(result)["error"]["code"] == "outcome_unknown"


def test_without_redis_it_does_not_tell_of_a_fleet_without_gateways() -> None:
    process = spawned("top", "--interval", "0.3", redis="redis://ada:hidden-word@127.0.0.1:1/0")
    try:
        said = _until(process, r"^Redis could not be reached .*\n\d\d:\d\d:\d\d UTC")
    finally:
        process.send_signal(signal.SIGINT)
        status, out, err = ended(process)
    assert (status, err) == (0, "")
    assert "; Redis is redis://ada:(hidden)@127.0.0.1:1/0, as PEERLANE_REDIS_URL says\n" in said
    assert "gateways" not in said + out
    assert "no gateway is registered" not in said + out


@pytest.mark.usefixtures("iad")
def test_redis_going_away_is_a_line_and_it_goes_on(own_redis: RedisServer) -> None:
    process = spawned("top", "--interval", "0.3", redis=own_redis.url)
    assert process.stdout is not None
    try:
        _until(process, r"^iad +active")
        own_redis.pause()
        _until(process, r"^Redis could not be reached .*; this is \d+ s old$")
        _until(process, r"^iad +active")  # as it was
        own_redis.resume()
        _until(process, r"^\d\d:\d\d:\d\d UTC .*\n(?!Redis)")
    finally:
        own_redis.resume()
        process.send_signal(signal.SIGINT)
        status, out, err = ended(process)
    assert (status, err) == (0, "")
    assert "\x1b" not in out, "no terminal, no escape codes"


def _until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, said, flags=re.MULTILINE):
            return said
    raise AssertionError(f"it ended without saying {pattern}: {said}")


# On a terminal


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_terminal_is_left_as_it_was_found(number: signal.Signals, expected: int, lasting: GatewayProcess) -> None:
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    before = termios.tcgetattr(its)
    environment = {"TERM": "xterm-256color"}
    process = spawned("top", redis=str(lasting.settings["redis_url"]), stdout=its, environment=environment)
    said = b""
    try:
        while b"iad" not in said:
            said += os.read(ours, 65536)
        process.send_signal(number)
        status, _, err = ended(process)
        assert termios.tcgetattr(its) == before
        os.close(its)
        while part := _rest(ours):
            said += part
    finally:
        os.close(ours)
    assert (status, err) == (expected, "")
    assert b"\x1b[?1049h" in said, "a screen of its own"
    assert said.rindex(b"\x1b[?1049l") > said.rindex(b"\x1b[?1049h"), "and back"
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l"), "with its cursor"
    # Each frame begins at the screen's corner, not on a new line.
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode().replace("\x1b[H", "\n"))
    assert re.search(r"gateway +state +peers +full +lane +bulk +wait", text)
    assert max(len(line) for line in text.splitlines()) <= 80


def _rest(ours: int) -> bytes:
    try:
        return os.read(ours, 65536)
    except OSError:  # a terminal's end of file
        return b""
