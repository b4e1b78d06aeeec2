"""``active`` means served: a writer that gives signs of life while its main thread hangs is told as what it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import Shell
from gateways import GatewayProcess, MakeClient, MakeGateway, MakeSettings, close
from keys import some_key
from waiting import PATIENCE, eventually

from peerlane import Fleet
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.errors import Draining, TimedOut, Unavailable
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.workers.host.pulse import LONG, SILENCE, SOON, Pulse

NOW = 1_800_000_000_000


def lane(**facts: object) -> LaneState:
    fields = {"heartbeat": NOW - 800, "phase": "serving", "state": "active", **facts}
    raw = {name.encode(): str(value).encode() for name, value in fields.items()}
    return LaneState.of("iad", raw, 0, 0, now=NOW)


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({}, "active"),  # a writer of an earlier version does not say
        ({"idle_ms": 900, "idle_may_ms": 5_000}, "active"),
        ({"idle_ms": 5_001, "idle_may_ms": 5_000}, "stuck"),
        ({"idle_ms": 60_000, "idle_may_ms": 120_000}, "active"),  # a long list is being carried out
        ({"idle_ms": 60_000, "idle_may_ms": 120_000, "phase": "recovering"}, "recovering"),
        ({"idle_ms": 121_000, "idle_may_ms": 120_000, "phase": "recovering"}, "stuck"),
        ({"idle_ms": 6_000, "idle_may_ms": 5_000, "state": "draining"}, "stuck"),
        ({"idle_ms": 6_000, "idle_may_ms": 5_000, "heartbeat": NOW - 60_000}, "down"),
        ({"idle_ms": "soon", "idle_may_ms": "later"}, "active"),
    ],
)
def test_a_lane_that_is_not_turned_for_longer_than_its_writer_said_is_stuck(
    facts: dict[str, object], state: str
) -> None:
    lane_state = lane(**facts)
    assert lane_state.state == state
    assert GatewayInfo.from_state(lane_state).state == state
    refusal = lane_state.refusal(waiting=0, create=True)
    assert (refusal is None) == (state == "active")
    assert not isinstance(refusal, Draining)


def test_the_main_thread_says_that_it_goes_on_and_whether_it_serves() -> None:
    reading, writing = os.pipe()
    pulse = Pulse(0.0)
    assert pulse.idle() > SOON
    pulse.tell_by(writing)
    pulse.turn(LONG)
    pulse.serving = True
    pulse.turn()
    assert pulse.idle() < SOON
    for _ in range(1000):
        pulse.turn()
    pulse.turn(LONG)
    turned = pulse.turned
    pulse.wait()
    assert pulse.turned == turned, "who waits for Redis serves nobody, and is alive"
    said = os.read(reading, 65536).decode().splitlines()
    changes = [line for line, before in zip(said, ["", *said], strict=False) if line != before]
    long, soon = f"{LONG:g} serving", f"{SILENCE:g} serving"
    assert changes == [f"{LONG:g} starting", soon, long, soon]
    assert len(said) < 100, "not at every turn"
    os.close(reading)
    pulse.turn(LONG)  # nobody reads any more
    os.close(writing)


class Hung:
    """A gateway whose main thread hangs in a request, while its heartbeat goes on; and its failpoints' file."""

    def __init__(self, make: MakeGateway, client: MakeClient, directory: Path) -> None:
        self.control = directory / "failpoints"
        self.gateway: GatewayProcess = make(test_failpoints=self.control)
        self.api = client(self.gateway)
        self.control.write_text("before_apply:hang")
        with pytest.raises(TimedOut):
            self.api.create_peer(some_key(), timeout=1)

    def state(self) -> str:
        return self.gateway.look().state


def test_a_writer_that_hangs_is_told_everywhere_and_callers_are_refused_at_once(
    gateway: MakeGateway, client: MakeClient, settings: MakeSettings, tmp_path: Path
) -> None:
    hung = Hung(gateway, client, tmp_path)
    name, shell = hung.gateway.name, Shell(hung.gateway)
    eventually(lambda: hung.state() == "stuck", "the lane being told as stuck")
    with pytest.raises(Unavailable, match=rf"the writer of {name} is stuck: .* served nothing for \d+ s") as refusal:
        hung.api.create_peer(some_key(), timeout=600)
    assert 5.0 <= (refusal.value.retry_after or 0) <= 10.0
    with pytest.raises(Unavailable, match="stuck"):
        hung.api.delete_peer(some_key(), timeout=600)
    app = PeerlaneApp(settings(redis_url=hung.gateway.settings["redis_url"]))
    by_name = {info.name: info for info in Fleet(app).gateways()}
    assert by_name[name].state == "stuck"
    close(app)

    assert shell.ask("gateway", "alive", name, status=1) | {"silent_for": 0, "idle_for": 0} == {
        "gateway": name,
        "alive": False,
        "state": "stuck",
        "silent_for": 0,
        "idle_for": 0,
    }
    assert f"{name} is stuck" in shell.run("gateway", "alive", name).output
    assert "stuck, has served nothing for" in shell.run("gateway", "show", name).output
    (listed,) = [row for row in shell.ask("gateway", "list")["gateways"] if row["name"] == name]
    assert listed["state"] == "stuck"
    assert listed["idle_for"] > SOON
    (row,) = shell.ask("top", "--once", name)["gateways"]
    assert row["state"] == "stuck"
    sentences = {
        check["sentence"] for check in shell.ask("doctor", status=1)["checks"] if check["what"] == f"gateway {name}"
    }
    assert any("stuck: its writer has served nothing" in sentence for sentence in sentences)

    hung.control.write_text("")
    eventually(lambda: hung.state() == "active", "the lane being served again")
    assert shell.ask("gateway", "alive", name)["alive"] is True
    assert hung.api.create_peer(some_key(), timeout=PATIENCE).outcome == "created"


def test_a_health_check_knows_alive_from_ready_and_down_from_unknown(gateway: MakeGateway) -> None:
    site = gateway()
    shell = Shell(site)
    assert shell.run("gateway", "alive", site.name).output == f"{site.name} is active\n"
    assert shell.ask("gateway", "alive", site.name, "--ready")["state"] == "active"
    site.stop()
    assert shell.ask("gateway", "alive", site.name, status=1)["state"] == "down"
    assert f"{site.name} is stopped" in shell.run("gateway", "alive", site.name).output
    assert shell.run("gateway", "alive", "nowhere").exit_code == 3


def test_a_writer_that_brings_its_peers_back_is_alive_and_not_ready(
    gateway: MakeGateway, client: MakeClient, tmp_path: Path
) -> None:
    control = tmp_path / "failpoints"
    site = gateway(test_failpoints=control)
    client(site).create_peer(some_key())
    site.stop()
    control.write_text("between_batches:hang")
    site.start(wait=False)
    shell = Shell(site)
    eventually(lambda: site.look().state == "recovering", "a recovery that takes long")
    assert shell.ask("gateway", "alive", site.name)["state"] == "recovering"
    assert shell.ask("gateway", "alive", site.name, "--ready", status=1)["alive"] is False
    control.write_text("")
    site.await_serving()
