"""Faults of upkeep: observer, writer, Redis or the supervisor die, stop or are cut off while peers are swept."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import cast

import fault_observed
from fault_choices import key_of
from fault_of_host import device_deleted
from fault_of_order import await_epoch
from fault_of_writer import writer_killed
from fault_play import Run, Work
from fault_site import DECIDED_FOR

from peerlane.config import names

#: Peers that live for two seconds come first; then there is time for several sweeps.
UPKEEP = Work(calls=30, seconds=4.0, upkeep=True)
#: The same, and who never handshakes is swept after three.
SILENT = Work(calls=32, seconds=5.0, upkeep=True, never_after=3.0)
_NEVER = {"PEERLANE_SWEEP_NEVER_AFTER": "3", "PEERLANE_SWEEP_START_GRACE": "0"}


def observer_killed(run: Run) -> None:
    for _ in range(run.rng.randint(1, 2)):
        run.soon(0.2, 1.8)
        run.site.observer.kill()


def observer_stopped(run: Run) -> None:
    run.soon(0.5, 2.5)
    run.site.observer.pause()
    time.sleep(run.rng.uniform(0.3, 6.0))
    run.site.observer.resume()


def observer_cut_off(run: Run) -> None:
    run.soon(0.5, 2.5)
    if run.rng.random() < 0.5:
        run.site.observer_link.cut()
    else:
        run.site.observer_link.half_open()
    time.sleep(run.rng.uniform(0.3, 4.0))
    run.site.observer_link.mend()


def observer_killed_at(point: str, *, within: float = 6.0) -> Callable[[Run], None]:
    """Between a decision and its sending, or between two slices."""

    def act(run: Run) -> None:
        run.site.fail_at(f"{point}:kill:{run.rng.randint(1, 2)}")
        run.happened(within=within)

    return act


def decision_overtaken(run: Run) -> None:
    """A sweep has decided; before it sends, its victims are deleted, and made anew to stay."""
    run.site.fail_at("after_decision:stop:1")
    if run.happened(within=6.0):
        time.sleep(run.rng.uniform(0.5, 2.5))
        run.site.observer.resume()


def writer_killed_in_sweep(run: Run) -> None:
    """In the middle of a slice's deletes, or between them and their commit, or right after."""
    points = ["before_apply.removed", "after_apply.removed", "before_commit.removed", "after_commit.removed"]
    if run.site.plane == "memory":
        points += ["between_changes", "between_changes"]
    point = run.rng.choice(points)
    run.site.fail_at(f"{point}:kill:{run.rng.randint(1, 2)}")
    run.happened(within=6.0)
    run.notes.append(point)


def writer_stopped_in_sweep(run: Run) -> None:
    """For longer than the decision holds, and whoever has decided may die: nobody calls it off then."""
    run.site.fail_at(f"{run.rng.choice(['before_apply.removed', 'before_commit.removed'])}:stop:1")
    if run.happened(within=6.0):
        if run.rng.random() < 0.5:
            run.site.observer.kill()
        time.sleep(run.rng.uniform(0.5, 3.0))
        run.site.gateway.resume()


def deciding_for_a_short_time(run: Run) -> None:
    """From now on this observer's decisions hold for a second."""
    run.site.observer.environment[fault_observed.WITHIN] = "1.0"
    run.site.observer.kill()
    run.site.observed(since=time.monotonic() + 0.1)


def deciding_as_ever(run: Run) -> None:
    run.site.observer.environment[fault_observed.WITHIN] = DECIDED_FOR
    run.site.observer.kill()


def sweeping_who_never_came(run: Run) -> None:
    """From now on this observer has the counters count at once, and a few seconds are enough."""
    run.site.observer.environment |= _NEVER
    run.site.observer.kill()
    run.site.observed(since=time.monotonic() + 0.1)


def sweeping_as_ever(run: Run) -> None:
    for name in _NEVER:
        run.site.observer.environment.pop(name)
    run.site.observer.kill()


def something_while_who_never_came_goes(run: Run) -> None:
    """Who came, who is pinned and who is new must stay, though counters begin anew and the observer forgets."""
    act = run.rng.choice([observer_killed, observer_stopped, writer_killed, device_deleted])
    run.notes.append(act.__name__)
    act(run)


