"""Faults while a writer serves and still adds peers after its start: it dies, ends, freezes, Redis or the device goes.

Callers create, delete and ask again meanwhile, also for peers that are still to come, and sweeps take some of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import fault_filling
from fault_of_order import await_epoch
from fault_play import Run, Scenario, Work

from peerlane.config import names

#: Many peers live for two seconds: some expire before they have come.
_WORK = Work(calls=34, seconds=8.0, upkeep=True)
#: Each slice takes so long: all that follows happens amid the filling.
_SLOWLY = "between_fillings:sleep:0.15"


def _killed(run: Run) -> None:
    run.site.fail_at(f"between_fillings:kill:{run.rng.randint(1, 3)}")
    run.happened()


def _ended(run: Run) -> None:
    run.site.gateway.signal(signal.SIGTERM)


def _frozen(run: Run) -> None:
    run.site.gateway.pause()
    time.sleep(run.rng.uniform(0.3, 3.0))
    run.site.gateway.resume()


def _redis_killed(run: Run) -> None:
    with run.unreachable():
        run.site.redis_server.kill()


def _device_deleted(run: Run) -> None:
    run.site.outside.delete_device()


def _amid(fault: Callable[[Run], None]) -> Callable[[Run], None]:
    def act(run: Run) -> None:
        run.soon(2.0, 3.0)
        run.site.fail_at(_SLOWLY)
        run.site.outside.delete_device()
        if not _fills(run):
            run.notes.append("nothing was filled")
            return
        run.soon(0.05, 0.5)
        fault(run)
        run.soon(0.5, 1.5)

    return act


def _fills(run: Run) -> bool:
    """Wait until the writer serves and says that peers are still to come; whether it does."""
    until = time.monotonic() + 8.0
    while time.monotonic() < until:
        lane = run.site.look()
        if lane is not None and lane.facts.get("phase") == "serving" and int(lane.facts.get("recovering") or 0) > 0:
            return True
        time.sleep(0.02)
    return False


def serving_after_few(run: Run) -> None:
    """From now on four peers are back before the lane is served."""
    run.site.gateway.environment[fault_filling.AT_ONCE] = "4"
    _again(run)


def serving_as_ever(run: Run) -> None:
    run.site.gateway.environment.pop(fault_filling.AT_ONCE)
    _again(run)


def _again(run: Run) -> None:
    epoch = int(str(run.site.redis.get(names.epoch_key(run.site.name))))
    run.site.gateway.kill()
    await_epoch(run, epoch + 1, within=40)
    run.site.serving()


def _scenario(name: str, fault: Callable[[Run], None]) -> Scenario:
    return Scenario(f"filling_{name}", _amid(fault), _WORK, before=serving_after_few, after=serving_as_ever)


SCENARIOS = (
    _scenario("killed", _killed),
    _scenario("ended", _ended),
    _scenario("frozen", _frozen),
    _scenario("redis_killed", _redis_killed),
    _scenario("device_deleted", _device_deleted),
)
