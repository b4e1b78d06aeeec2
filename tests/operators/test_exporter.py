"""``peerlane exporter``: what it tells of a real gateway, how few series, and what it says while Redis is away."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from commands import peerlane
from fenced import fenced
from gateways import GatewayProcess, MakeClient
from keys import key_number, some_key
from observers import Observer, ending
from prometheus_client import CollectorRegistry, generate_latest
from redis import Redis
from redis.client import Pipeline
from scraping import Scrape, exporting, parsed, value
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.config.redis.client import connect
from peerlane.config.settings import read
from peerlane.tasks.admin.acl import users
from peerlane.tasks.errors import Conflict, SettingsError
from peerlane.tasks.exporter.collector import FleetCollector, MetricsServer
from peerlane.tasks.exporter.families import ALL, MOST_SERIES, PER_PEER
from peerlane.tasks.exporter.samples import few
from peerlane.tasks.status.alarms import raise_alarm
from peerlane.tasks.values.metrics import BUCKETS, OPERATIONS, STAGES

PASSWORD = "only-for-these-tests"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def redis(own_redis: RedisServer) -> Iterator[Redis]:
    made = connect(read(redis_url=own_redis.url))
    yield made
    made.close()


def scraped(redis: Redis, *, per_peer: bool = False) -> Scrape:
    """What an exporter in this process would answer."""
    registry = CollectorRegistry()
    registry.register(cast("Any", FleetCollector(redis, per_peer=per_peer)))
    return parsed(generate_latest(registry).decode())


def family_of(sample: str) -> str:
    """The family that a sample is of."""
    for family in (*ALL, *PER_PEER):
        ends = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        if sample in {family.name + end for end in ends}:
            return family.name
    raise AssertionError(f"{sample} is of no family")


def everything(redis: Redis, name: str) -> None:
    """A gateway that tells all there is to tell, and more than it could."""
    now = int(redis.time()[0])
    histogram = [[3] * (len(BUCKETS) + 1), 1.5]
    outcomes = [["create", f"outcome_{chr(97 + n)}", "", 1] for n in range(26)]
    refusals = [[operation, "refused", f"code_{chr(97 + n)}", 1] for operation in OPERATIONS for n in range(26)]
    writer = {
        "began": now * 1000,
        "seconds": dict.fromkeys(OPERATIONS, histogram),
        "stages": dict.fromkeys(STAGES, histogram),
        "requests": outcomes + refusals,
        "recoveries": 2,
        "recovery_seconds": 0.5,
        "round_trip": 0.001,
        "pools": {f"10.{n}.0.0/16": [n, 65_533] for n in range(9)},
    }
    many = {f"kind_{chr(97 + n)}": 1 for n in range(26)}
    observer: dict[str, Any] = dict.fromkeys(("sweeps", "removed", "reconciliations", "drift"), many)
    observer |= {"began": 1, "received": 2**60, "sent": 7, "read_seconds": 0.25}
    redis.sadd(names.GATEWAYS_KEY, name)
    facts = {"phase": "serving", "heartbeat": now * 1000, "peers": 3, "max_peers": 10, "epoch": 4, "region": "x" * 500}
    facts |= {"version": "1", "dataplane": "memory", "interface": "wg0", "lane_cap": 100}
    redis.hset(names.gateway_key(name), mapping=cast("Any", facts))
    redis.hset(names.metrics_key(name), "writer", json.dumps(writer))
    reports = {"sweep": {"at": now, "outcome": "swept", "stale": {"idle": 3}, "removed": {"idle": 1}}}
    reports |= {"reconcile": {"at": now, "outcome": "reconciled"}}
    fields = {field: json.dumps(report) for field, report in {**reports, "metrics": observer}.items()}
    redis.hset(names.observer_key(name), mapping={"heartbeat": now * 1000, "asked_at": now - 40, **fields})
    for n in range(20):
        raise_alarm(redis, name, f"kind-{n:02}", f"peer {key_number(n)} is wrong", now=now)
    redis.lpush(names.lane_queue(name), "x")
    redis.lpush(names.bulk_queue(name), "x")
    redis.lpush(names.poison_key(name), "x")
    redis.hset(names.seen_key(name), key_number(1), f"1 {now} 10 20 0 0 0 198.51.100.7:40000")
    redis.hset(names.seen_key(name), "no key", f"1 {now} 10 20 0 0 0")


class TestARealFleet:
    """With the rights that ``peerlane acl`` prints."""

    def test_is_told_as_it_is(self, tmp_path: Path, client: MakeClient) -> None:
        lines = [user.line(password=PASSWORD) for user in users(["iad"])]
        with fenced("\n".join([*lines, "user default off"]) + "\n") as server:
            site = GatewayProcess("iad", server.url_of("writer-iad"), tmp_path, dataplane="memory", region="eu")
            site.start()
            observer = Observer(site, redis_url=server.url_of("observer-iad"))
            try:
                with ending(observer), exporting(server.url_of("exporter"), "--per-peer") as exporter:
                    peers, kept = client("iad", redis_url=server.url_of("api-iad")), some_key()
                    peers.create_peer(kept)
                    peers.create_peer(gone := some_key())
                    peers.delete_peer(gone)
                    with pytest.raises(Conflict):
                        peers.create_peer(kept, keepalive=9)

                    def whole() -> Scrape | None:
                        scrape = exporter.scrape()
                        refused = {"op": "create", "outcome": "refused", "code": "conflict"}
                        requests = value(scrape, "peerlane_requests_total", gateway="iad", **refused)
                        swept = value(scrape, "peerlane_sweeps_total", gateway="iad", outcome="swept")
                        addresses = value(scrape, "peerlane_pool_addresses_held", **pool)
                        return scrape if requests and swept and addresses else None

                    pool = {"gateway": "iad", "pool": "10.8.0.0/16"}
                    scrape = eventually(whole, "all of it")
                    assert scrape is not None
                    iad = {"gateway": "iad"}
                    about = {"region": "eu", "dataplane": "memory", "interface": "wg0"}
                    assert value(scrape, "peerlane_redis_up") == 1
                    assert [n for n, labels in scrape if n == "peerlane_gateway_info" and about.items() <= set(labels)]
                    assert value(scrape, "peerlane_gateway_state", **iad, state="active") == 1
                    assert value(scrape, "peerlane_gateway_state", **iad, state="down") == 0
                    created = {"op": "create", "outcome": "created", "code": ""}
                    assert value(scrape, "peerlane_requests_total", **iad, **created) == 2
                    assert value(scrape, "peerlane_request_seconds_count", **iad, op="create") == 3
                    assert value(scrape, "peerlane_request_seconds_bucket", **iad, op="create", le="+Inf") == 3
                    assert value(scrape, "peerlane_request_stage_seconds_count", **iad, stage="queue") == 4
                    assert value(scrape, "peerlane_pool_addresses_held", **pool) == 1
                    assert value(scrape, "peerlane_lane_waiting", **iad, queue="interactive") == 0
                    assert value(scrape, "peerlane_lane_oldest_seconds", **iad, queue="bulk") == 0
                    assert value(scrape, "peerlane_recoveries_total", **iad) == 1
                    assert value(scrape, "peerlane_sweeps_total", **iad, outcome="swept") == 1
                    assert value(scrape, "peerlane_redis_persistence_ok", what="append") == 1
                    assert (value(scrape, "peerlane_heartbeat_age_seconds", **iad, process="observer") or 0) < 15
                    site.stop()
                    stopped = exporter.scrape()
                    assert value(stopped, "peerlane_gateway_state", **iad, state="stopped") == 1
                    assert value(stopped, "peerlane_heartbeat_age_seconds", **iad, process="writer") is None
            finally:
                site.finish()
            refused = {(entry["username"], entry["object"]) for entry in server.redis.acl_log()}
            assert refused <= {("writer-iad", "config|get")}

    def test_without_redis_is_told_as_that_and_again_when_it_is_back(
        self, own_redis: RedisServer, redis: Redis
    ) -> None:
        everything(redis, "iad")
        with exporting(own_redis.url) as exporter:
            assert value(exporter.scrape(), "peerlane_redis_up") == 1
            own_redis.stop()
            for _ in range(3):
                away = exporter.scrape()
                assert value(away, "peerlane_redis_up") == 0
                assert {name for name, _ in away} == {"peerlane_redis_up", "peerlane_exporter_read_seconds"}
            own_redis.start()
            assert value(exporter.scrape(), "peerlane_peers", gateway="iad") == 3
            own_redis.pause()
            assert value(exporter.scrape(), "peerlane_redis_up") == 0
            own_redis.resume()
            assert value(exporter.scrape(), "peerlane_redis_up") == 1
            status, _, said = exporter.stop()
        assert status == 0
        assert said.count("the fleet cannot be read") == 2, said
        assert said.count("the fleet can be read again") == 2, said


class TestSeries:
    def test_are_few_whatever_a_gateway_tells(self, redis: Redis) -> None:
        everything(redis, "iad")
        everything(redis, "fra")
        scrape = scraped(redis)
        of_iad = [sample for sample in scrape if ("gateway", "iad") in sample[1]]
        of_none = [sample for sample in scrape if not any(label == "gateway" for label, _ in sample[1])]
        assert len(of_iad) <= MOST_SERIES
        assert len(of_none) <= 10
        assert len(scrape) == 2 * len(of_iad) + len(of_none)

    def test_are_of_every_family_there_is_and_of_no_other(self, redis: Redis) -> None:
        everything(redis, "iad")
        assert {family_of(name) for name, _ in scraped(redis)} == {family.name for family in ALL}
        with_peers = scraped(redis, per_peer=True)
        assert {family_of(name) for name, _ in with_peers} == {family.name for family in (*ALL, *PER_PEER)}

    def test_have_the_labels_of_their_family(self, redis: Redis) -> None:
        everything(redis, "iad")
        labels_of = {family.name: set(family.label_names) for family in (*ALL, *PER_PEER)}
        for name, labels in scraped(redis, per_peer=True):
            assert {label for label, _ in labels} - {"le"} == labels_of[family_of(name)]

    def test_hold_no_key_no_error_and_nothing_long(self, redis: Redis) -> None:
        everything(redis, "iad")
        values = {text for _, labels in scraped(redis) for _, text in labels}
        assert max(map(len, values)) <= 64
        assert not [text for text in values if key_number(1) in text or "wrong" in text or "198.51" in text]

    def test_beyond_the_known_number_are_one_and_none_is_lost(self, redis: Redis) -> None:
        everything(redis, "iad")
        scrape = scraped(redis)
        requests = [count for (name, _), count in scrape.items() if name == "peerlane_requests_total"]
        assert sum(requests) == 26 * 4
        assert value(scrape, "peerlane_requests_total", gateway="iad", op="other", outcome="other", code="other")
        assert value(scrape, "peerlane_alarm", gateway="iad", kind="other") == 1

    def test_of_peers_are_told_when_they_are_asked_for(self, redis: Redis) -> None:
        everything(redis, "iad")
        labels = {"gateway": "iad", "interface": "wg0", "public_key": key_number(1)}
        assert not [name for name, _ in scraped(redis) if name.startswith("wireguard_")]
        scrape = scraped(redis, per_peer=True)
        assert value(scrape, "wireguard_received_bytes_total", **labels) == 10
        assert value(scrape, "wireguard_sent_bytes_total", **labels) == 20
        assert (value(scrape, "wireguard_latest_handshake_seconds", **labels) or 0) > 1_600_000_000
        assert len([name for name, _ in scrape if name.startswith("wireguard_")]) == 3, "what is no key is left out"

    def test_of_a_gateway_that_has_told_nothing_but_its_name_are_there(self, redis: Redis) -> None:
        redis.sadd(names.GATEWAYS_KEY, "iad")
        scrape = scraped(redis)
        assert value(scrape, "peerlane_gateway_state", gateway="iad", state="down") == 1
        assert value(scrape, "peerlane_peers", gateway="iad") is None


def test_a_scrape_is_three_round_trips_however_many_gateways_there_are(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        everything(redis, f"gw-{number:02}")
    sent: list[int] = []
    execute, alone = Pipeline.execute, cast("Any", Redis).execute_command

    def counting(self: Pipeline, *args: Any, **options: Any) -> Any:
        sent.append(1)
        return execute(self, *args, **options)

    def counting_alone(self: Redis, *args: Any, **options: Any) -> Any:
        sent.append(1)
        return alone(self, *args, **options)

    monkeypatch.setattr(Pipeline, "execute", counting)
    monkeypatch.setattr(Redis, "execute_command", counting_alone)
    assert value(scraped(redis), "peerlane_peers", gateway="gw-29") == 3
    assert len(sent) == 3


def test_the_age_of_the_oldest_message_is_since_it_was_sent(redis: Redis) -> None:
    everything(redis, "iad")
    now = int(redis.time()[0]) * 1000
    redis.hset(names.gateway_key("iad"), mapping={"oldest_sent_at": now - 7_000, "heartbeat": now - 90_000})
    scrape = scraped(redis)
    assert 7 <= (value(scrape, "peerlane_lane_oldest_seconds", gateway="iad", queue="interactive") or 0) < 20
    # Nobody has told of it: it came after the writer's last word.
    assert 90 <= (value(scrape, "peerlane_lane_oldest_seconds", gateway="iad", queue="bulk") or 0) < 110


class TestTheCommand:
    @pytest.mark.parametrize("address", ["", "9471", "localhost", ":9471", "localhost:x", "localhost:70000", "a:-1"])
    def test_refuses_what_is_no_address(self, address: str) -> None:
        result = peerlane("exporter", "--listen", address)
        assert result.exit_code == 2
        assert "is no HOST:PORT" in result.stderr

    def test_says_that_nothing_can_listen_there(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            result = peerlane("exporter", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert result.exit_code == 2
        assert "Address already in use" in result.stderr

    def test_says_which_extra_is_missing(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with pytest.raises(SettingsError, match=r"peerlane\[exporter\]"):
            MetricsServer(FleetCollector(redis), "127.0.0.1", 0)


def test_the_documentation_lists_every_family_and_no_other() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    listed = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert listed == {family.name for family in (*ALL, *PER_PEER)}


def test_what_is_beyond_the_known_takes_no_known_ones_place() -> None:
    counted = {(word, "x", ""): 1.0 for word in ("a", "b", "c", "other")} | {
        ("other", "other", "other"): 2.0,
        ("z", "x", ""): 4.0,
    }
    kept = list(few("peerlane_requests_total", counted, 3, first=[("z", "x", "")]))
    assert [labels for _, labels, _ in kept] == [("z", "x", ""), ("a", "x", ""), ("other", "other", "other")]
    assert kept[-1][2] == sum(counted.values()) - 5


def test_alarms_of_the_known_kinds_are_told_before_others(redis: Redis) -> None:
    everything(redis, "iad")
    redis.hset(names.alarms_key("iad"), "sweep", '{"message": "m", "since": 1, "detail": {}}')
    assert value(scraped(redis), "peerlane_alarm", gateway="iad", kind="sweep") == 1
