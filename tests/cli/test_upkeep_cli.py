"""``peerlane gateway sweep | reconcile | show | list``: what people and programs are told of a gateway's upkeep."""

from __future__ import annotations

import time
from typing import Any

from commands import Shell, document
from expiry import CLOCKS_DIFFER, await_expiry
from gateways import MakeClient, MakeGateway, MakeSettings
from keys import some_key
from observers import Observer, ending
from servers import RedisServer
from waiting import eventually

from peerlane import Gateway
from peerlane.config.redis.client import connect
from peerlane.tasks.status.alarms import clear_alarm, raise_alarm


def expired(peers: Gateway, shell: Shell, count: int) -> list[str]:
    """That many new peers, once their time is up."""
    made = [some_key() for _ in range(count)]
    for key in made:
        peers.create_peer(key, ttl=1)
    sweep = ("gateway", "sweep", peers.name, "--dry-run")
    eventually(lambda: shell.ask(*sweep)["stale"].get("expired") == count, "peers to expire")
    time.sleep(CLOCKS_DIFFER)
    return made


def test_a_dry_run_lists_and_a_sweep_removes(gateway: MakeGateway, client: MakeClient) -> None:
    site = gateway()
    peers, shell = client(site), Shell(site)
    with ending(Observer(site)):
        (key,) = expired(peers, shell, 1)
        listed = shell.run("gateway", "sweep", site.name, "--dry-run").output
        assert key in listed
        assert "expired" in listed
        assert "1 expired of 1 would be removed" in listed
        assert "1 expired peers removed of 1" in shell.run("gateway", "sweep", site.name).output
        assert "nothing is stale" in shell.run("gateway", "sweep", site.name, "--dry-run").output
        assert shell.ask("gateway", "sweep", site.name)["removed"] == {}


def test_a_refused_sweep_ends_with_1_and_says_what_to_do(
    gateway: MakeGateway, client: MakeClient, redis_server: RedisServer
) -> None:
    site = gateway(sweep_floor=2)
    peers, shell = client(site), Shell(site)
    # Whose time runs out while an observer looks does not count.
    last = max(peers.create_peer(some_key(), ttl=1).expires_at or 0 for _ in range(3))
    await_expiry(redis_server, last)
    with ending(Observer(site)):
        refused = shell.run("gateway", "sweep", site.name)
        assert refused.exit_code == 1
        assert "--force" in refused.output
        assert shell.ask("gateway", "sweep", site.name, status=1)["outcome"] == "refused"
        assert [alarm["kind"] for alarm in shell.ask("gateway", "show", site.name)["alarms"]] == ["sweep"]
        assert "ALARM sweep" in shell.run("gateway", "show", site.name).output
        (listed,) = [row for row in shell.ask("gateway", "list")["gateways"] if row["name"] == site.name]
        assert listed["alarms"][0]["detail"] == {"peers": 3, "stale": {"expired": 3}}
        assert f"ALARM {site.name} sweep" in shell.run("gateway", "list").output
        assert shell.ask("gateway", "sweep", site.name, "--force")["removed"] == {"expired": 3}
        assert shell.ask("gateway", "show", site.name)["alarms"] == []


def test_show_tells_of_the_observer_and_of_its_last_sweep(gateway: MakeGateway) -> None:
    site = gateway()
    shell = Shell(site)
    assert "none" in shell.run("gateway", "show", site.name).output
    with ending(Observer(site)):
        shown: dict[str, Any] = shell.ask("gateway", "show", site.name)
        assert shown["observer_silent_for"] < 15
        assert shown["sweep"]["outcome"] == "swept"
        output = shell.run("gateway", "show", site.name).output
        assert "alive" in output
        assert "last sweep" in output


def test_what_only_a_writers_memory_holds_is_not_compared(gateway: MakeGateway) -> None:
    site = gateway()
    shell = Shell(site)
    with ending(Observer(site)):
        result = shell.run("gateway", "reconcile", site.name)
        assert (result.exit_code, "only the writer sees it" in result.output) == (1, True), "it has not agreed"
        assert shell.ask("gateway", "reconcile", site.name, "--dry-run", status=1)["outcome"] == "skipped"


def test_without_an_observer_both_end_with_3(gateway: MakeGateway) -> None:
    site = gateway()
    shell = Shell(site)
    for act in ("sweep", "reconcile"):
        result = shell.run("gateway", act, site.name, "--json")
        assert result.exit_code == 3
        assert document(result)["error"]["code"] == "unavailable"


def test_an_alarm_keeps_its_beginning_while_it_is_raised_again(gateway: MakeGateway, settings: MakeSettings) -> None:
    site = gateway()
    shell = Shell(site)
    redis = connect(settings())
    raise_alarm(redis, site.name, "clock", "it is late", now=100)
    raise_alarm(redis, site.name, "clock", "it is very late", now=200, detail={"by": 3600})
    (alarm,) = shell.ask("gateway", "show", site.name)["alarms"]
    assert alarm.pop("runbook") == "docs/runbooks.md#clock"
    assert alarm == {"kind": "clock", "message": "it is very late", "since": 100, "detail": {"by": 3600}, "at": 200}
    redis.hset(f"peerlane:{{{site.name}}}:alarms", "odd", "by hand")
    assert [alarm["kind"] for alarm in shell.ask("gateway", "show", site.name)["alarms"]] == ["odd", "clock"]
    assert clear_alarm(redis, site.name, "clock")
    assert not clear_alarm(redis, site.name, "clock")
    redis.close()
