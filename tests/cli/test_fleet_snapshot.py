"""The one reader of gateways' status: what it costs, what it tells, and what it says where Redis refuses."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, cast

import pytest
from commands import document, peerlane
from fenced import fenced, printed
from gateways import MakeGateway, MakeSettings, close
from redis import Redis
from servers import RedisServer

from peerlane import OutcomeUnknown, StorageError, Unavailable, gateways
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.status.alarms import raise_alarm
from peerlane.tasks.status.fleet_snapshot import FleetReader, read_gateway
from peerlane.tasks.status.gateway_status import (
    GatewayStatus,
    missed_count,
    observer_is_live,
    observer_silence,
    removed_count,
)


def register(redis: Redis, name: str, **facts: object) -> None:
    """A gateway as its writer and its observer leave it in Redis."""
    now = int(redis.time()[0])
    redis.sadd(names.GATEWAYS_KEY, name)
    fields = {"public_key": "k", "phase": "serving", "heartbeat": now * 1000, "peers": 3, "max_peers": 10, **facts}
    redis.hset(names.gateway_key(name), mapping={key: str(value) for key, value in fields.items()})
    redis.hset(names.observer_key(name), mapping={"heartbeat": now * 1000, "asked_at": now - 40})


@pytest.fixture
def fleet(own_redis: RedisServer) -> RedisServer:
    """Fifty gateways."""
    for number in range(50):
        register(own_redis.redis, f"gw-{number:02}")
    raise_alarm(own_redis.redis, "gw-07", "clock", "it is late", now=100)
    own_redis.redis.lpush(names.poison_key("gw-08"), "x", "y")
    return own_redis


def round_trips(server: RedisServer, *words: str) -> tuple[int, Any]:
    """How often a command wrote to Redis and waited for the answers, by the events of Redis' own loop."""
    sent: list[int] = []
    original = cast("Any", Redis).execute_command
    from redis.client import Pipeline  # noqa: PLC0415 - counted for this call alone

    through = Pipeline.execute

    def counting(self: Pipeline, *args: Any, **options: Any) -> Any:
        sent.append(1)
        return through(self, *args, **options)

    def alone(self: Redis, *args: Any, **options: Any) -> Any:
        sent.append(1)
        return original(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "execute", counting)
        patch.setattr(Redis, "execute_command", alone)
        result = peerlane(*words, redis=server.url)
    return len(sent), result


class TestWhatItCosts:
    def test_is_two_round_trips_however_many_gateways_there_are(self, fleet: RedisServer) -> None:
        count, result = round_trips(fleet, "gateway", "list", "--json")
        assert len(document(result)["gateways"]) == 50
        assert count == 2
        fleet.redis.delete(names.GATEWAYS_KEY)
        register(fleet.redis, "alone")
        assert round_trips(fleet, "gateway", "list", "--json")[0] == 2
        assert round_trips(fleet, "gateway", "show", "alone", "--json")[0] == 2

    def test_is_two_round_trips_of_the_python_api_too(self, fleet: RedisServer, settings: MakeSettings) -> None:
        app = PeerlaneApp(settings(redis_url=fleet.url))
        before: Any = fleet.redis.info("commandstats")
        assert [info.name for info in gateways(app)] == [f"gw-{number:02}" for number in range(50)]
        after: Any = fleet.redis.info("commandstats")
        calls = {
            name: int(stats["calls"]) - int(before.get(name, {"calls": 0})["calls"]) for name, stats in after.items()
        }
        assert calls["cmdstat_hgetall"] == 50, "no alarms, no observers: API hosts may not see them"
        assert (calls["cmdstat_smembers"], calls["cmdstat_llen"]) == (1, 100)
        close(app)


