"""The alert rules: well-formed, each with a runbook; each fires at its fault, and none while all is well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus import GROUPS, RULES, metrics_in, promtool

from peerlane.tasks.exporter.families import ALL, STATES
from peerlane.tasks.lane.telemetry import REQUESTS

ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule
}

Series = Mapping[str, str]


def state(current: str) -> dict[str, str]:
    return {f'peerlane_gateway_state{{gateway="iad", state="{each}"}}': f"{each == current:d}x600" for each in STATES}


#: An hour of a gateway that is well, a sample a minute.
WELL: Series = {
    "peerlane_redis_up": "1x600",
    'peerlane_redis_persistence_ok{what="append"}': "1x600",
    "peerlane_redis_memory_used_bytes": "5e8x600",
    "peerlane_redis_memory_limit_bytes": "1e9x600",
    **state("active"),
    'peerlane_redis_round_trip_seconds{gateway="iad"}': "0.002x600",
    'peerlane_writer_epoch{gateway="iad"}': "7x600",
    'peerlane_peers{gateway="iad"}': "50x600",
    'peerlane_peers_limit{gateway="iad"}': "100x600",
    'peerlane_pool_addresses{gateway="iad", pool="10.8.0.0/16"}': "65533x600",
    'peerlane_pool_addresses_held{gateway="iad", pool="10.8.0.0/16"}': "50x600",
    'peerlane_lane_waiting{gateway="iad", queue="interactive"}': "3x600",
    'peerlane_lane_waiting{gateway="iad", queue="bulk"}': "70x600",
    'peerlane_lane_limit{gateway="iad"}': "100x600",
    'peerlane_lane_oldest_seconds{gateway="iad", queue="interactive"}': "0.05x600",
    'peerlane_lane_oldest_seconds{gateway="iad", queue="bulk"}': "5x600",
    'peerlane_heartbeat_age_seconds{gateway="iad", process="writer"}': "1x600",
    'peerlane_heartbeat_age_seconds{gateway="iad", process="observer"}': "1x600",
    'peerlane_heartbeat_age_seconds{gateway="iad", process="beat"}': "40x600",
    'peerlane_requests_total{gateway="iad", op="create", outcome="created", code=""}': "0+60x600",
    'peerlane_requests_total{gateway="iad", op="create", outcome="refused", code="conflict"}': "0+5x600",
    'peerlane_requests_total{gateway="iad", op="create", outcome="refused", code="writer_error"}': "0x600",
    'peerlane_request_seconds_bucket{gateway="iad", op="create", le="0.25"}': "0+59.9x600",
    'peerlane_request_seconds_count{gateway="iad", op="create"}': "0+60x600",
    'peerlane_client_requests_total{gateway="iad", code="ok"}': "0+60x600",
    'peerlane_client_requests_total{gateway="iad", code="conflict"}': "0+60x600",
    'peerlane_client_requests_total{gateway="iad", code="unavailable"}': "0x600",
    'peerlane_client_requests_total{gateway="iad", code="timed_out"}': "0+0.01x600",
    'peerlane_sweep_age_seconds{gateway="iad"}': "30x600",
    'peerlane_sweep_missed_peers{gateway="iad"}': "0x600",
    'peerlane_drift_total{gateway="iad", kind="missing"}': "4x600",
    'peerlane_set_aside_messages{gateway="iad"}': "0x600",
}
GONE = "_x600"

#: Alert → what differs from a gateway that is well; the alert is to fire after an hour.
FAULTS: dict[str, Series] = {
    "PeerlaneRedisUnreachable": {"peerlane_redis_up": "0x600"},
    "PeerlaneExporterMissing": dict.fromkeys(WELL, GONE),
    "PeerlaneRedisPersistence": {'peerlane_redis_persistence_ok{what="append"}': "1x50 0x500"},
    "PeerlaneRedisMemory": {"peerlane_redis_memory_used_bytes": "9.5e8x600"},
    "PeerlaneRedisSlow": {'peerlane_redis_round_trip_seconds{gateway="iad"}': "0.2x600"},
    "PeerlaneGatewayDown": state("down"),
    "PeerlaneGatewayStopped": state("stopped"),
    "PeerlaneGatewayRecovering": state("recovering"),
    "PeerlaneWriterStuck": state("stuck"),
    "PeerlaneWriterRestarts": {'peerlane_writer_epoch{gateway="iad"}': "7x55 8 9 10 11 11x500"},
    "PeerlaneLaneLate": {'peerlane_lane_oldest_seconds{gateway="iad", queue="interactive"}': "3x600"},
    "PeerlaneLaneFilling": {'peerlane_lane_waiting{gateway="iad", queue="bulk"}': "85x600"},
    "PeerlaneCallersRefused": {'peerlane_client_requests_total{gateway="iad", code="unavailable"}': "0x50 0+3x500"},
    "PeerlaneRequestsFail": {
        'peerlane_requests_total{gateway="iad", op="create", outcome="refused", code="writer_error"}': "0x58 1x500"
    },
    "PeerlanePoolNearlyFull": {'peerlane_pool_addresses_held{gateway="iad", pool="10.8.0.0/16"}': "60000x600"},
    "PeerlaneAlarm": {'peerlane_alarm{gateway="iad", kind="clock"}': "_x58 1x500"},
    "PeerlaneObserverAway": {'peerlane_heartbeat_age_seconds{gateway="iad", process="observer"}': "1x50 60+60x500"},
    "PeerlaneBeatMissing": {'peerlane_heartbeat_age_seconds{gateway="iad", process="beat"}': "40x50 60+60x500"},
    "PeerlaneSweepsMissing": {'peerlane_sweep_age_seconds{gateway="iad"}': "30x50 60+60x500"},
    "PeerlaneSweepFails": {'peerlane_sweep_missed_peers{gateway="iad"}': "0x50 3x500"},
    "PeerlaneDrift": {'peerlane_drift_total{gateway="iad", kind="missing"}': "4x55 5x500"},
    "PeerlaneSetAside": {'peerlane_set_aside_messages{gateway="iad"}': "3x600"},
    "PeerlaneCreateLatencyBurnFast": {
        'peerlane_request_seconds_bucket{gateway="iad", op="create", le="0.25"}': "0+50x600"
    },
    "PeerlaneCreateLatencyBurnSlow": {
        'peerlane_request_seconds_bucket{gateway="iad", op="create", le="0.25"}': "0+57x600"
    },
    "PeerlaneAvailabilityBurnFast": {'peerlane_client_requests_total{gateway="iad", code="timed_out"}': "0+3x600"},
    "PeerlaneAvailabilityBurnSlow": {'peerlane_client_requests_total{gateway="iad", code="timed_out"}': "0+0.5x600"},
}
#: What a fault brings about besides.
BESIDES: dict[str, set[str]] = {
    "PeerlaneCreateLatencyBurnFast": {"PeerlaneCreateLatencyBurnSlow"},
    "PeerlaneAvailabilityBurnFast": {"PeerlaneAvailabilityBurnSlow"},
}
#: When to look, in minutes: the slow ones hold for an hour.
LATE = 2 * 60 + 30


def scenario(name: str, series: Series, firing: set[str], minutes: int) -> dict[str, Any]:
    """A test of promtool's: which alerts fire after so many minutes, and that no other does."""
    inputs = [{"series": each, "values": values} for each, values in series.items() if values != GONE]
    # One expression for all: a test of one alert compares its annotations too.
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)]
    query = 'max by (alertname) (ALERTS{alertstate="firing"})'
    tests = [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": samples}]
    return {"name": name, "interval": "1m", "input_series": inputs, "promql_expr_test": tests}


@pytest.mark.needs("promtool")
class TestPromtool:
    def test_accepts_the_rules(self) -> None:
        assert f"{sum(len(group['rules']) for group in GROUPS)} rules found" in promtool("check", "rules", RULES)

    @pytest.mark.timeout(400)
    def test_sees_each_alert_fire_at_its_fault_and_none_while_all_is_well(self, tmp_path: Path) -> None:
        tests = [scenario("all is well", WELL, set(), minutes) for minutes in (60, LATE)]
        for alert, differs in FAULTS.items():
            series = {**WELL, **differs}
            firing = {alert, *BESIDES.get(alert, ())}
            tests.append(scenario(alert, series, firing, LATE if alert in SLOW or BESIDES.get(alert) else 60))
        document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(document, sort_keys=False, width=1000))
        assert "SUCCESS" in promtool("test", "rules", tmp_path / "tests.yml")