def redis_killed_in_sweep(run: Run) -> None:
    """From the moment at which a slice is about to be sent, or to be committed."""
    with _in_a_sweep(run), run.unreachable():
        server = run.site.redis_server
        server.restart_after = run.rng.uniform(0.1, 2.5)
        server.kill()
        time.sleep(server.restart_after / 2)
    run.site.redis_server.restart_after = 0.3


def redis_frozen_in_sweep(run: Run) -> None:
    with _in_a_sweep(run), run.unreachable():
        run.site.redis_server.pause()
        time.sleep(run.rng.uniform(0.3, 4.0))
        run.site.redis_server.resume()


def killed_under_its_supervisor(run: Run) -> None:
    """``peerlane gateway run`` is what brings them back; it is killed itself, too."""
    for _ in range(run.rng.randint(1, 2)):
        run.soon(0.2, 1.5)
        writer, observer = run.site.pids
        victim = run.rng.choice(["writer", "observer", "both", "supervisor"])
        run.notes.append(f"{victim} killed")
        pids = {"writer": (writer,), "observer": (observer,), "both": (writer, observer)}
        for pid in pids.get(victim, (run.site.gateway.pid,)):
            with suppress(ProcessLookupError):  # it has died before, and is not back yet
                os.kill(pid, signal.SIGKILL)


def hung_under_its_supervisor(run: Run) -> None:
    """The writer stands still until ``peerlane gateway run`` has noticed it, and has ended it."""
    run.soon(0.5, 1.5)
    writer, _ = run.site.pids
    os.kill(writer, signal.SIGSTOP)
    until = time.monotonic() + 150
    while run.site.pids[0] == writer and time.monotonic() < until:
        time.sleep(0.2)
    assert run.site.pids[0] != writer, "nobody ended a writer that hangs"


def under_a_supervisor(run: Run) -> None:
    """Instead of the bench, ``gateway run`` keeps writer and observer running."""
    site = run.site
    epoch = _epoch(run)
    for process in (site.observer, site.gateway):
        process.stop()
    site.gateway = site.observer = site.make_both()
    began = time.monotonic()
    site.gateway.start()
    await_epoch(run, epoch + 1, within=120)
    site.observed(since=began, within=120)


def under_the_bench(run: Run) -> None:
    """As it was."""
    site = run.site
    epoch = _epoch(run)
    site.gateway.leave()
    site.gateway, site.observer = site.make_gateway("gateway"), site.make_observer()
    site.gateway.start()
    site.observer.start()
    await_epoch(run, epoch + 1, within=120)


def device_tampered(run: Run) -> None:
    """Somebody takes peers off the device and puts others on, and the observer dies while it compares."""
    if run.rng.random() < 0.5:
        run.site.fail_at(f"between_looks:{run.rng.choice(['kill', 'stop'])}:1")
    for number in range(run.rng.randint(1, 3)):
        run.soon(0.2, 1.2)
        peers, _ = run.site.outside.on_device()
        for key in run.rng.sample(sorted(peers), min(len(peers), run.rng.randint(1, 4))):
            run.site.outside.take_off(key)
        run.site.outside.put_on(key_of(f"{run.seed} stranger {number}"), f"10.8.{200 + number}.7/32")
    if run.site.failpoints_left:
        run.happened(within=4.0)
    run.site.observer.resume()


@contextmanager
def _in_a_sweep(run: Run) -> Generator[None]:
    """Within, the one who was about to go on with a sweep stands still."""
    point, whose = run.rng.choice(
        [
            ("after_decision", run.site.observer),
            ("between_slices", run.site.observer),
            ("before_apply.removed", run.site.gateway),
            ("before_commit.removed", run.site.gateway),
        ]
    )
    run.site.fail_at(f"{point}:stop:1")
    happened = run.happened(within=6.0)
    yield
    if happened:
        whose.resume()


def _epoch(run: Run) -> int:
    return int(cast("str", run.site.redis.get(names.epoch_key(run.site.name))))