class TestWhatItTells:
    def test_is_the_same_by_every_command(self, fleet: RedisServer) -> None:
        listed = {
            row["name"]: row for row in document(peerlane("gateway", "list", "--json", redis=fleet.url))["gateways"]
        }
        shown = document(peerlane("gateway", "show", "gw-07", "--json", redis=fleet.url))
        rows = document(peerlane("top", "--once", "--json", "--interval", "0.2", redis=fleet.url))["gateways"]
        (top,) = [row for row in rows if row["gateway"] == "gw-07"]
        assert shown["alarms"] == listed["gw-07"]["alarms"] == top["alarms"]
        assert [alarm["kind"] for alarm in shown["alarms"]] == ["clock"]
        for view in (shown, listed["gw-07"], top):
            assert 40 <= view["beat_silent_for"] < 100
            assert view["observer_silent_for"] < 15

    def test_is_messages_that_were_set_aside(self, fleet: RedisServer) -> None:
        assert document(peerlane("gateway", "show", "gw-08", "--json", redis=fleet.url))["set_aside"] == 2
        assert (
            "2 messages: see `peerlane gateway poison gw-08`"
            in peerlane("gateway", "show", "gw-08", redis=fleet.url).stdout
        )
        assert "gw-08: 2 messages set aside" in peerlane("gateway", "list", redis=fleet.url).stderr
        assert (
            "messages set aside (`peerlane gateway poison`): gw-08 (2)"
            in peerlane("top", "--once", "--interval", "0.2", redis=fleet.url).stdout
        )
        assert "2 messages were set aside" in peerlane("doctor", redis=fleet.url).stdout

    def test_is_when_beat_asked_last(self, fleet: RedisServer) -> None:
        assert re.search(
            r"beat: last asked for .* 4\d s ago$", peerlane("gateway", "list", redis=fleet.url).stderr, re.MULTILINE
        )
        now = int(fleet.redis.time()[0])
        for number in range(50):
            fleet.redis.hset(names.observer_key(f"gw-{number:02}"), "asked_at", now - 3600)
        assert "60 min ago: is one running?" in peerlane("gateway", "list", redis=fleet.url).stderr
        assert (
            "beat has asked for nothing for 60 min"
            in peerlane("top", "--once", "--interval", "0.2", redis=fleet.url).stdout
        )
        answer = document(peerlane("doctor", "--json", redis=fleet.url))["checks"]
        assert [check["verdict"] for check in answer if check["what"] == "beat"] == ["warning"]

    def test_is_a_full_lane(self, own_redis: RedisServer) -> None:
        register(own_redis.redis, "iad", lane_cap=2)
        own_redis.redis.lpush(names.lane_queue("iad"), "a", "b")
        assert (
            "full lanes, which refuse requests: iad (2 wait)"
            in peerlane("top", "--once", "--interval", "0.2", redis=own_redis.url).stdout
        )
        assert "its lane is full, 2 requests wait" in peerlane("doctor", redis=own_redis.url).stdout

    def test_is_a_writer_that_ended_in_good_order(self, gateway: MakeGateway, own_redis: RedisServer) -> None:
        site = gateway(redis=own_redis)
        site.stop()
        shown = peerlane("gateway", "show", site.name, redis=own_redis.url).stdout
        assert re.search(r"state +stopped, \d+ s ago", shown), shown
        assert re.search(
            rf"^{site.name} +stopped ", peerlane("gateway", "list", redis=own_redis.url).stdout, re.MULTILINE
        )
        answer = document(peerlane("gateway", "show", site.name, "--json", redis=own_redis.url))
        assert (answer["state"], answer["stopped"], answer["silent_for"]) == ("down", True, None)
        assert abs(answer["stopped_at"] - int(own_redis.redis.time()[0])) < 60
        assert "1 stopped" in peerlane("top", "--once", "--interval", "0.2", redis=own_redis.url).stdout

    def test_is_when_an_alarms_numbers_were_written(self, own_redis: RedisServer) -> None:
        register(own_redis.redis, "iad")
        now = int(own_redis.redis.time()[0])
        raise_alarm(own_redis.redis, "iad", "sweep", "9 of 10 are stale", now=now - 600)
        raise_alarm(own_redis.redis, "iad", "sweep", "10 of 10 are stale", now=now - 60)
        shown = peerlane("gateway", "show", "iad", redis=own_redis.url).stdout
        assert re.search(r"10 of 10 are stale \(for 10 min, as of 6\d s ago\)", shown), shown


