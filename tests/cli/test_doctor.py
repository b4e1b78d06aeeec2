"""``peerlane doctor``: says what is wrong, with what to do, and nothing that is secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from commands import Shell, document, peerlane
from gateways import MakeGateway
from servers import RedisServer

from peerlane.config import names
from peerlane.tasks.status.alarms import raise_alarm


def checks_of(document: dict[str, Any], name: str) -> list[tuple[str, str]]:
    return [(check["verdict"], check["sentence"]) for check in document["checks"] if check["what"] == name]


class TestAFleetInGoodOrder:
    def test_is_told_as_such(self, gateway: MakeGateway) -> None:
        site = gateway()
        answer = document(Shell(site).run("doctor", "--json"))
        assert checks_of(answer, "durability") == [("ok", "what is confirmed is on disk first")]
        (verdict, sentence), unobserved = checks_of(answer, f"gateway {site.name}")
        assert unobserved == ("warning", "no observer is running: nothing is swept or reconciled")
        assert verdict == "ok"
        assert sentence.startswith("active, 0 peers")


class TestWhatIsWrong:
    def test_is_a_redis_that_cannot_be_reached(self) -> None:
        result = peerlane("doctor", "--json")
        assert result.exit_code == 1
        ((verdict, sentence),) = checks_of(document(result), "Redis")
        assert verdict == "failed"
        assert "PEERLANE_REDIS_URL" in sentence
        assert sentence.startswith("unix:///nonexistent/redis.sock cannot be used: there is no such socket")

    def test_is_a_redis_that_may_lose_peers(self, own_redis: RedisServer) -> None:
        own_redis.redis.config_set("appendfsync", "everysec")
        answer = document(peerlane("doctor", "--json", redis=own_redis.url))
        ((verdict, sentence),) = checks_of(answer, "durability")
        assert verdict == "warning"
        assert "appendfsync always" in sentence

    def test_is_a_gateway_whose_writer_is_gone(self, gateway: MakeGateway, own_redis: RedisServer) -> None:
        site = gateway(redis=own_redis)
        site.stop()
        result = peerlane("doctor", redis=own_redis.url)
        assert result.exit_code == 1
        assert "no live writer" in result.stdout

    def test_is_an_observer_that_hangs(self, gateway: MakeGateway, own_redis: RedisServer) -> None:
        site = gateway(redis=own_redis)
        own_redis.redis.hset(names.observer_key(site.name), "heartbeat", (own_redis.redis.time()[0] - 60) * 1000)
        _, (verdict, sentence) = checks_of(document(Shell(site).run("doctor", "--json")), f"gateway {site.name}")
        assert verdict == "warning"
        assert sentence.startswith("its observer has been silent for 6")
        assert "hangs" in sentence

    def test_is_an_alarm(self, gateway: MakeGateway, own_redis: RedisServer) -> None:
        site = gateway(redis=own_redis)
        raise_alarm(own_redis.redis, site.name, "sweep", "too much would go", now=1)
        result = peerlane("doctor", redis=own_redis.url)
        assert result.exit_code == 1
        assert "ALARM sweep: too much would go (docs/runbooks.md#sweep)" in result.stdout

    def test_are_messages_set_aside_and_the_command_for_them_is_named(
        self, gateway: MakeGateway, own_redis: RedisServer
    ) -> None:
        site = gateway(redis=own_redis)
        own_redis.redis.lpush(names.poison_key(site.name), "{}")
        checks = checks_of(document(Shell(site).run("doctor", "--json")), f"gateway {site.name}")
        assert ("warning", f"1 message was set aside: peerlane gateway poison {site.name}") in checks

    def test_is_one_stale_peer_that_a_sweep_has_left(self, gateway: MakeGateway, own_redis: RedisServer) -> None:
        site = gateway(redis=own_redis)
        report = {"outcome": "swept", "at": 1, "stale": {"expired": 2}, "removed": {"expired": 1}}
        own_redis.redis.hset(names.observer_key(site.name), "sweep", json.dumps(report))
        checks = checks_of(document(Shell(site).run("doctor", "--json")), f"gateway {site.name}")
        assert ("warning", "its last sweep left 1 stale peer in place") in checks

    def test_is_a_writer_of_this_host_on_another_device(self, gateway: MakeGateway, own_redis: RedisServer) -> None:
        site = gateway(redis=own_redis)
        answer = document(Shell(site).run("doctor", site.name, "--json"))
        ((verdict, sentence),) = checks_of(answer, "host")
        assert verdict == "warning"
        assert sentence.startswith("its writer is on this host with another device or data plane")
        assert "only gateways need it" not in str(checks_of(answer, "data plane"))


class TestItsSettings:
    @pytest.mark.parametrize("words", [("doctor", "--settings"), ("doctor", "--settings", "--json")])
    def test_show_every_setting_and_no_password(self, words: tuple[str, ...]) -> None:
        result = peerlane(*words, redis="redis://ada:swordfish@127.0.0.1:1/0")
        assert "PEERLANE_POOLS" in result.stdout or '"pools"' in result.stdout
        assert "swordfish" not in result.output
        assert "(hidden)" in result.stdout
