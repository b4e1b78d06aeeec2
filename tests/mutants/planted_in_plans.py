"""Faults of plans, of the observer and of callers."""

from __future__ import annotations

from mutant import AGREEMENT, CANCEL, COMMIT, PLAN, REDELIVERY, STUCK, SUPERVISE, SWEEP, UPKEEP, Mutant

IN_PLANS = (
    # Plans and the table
    Mutant(
        "broken-addresses-given-away",
        "the addresses of a record that does not parse are given to others after a restart",
        "workers/store/loading.py",
        "                    self._prefixes.setdefault(owner, []).append(Prefix.parse(text))\n",
        "                    pass\n",
        (AGREEMENT,),
    ),
    Mutant(
        "own-key-taken",
        "a peer has the gateway's own key",
        "workers/peers/plan.py",
        "    if wish.public_key == policy.public_key:\n",
        "    if False:\n",
        (PLAN,),
    ),
    Mutant(
        "overlap-taken",
        "a peer has an address that another holds",
        "workers/peers/plan.py",
        "        if present is not None and other in present.allowed_ips:\n            continue\n",
        "        continue\n",
        (PLAN,),
    ),
    Mutant(
        "pinned-victim-removed",
        "a sweep removes a peer that was pinned meanwhile",
        "workers/peers/handlers.py",
        '    if peer.pinned:\n        return "pinned"\n',
        "",
        (AGREEMENT,),
    ),
    Mutant(
        "victim-of-before-removed",
        "a sweep removes a peer that was made anew since",
        "workers/peers/handlers.py",
        '    if peer.created_at != victim.created_at:\n        return "created anew since"\n',
        "",
        (f"{UPKEEP}::TestAPeerWhoseTimeIsUp::test_is_not_taken_by_a_sweep_that_was_decided_before",),
    ),
    # The observer
    Mutant(
        "excessive-sweep",
        "a sweep removes most peers without a person's word",
        "workers/upkeep/sweep_policy.py",
        "    if count <= limits.floor or",
        "    if True or count <= limits.floor or",
        (SWEEP,),
    ),
    Mutant(
        "silent-without-second-look",
        "a sweep removes a peer that has come after its decision",
        "workers/upkeep/sweeper.py",
        "seen is not None and seen.last_seen > victim.since:",
        "seen is None:",
        ("tests/observer/test_activity_tracker.py",),
    ),
    # Callers
    Mutant(
        "no-look-after-subscribing",
        "an outcome between the look and the subscription is not heard of",
        "tasks/lane/result.py",
        "            # Between the look and the subscription it may have come.\n            if (stored :=",
        "            if False and (stored :=",
        (AGREEMENT,),
    ),
    Mutant(
        "tombstone-over-an-outcome",
        "a cancel overwrites what had committed",
        "tasks/admission/lanes.py",
        "self.redis.set(cancel.key, cancel.tombstone, nx=True, get=True,",
        "self.redis.set(cancel.key, cancel.tombstone, get=True,",
        (CANCEL, COMMIT),
    ),
    Mutant(
        "tombstone-too-short",
        "a tombstone is gone before its request's deadline",
        "tasks/wire/cancel.py",
        "max(result_ttl, left + TOMBSTONE_MARGIN))",
        "result_ttl)",
        (CANCEL,),
    ),
    Mutant(
        "stuck-is-active",
        "a writer that hangs is told as one that serves",
        "tasks/admission/lane_state.py",
        '        if self.stuck:\n            return "stuck"\n',
        "",
        (f"{STUCK}::test_a_lane_that_is_not_turned_for_longer_than_its_writer_said_is_stuck",),
    ),
    Mutant(
        "taken-message-lost",
        "what a dead writer had taken does not come back",
        "workers/lane/unacked.py",
        "                pipe.rpush(*again)\n",
        "                pass\n",
        (f"{REDELIVERY}::test_the_order_in_which_messages_were_taken_is_that_in_which_they_come_back",),
    ),
    Mutant(
        "hanging-writer-left-alone",
        "a supervisor does not end a writer that hangs",
        "workers/host/supervisor.py",
        "        child.condemned, child.aborted = now + GRACE, True\n",
        "        return\n",
        (f"{SUPERVISE}::test_a_part_that_keeps_silent_is_asked_for_its_stacks_killed_and_started_again",),
    ),
)
