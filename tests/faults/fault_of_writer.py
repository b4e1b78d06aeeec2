"""Faults of the writer: it dies, stops, fails."""

from __future__ import annotations

import time

from fault_of_redis import redis_frozen, redis_killed
from fault_play import Run, Scenario


def writer_killed(run: Run) -> None:
    run.soon()
    run.site.gateway.kill()


def writer_killed_while_it_takes_a_message(run: Run) -> None:
    """Redis has handed the message over and the writer has not noted it down: the queue forgets it."""
    run.soon()
    run.site.gateway.pause()
    time.sleep(run.rng.uniform(0.05, 0.6))
    run.site.gateway.kill()


def killed_at(point: str, *, redelivered_after: bool = False) -> Scenario:
    def act(run: Run) -> None:
        run.site.fail_at(f"{point}:kill:{run.rng.randint(1, 12)}")
        run.happened()

    return Scenario(f"killed_{point}", act, after=redelivered if redelivered_after else None)


def redelivered(run: Run) -> None:
    """What was taken and not acknowledged comes again, now."""
    run.notes.append(f"{run.site.redeliver_now()} redelivered")
    time.sleep(1.5)  # the worker looks for them each second


def unforeseen(run: Run) -> None:
    point = run.rng.choice(["before_apply", "after_apply", "before_commit", "after_commit"])
    run.site.fail_at(f"{point}:raise:{run.rng.randint(1, 10)}")
    run.happened()


def writer_stopped(run: Run) -> None:
    run.soon()
    run.site.gateway.pause()
    time.sleep(run.rng.uniform(0.3, 3.0))
    run.site.gateway.resume()


def beyond_capacity(run: Run) -> None:
    """Each group takes long, more is asked for than can be done in time, and then something dies or stops."""
    run.site.fail_at(f"before_commit:sleep:{run.rng.uniform(0.2, 0.5):.2f}")
    run.soon(1.0, 2.0)
    act = run.rng.choice([writer_killed, writer_stopped, redis_killed, redis_frozen])
    run.notes.append(act.__name__)
    act(run)
    run.soon(0.5, 1.0)


def one_of_the_common(run: Run) -> None:
    """Whatever befalls callers most."""
    act = run.rng.choice([writer_killed, writer_stopped, redis_killed, redis_frozen])
    run.notes.append(act.__name__)
    act(run)


def killed_in_recovery(run: Run) -> None:
    run.soon(0.5, 1.5)
    run.site.fail_at("between_batches:kill:1")
    run.site.outside.delete_device()
    run.happened(within=6)
