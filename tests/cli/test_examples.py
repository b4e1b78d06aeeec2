"""The examples do what they say, against a real gateway."""

from __future__ import annotations

import subprocess
import sys

from gateways import ROOT, GatewayProcess, MakeGateway, clean_environment


def example(name: str, gateway: GatewayProcess, *words: str) -> str:
    """What it prints. CalledProcessError where it fails."""
    return subprocess.run(
        [sys.executable, "-W", "error", f"examples/{name}.py", gateway.name, *words],
        cwd=ROOT,
        env=clean_environment() | {"PEERLANE_REDIS_URL": str(gateway.settings["redis_url"]), "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_one_peer_is_created_and_deleted(gateway: MakeGateway) -> None:
    said = example("one_peer", gateway(endpoint="gw.example.net:51820")).splitlines()
    assert said[0].startswith("created: 10.8.0.2/32, fd00:8::2/128 through gw.example.net:51820 (")
    assert said[1] == "deleted"


def test_a_flood_is_answered_one_by_one(gateway: MakeGateway) -> None:
    said = example("flood", gateway(), "200").splitlines()
    assert said[0].startswith("200 created in ")
    assert said[1].startswith("200 deleted in ")