#: They hold for an hour.
SLOW = {name for name, rule in ALERTS.items() if rule.get("for") == "1h"}


def test_every_alert_has_its_fault() -> None:
    assert set(FAULTS) == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_how_urgent_it_is_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}"
    assert rule["annotations"]["summary"].endswith((".", "?"))


def test_the_head_of_the_file_lists_every_alert() -> None:
    head = RULES.read_text().partition("groups:")[0]
    assert re.findall(r"\bPeerlane\w+", head) == list(ALERTS)


def test_every_rule_asks_for_what_is_told() -> None:
    known = {family.name for family in ALL} | {REQUESTS}
    known |= {
        family.name + end for family in ALL if family.kind == "histogram" for end in ("_bucket", "_sum", "_count")
    }
    rules = [cast("dict[str, Any]", rule) for group in GROUPS for rule in group["rules"]]
    assert {name for rule in rules for name in metrics_in(rule["expr"])} <= known


def test_metrics_are_found_in_an_expression() -> None:
    expression = (
        'max by (gateway) (peerlane_a{x="peerlane_no"}) > 0 and on (peerlane_b) rate(peerlane_c[5m]) > peerlane:d:e_5m'
    )
    assert list(metrics_in(expression)) == ["peerlane_a", "peerlane_c"]
