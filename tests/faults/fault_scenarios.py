"""The scenarios of the fault runs: what is broken in each. Every random choice comes from the run's own generator."""

from __future__ import annotations

import fault_of_host
import fault_of_network
import fault_of_observer
import fault_of_order
import fault_of_redis
import fault_of_writer
from fault_play import Run, Scenario, Work


def _several(run: Run) -> None:
    """Two or three of the simple ones, one after the other or at once."""
    acts = [
        fault_of_writer.writer_killed,
        fault_of_writer.writer_stopped,
        fault_of_redis.redis_killed,
        fault_of_redis.redis_frozen,
        fault_of_network.writer_cut_off,
        fault_of_network.callers_cut_off,
    ]
    for act in run.rng.sample(
        [
            *acts,
            fault_of_host.device_deleted,
            fault_of_network.replies_reset,
            fault_of_writer.unforeseen,
            fault_of_observer.observer_killed,
            fault_of_observer.observer_stopped,
        ],
        run.rng.randint(2, 3),
    ):
        run.notes.append(act.__name__)
        act(run)


_RACE = Work(calls=24, threads=1, tasks=0, pace=0.0, timeouts=tuple(0.145 + step / 1000 for step in range(11)))
_FLOOD = Work(calls=40, threads=2, tasks=10, seconds=6.0, pace=0.0, timeouts=(5.0, 8.0), bulk=True)
_HUNDREDS = Work(calls=4, threads=60, tasks=180, seconds=6.0, pace=2.0, timeouts=(2.0, 4.0))
_TOO_MUCH = Work(calls=20, threads=10, tasks=70, seconds=5.0, pace=0.0, timeouts=(0.3, 0.6, 1.2))
_UNLIKE = Work(calls=20, threads=6, tasks=0, unlike=True)
_UPKEEP = fault_of_observer.UPKEEP
_LONG = Work(seconds=12.0, calls=30, pace=0.6)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("writer_killed", fault_of_writer.writer_killed),
        Scenario("writer_killed_taking", fault_of_writer.writer_killed_while_it_takes_a_message),
        fault_of_writer.killed_at("before_apply", redelivered_after=True),
        fault_of_writer.killed_at("after_apply"),
        fault_of_writer.killed_at("before_commit"),
        fault_of_writer.killed_at("after_commit", redelivered_after=True),
        fault_of_writer.killed_at("before_acknowledge", redelivered_after=True),
        Scenario("killed_in_recovery", fault_of_writer.killed_in_recovery),
        Scenario("unforeseen_error", fault_of_writer.unforeseen),
        Scenario("writer_stopped", fault_of_writer.writer_stopped),
        Scenario("redis_killed", fault_of_redis.redis_killed),
        Scenario("redis_killed_at_commit", fault_of_redis.redis_killed_at_commit, Work(seconds=6.0, pace=0.4)),
        Scenario("redis_loses_last_second", fault_of_redis.redis_loses_its_last_second),
        Scenario("all_lose_last_second", fault_of_redis.redis_and_writer_lose_the_last_second),
        Scenario("no_writes", fault_of_redis.takes_no_writes),
        Scenario("hundreds_of_callers", fault_of_writer.one_of_the_common, _HUNDREDS),
        Scenario("beyond_capacity", fault_of_writer.beyond_capacity, _TOO_MUCH),
        Scenario("deadlines_unlike_timeouts", fault_of_writer.one_of_the_common, _UNLIKE),
        Scenario("deadlines_and_lost_second", fault_of_redis.redis_loses_its_last_second, _UNLIKE),
        Scenario("redis_frozen", fault_of_redis.redis_frozen),
        Scenario("memory_full", fault_of_redis.memory_full),
        Scenario("disk_full", fault_of_redis.disk_full, planes=("kernel",)),
        Scenario("writer_half_open", fault_of_network.writer_half_open),
        Scenario("writer_cut_off", fault_of_network.writer_cut_off),
        Scenario("callers_cut_off", fault_of_network.callers_cut_off),
        Scenario("replies_reset", fault_of_network.replies_reset),
        Scenario("slow_links", fault_of_network.slow_links),
        Scenario("packets_lost", fault_of_network.packets_lost, planes=("kernel",)),
        Scenario("second_writer", fault_of_order.second_writer),
        Scenario("stale_writer", fault_of_order.stale_writer),
        Scenario("rival_elsewhere", fault_of_order.rival_elsewhere, _LONG),
        Scenario("messages_twice", fault_of_order.messages_twice_and_out_of_order),
        Scenario("device_deleted", fault_of_host.device_deleted),
        Scenario("callers_killed", fault_of_host.callers_killed),
        Scenario("callers_stopped", fault_of_host.callers_stopped),
        Scenario("timeout_races_commit", fault_of_host.race_of_timeout_and_commit, _RACE),
        Scenario(
            "clocks_jump", fault_of_host.clocks_jump, before=fault_of_host.own_clocks, after=fault_of_host.real_clocks
        ),
        Scenario("machine_clock_jumps", fault_of_host.machine_clock_jumps, planes=("kernel",), needs_own_machine=True),
        Scenario("flood_and_kill", fault_of_writer.writer_killed, _FLOOD),
        Scenario("several_at_once", _several, Work(seconds=7.0, calls=34, upkeep=True)),
        Scenario("observer_killed", fault_of_observer.observer_killed, _UPKEEP),
        Scenario("observer_stopped", fault_of_observer.observer_stopped, _UPKEEP),
        Scenario("observer_cut_off", fault_of_observer.observer_cut_off, _UPKEEP),
        Scenario("killed_after_decision", fault_of_observer.observer_killed_at("after_decision"), _UPKEEP),
        Scenario("killed_between_slices", fault_of_observer.observer_killed_at("between_slices"), _UPKEEP),
        Scenario("decision_overtaken", fault_of_observer.decision_overtaken, _UPKEEP),
        Scenario(
            "decision_too_late",
            fault_of_observer.writer_stopped_in_sweep,
            _UPKEEP,
            before=fault_of_observer.deciding_for_a_short_time,
            after=fault_of_observer.deciding_as_ever,
        ),
        Scenario("writer_killed_in_sweep", fault_of_observer.writer_killed_in_sweep, _UPKEEP),
        Scenario("redis_killed_in_sweep", fault_of_observer.redis_killed_in_sweep, _UPKEEP),
        Scenario("redis_frozen_in_sweep", fault_of_observer.redis_frozen_in_sweep, _UPKEEP),
        Scenario(
            "silent_ones_swept",
            fault_of_observer.something_while_who_never_came_goes,
            fault_of_observer.SILENT,
            before=fault_of_observer.sweeping_who_never_came,
            after=fault_of_observer.sweeping_as_ever,
        ),
        Scenario("device_tampered", fault_of_observer.device_tampered, _UPKEEP),
        Scenario(
            "killed_under_supervisor",
            fault_of_observer.killed_under_its_supervisor,
            _UPKEEP,
            before=fault_of_observer.under_a_supervisor,
            after=fault_of_observer.under_the_bench,
        ),
        *(
            Scenario(
                f"{name}_under_supervisor",
                act,
                before=fault_of_observer.under_a_supervisor,
                after=fault_of_observer.under_the_bench,
            )
            for name, act in (
                ("redis_killed", fault_of_redis.redis_killed),
                ("no_writes", fault_of_redis.takes_no_writes),
                ("device_deleted", fault_of_host.device_deleted),
                ("hung", fault_of_observer.hung_under_its_supervisor),
            )
        ),
    )
}
