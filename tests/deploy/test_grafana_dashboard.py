"""The dashboard: every query is Prometheus' language and asks for what is told; no family is left without a panel."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard
from prometheus import GROUPS, metrics_in, promtool

from peerlane.tasks.exporter.families import ALL, Family
from peerlane.tasks.lane.telemetry import REQUESTS, SECONDS

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "peerlane.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
ENDS = ("_bucket", "_sum", "_count")


def queries() -> Iterator[str]:
    """Every expression, with Grafana's variables as they could be."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield str(target["expr"]).replace("$__rate_interval", "5m").replace("$gateway", "iad|fra")


def metric_names() -> set[str]:
    names = {REQUESTS, *(SECONDS + end for end in ENDS)}
    for family in ALL:
        names |= {family.name + end for end in (ENDS if family.kind == "histogram" else ("",))}
    return names


def is_shown(family: Family) -> bool:
    return any(name.startswith(family.name) for query in queries() for name in metrics_in(query))


def lost(given: Any, kept: Any, place: str = "") -> Iterator[str]:
    """Where Grafana's types have kept less than they were given, or something else."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in cast("dict[str, Any]", given).items():
            yield from lost(value, cast("dict[str, Any]", kept).get(name, "nothing"), f"{place}.{name}")
    elif isinstance(given, list) and isinstance(kept, list) and len(cast("Any", given)) == len(cast("Any", kept)):
        for number, pair in enumerate(zip(cast("list[Any]", given), cast("list[Any]", kept), strict=True)):
            yield from lost(*pair, f"{place}[{number}]")
    elif given != kept:
        yield place


def kept_by_grafana(document: dict[str, Any]) -> set[str]:
    """What is lost of a dashboard on its way through Grafana's own types; panels' and queries' ones, too."""
    plugins.register_default_plugins()
    read = GrafanaDashboard.from_json(document)
    return set(lost(document, json.loads(json.dumps(read, cls=JSONEncoder))))


def test_every_field_is_one_that_grafana_knows() -> None:
    # Grafana's own exports have it, beside ``query``.
    assert kept_by_grafana(DASHBOARD) == {".templating.list[1].definition"}


def test_a_field_that_grafana_does_not_know_is_noticed() -> None:
    document: dict[str, Any] = json.loads(json.dumps(DASHBOARD))
    places = [number for number, panel in enumerate(document["panels"]) if panel["type"] == "timeseries"]
    document["panels"][places[0]]["options"]["legend"]["displaymode"] = "list"
    document["panels"][places[1]]["targets"][0]["expression"] = "up"
    document["panels"][places[2]]["fieldConfig"]["defaults"]["custom"]["fillopacity"] = 3
    assert len(kept_by_grafana(document)) == 4


def test_every_query_asks_for_what_is_told() -> None:
    assert {name for query in queries() for name in metrics_in(query)} <= metric_names()
    assert {name for query in queries() for name in re.findall(r"peerlane:[\w:]+", query)} <= RECORDED


def test_every_family_has_a_panel() -> None:
    # What a gateway is, which table joins it; when and how often a writer began, which alerts ask.
    without = {"peerlane_gateway_info", "peerlane_writer_start_time_seconds", "peerlane_writer_epoch"}
    assert {family.name for family in ALL if not is_shown(family)} == without


@pytest.mark.needs("promtool")
def test_every_query_is_in_prometheus_language(tmp_path: Path) -> None:
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "queries.yml")


@pytest.mark.needs("promtool")
def test_the_example_of_a_configuration_is_one() -> None:
    command = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(
        command, cwd=ROOT / "deploy" / "prometheus", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = cast("dict[str, int]", panel["gridPos"])
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["description"].endswith(".") for panel in PANELS)