class TestASweepThatFailed:
    REPORT: ClassVar[dict[str, Any]] = {
        "outcome": "swept",
        "at": 1,
        "stale": {"idle": 17},
        "removed": {},
        "kept": {},
        "peers": 40,
    }

    def test_is_shown_as_one(self, own_redis: RedisServer) -> None:
        register(own_redis.redis, "iad")
        stopped = {"code": "unavailable", "message": "the lane is full"}
        report = json.dumps({**self.REPORT, "stopped": stopped})
        own_redis.redis.hset(names.observer_key("iad"), "sweep", report)
        assert "-0 of 17" in peerlane("top", "--once", "--interval", "0.2", redis=own_redis.url).stdout
        shown = peerlane("gateway", "show", "iad", redis=own_redis.url).stdout
        assert re.search("nothing of 17 idle removed; the lane is full", shown)
        assert (
            "its last sweep left 17 stale peers in place: the lane is full"
            in peerlane("doctor", redis=own_redis.url).stdout
        )

    @pytest.mark.parametrize(
        ("changes", "missed"),
        [
            ({}, 17),
            ({"removed": {"idle": 17}}, 0),
            ({"removed": {"idle": 10}, "kept": {"seen": 7}}, 0),
            ({"removed": {"idle": 10}}, 7),
            ({"outcome": "running", "removed": 3, "stale": {}}, 0),
            ({"outcome": "refused"}, 0),
            ({"stale": "odd", "removed": ["odd"], "kept": True}, 0),
        ],
    )
    def test_is_told_from_one_that_had_nothing_to_do(self, changes: dict[str, Any], missed: int) -> None:
        assert missed_count(self.REPORT | changes) == missed
        assert removed_count({"removed": 3}) == 3


class TestAnObserver:
    @pytest.mark.parametrize(
        ("heartbeat", "live"),
        [
            (b"85000", True),
            (b"84999", False),
            (b"0", False),
            (b"", False),
            (None, False),
            (b"odd", False),
            (b"200000", True),
        ],
    )
    def test_is_live_up_to_one_limit(self, heartbeat: bytes | None, live: bool) -> None:  # noqa: FBT001 - a parameter
        assert observer_is_live(observer_silence(heartbeat, 100_000)) is live
        raw = {} if heartbeat is None else {b"heartbeat": heartbeat}
        lane = LaneState.of("iad", {}, 0, 0, now=100_000)
        assert GatewayStatus.of(lane, now=100.0, observer=raw).observed is live


class TestWhatIsRefused:
    def test_is_told_as_a_refusal(self, capsys: pytest.CaptureFixture[str], settings: MakeSettings) -> None:
        with fenced(printed(capsys, "iad", "--passwords")) as server:
            register(server.redis, "iad")
            refusal = document(peerlane("gateway", "list", "--json", redis=server.url_of("beat")))["error"]
            assert refusal["code"] == "storage_error"
            assert "this user may not do that" in refusal["message"]
            assert "could not be reached" not in refusal["message"]
            app = PeerlaneApp(settings(redis_url=server.url_of("beat")))
            for ask in (lambda: gateways(app), lambda: read_gateway(app, "iad")):
                with pytest.raises(StorageError, match="may not do that"):
                    ask()
            close(app)

    def test_leaves_what_may_be_seen(self, capsys: pytest.CaptureFixture[str]) -> None:
        with fenced(printed(capsys, "iad", "--passwords")) as server:
            register(server.redis, "iad")
            result = peerlane("gateway", "list", redis=server.url_of("api-iad"))
            assert "iad" in result.stdout
            assert "alarms and observers of 1 gateways are not for this Redis user" in result.stderr
            shown = peerlane("gateway", "show", "iad", redis=server.url_of("api-iad"))
            assert "not for this Redis user to see" in shown.stdout

    def test_is_not_an_outage(self, own_redis: RedisServer) -> None:
        redis = Redis.from_url(own_redis.url)
        with pytest.raises(Unavailable, match="no gateway iad"):
            FleetReader(redis, ("iad",)).read()
        redis.close()
        own_redis.stop()
        with pytest.raises(OutcomeUnknown, match="could not be reached"):
            FleetReader(redis).read()
        redis.close()


def test_what_another_version_reports_is_shown_as_far_as_it_can_be_read(own_redis: RedisServer) -> None:
    register(own_redis.redis, "iad")
    odd: dict[Any, Any] = {
        "reading": '{"at": 1e400, "peers": "many", "seconds": null}',
        "sweep": f'{{"at": {10**400}, "outcome": "swept", "removed": 3, "stopped": "yes"}}',
        "reconcile": '{"outcome": "running", "of": "x", "at": []}',
    }
    own_redis.redis.hset(names.observer_key("iad"), mapping=odd)
    for kind, since in (("clock", "1e400"), ("sweep", str(10**400)), ("device", '"long ago"')):
        own_redis.redis.hset(names.alarms_key("iad"), kind, f'{{"message": "m", "since": {since}, "detail": {{}}}}')
    for words in (("gateway", "list"), ("gateway", "show", "iad"), ("top", "--once", "--interval", "0.2")):
        for form in ((), ("--json",)):
            result = peerlane(*words, *form, redis=own_redis.url)
            assert result.exit_code == 0, result.output
