"""The rules, promtool, and a real Prometheus on loopback that scrapes often and evaluates rules with short spans."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from waiting import eventually

from peerlane.workers.demo.local_fleet import free_port

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
#: How often rules are evaluated, and for how long a cause holds before its alert fires.
EVERY = "500ms"


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics_in(expression: str) -> Iterator[str]:
    """Names of the metrics that an expression asks for."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"|by \([^)]*\)|on \([^)]*\)", "", expression)
    yield from re.findall(r"(?<![:\w])(?:peerlane|wireguard)_\w+(?![:\w(])", bare)


def hastened(replaced: Mapping[str, Mapping[str, str]]) -> str:
    """The rules, but that each alert fires half a second after its cause; ``replaced``: alert → text → text."""
    document: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for group in document["groups"]:
        group["interval"] = EVERY
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = EVERY
            for old, new in replaced.get(rule.get("alert", ""), {}).items():
                assert old in rule["expr"], f"{rule['alert']} has no {old}"
                rule["expr"] = rule["expr"].replace(old, new)
    return yaml.safe_dump(document, width=1000)


class Prometheus:
    """One server with its data in a directory of its own."""

    def __init__(
        self, directory: Path, target: str, rules: str, *, scraped: str = "3s", evaluated: str = EVERY
    ) -> None:
        self._directory = directory
        self._log = directory / "prometheus.log"
        (directory / "rules.yml").write_text(rules)
        configuration = {
            # While Redis stands still an exporter answers after 2 s; that answer counts.
            "global": {"scrape_interval": scraped, "scrape_timeout": "3s", "evaluation_interval": evaluated},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "peerlane", "static_configs": [{"targets": [target]}]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self._port = free_port()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(lambda: self._answer("status/buildinfo"), "Prometheus to answer")

    def _answer(self, path: str) -> Any:
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}", timeout=10) as answer:
                return json.loads(answer.read())["data"]
        except OSError:
            return None

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self._alerts() if alert["state"] == "firing"}

    def summary(self, name: str) -> str:
        """What a firing alert says."""
        summaries = [
            alert["annotations"]["summary"] for alert in self._alerts() if alert["labels"]["alertname"] == name
        ]
        return str(summaries[0])

    def _alerts(self) -> list[dict[str, Any]]:
        answer = self._answer("alerts")
        return [] if answer is None else cast("list[dict[str, Any]]", answer["alerts"])

    def await_firing(self, name: str, *, within: float = 40.0) -> str:
        """Return what an alert says once it fires."""
        eventually(lambda: name in self.firing(), f"{name} to fire", within=within, every=0.2)
        text = self.summary(name)
        assert not re.search(r"[{}]|<error", text), text
        return text

    def await_end(self, name: str, *, within: float = 40.0) -> None:
        """Return once an alert fires no more."""
        eventually(lambda: name not in self.firing(), f"{name} to end", within=within, every=0.2)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
