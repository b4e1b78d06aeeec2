"""An observer whose gateway's writer is elsewhere: it takes no request; a skipped report is told as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import Shell, document
from gateways import ROOT, MakeClient, MakeGateway
from observers import Observer, ending
from servers import RedisServer
from waiting import eventually

from peerlane.config import names
from peerlane.tasks.admin import maintenance as upkeep


def test_it_leaves_requests_to_the_observer_beside_the_writer(
    gateway: MakeGateway,
    client: MakeClient,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MISPLACED_OBSERVER", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support"))
    site = gateway()
    queue, redis = names.observer_queue(site.name), redis_server.redis
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    misplaced = Observer(site, wait=False, application="misplaced_observer")
    with ending(misplaced):
        misplaced.says("ready.")
        assert client(site).info().state == "active"
        redis.hset(names.observer_key(site.name), "heartbeat", int(redis.time()[0]) * 1000)
        caller = Shell(site)
        result = caller.run("gateway", "sweep", site.name, "--timeout", "3", "--json")
        assert document(result)["error"]["code"] == "timed_out"
        assert redis.llen(queue) == 1, "what it had no business with lies where it was"
        redis.hset(names.observer_key(site.name), "heartbeat", 0)
        elsewhere.unlink()
        eventually(lambda: redis.llen(queue) == 0, "the observer to go on once the writer is beside it")
        eventually(lambda: misplaced.report("sweep"), "a sweep")
        assert caller.ask("gateway", "sweep", site.name)["outcome"] == "swept"


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_skipped_report_is_shown_as_one(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch, dry_run: list[str]
) -> None:
    site = gateway()
    report = {"outcome": "skipped", "gateway": site.name, "note": "the gateway's writer is on fra-2"}

    def skipped(*_args: Any, **_flags: Any) -> dict[str, Any]:
        return report

    monkeypatch.setattr(upkeep, "sweep", skipped)
    result = Shell(site).run("gateway", "sweep", site.name, *dry_run)
    assert result.exit_code == 1
    assert f"{site.name}: nothing was swept: the gateway's writer is on fra-2" in result.stderr
    assert document(Shell(site).run("gateway", "sweep", site.name, *dry_run, "--json")) == report
