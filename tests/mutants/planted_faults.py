"""The faults that ``mutants.py`` plants: each replaces a text, which its file has once, and names who is to notice."""

from __future__ import annotations

from dataclasses import dataclass

COMMIT, GROUP, WRITER = "tests/writer/test_commit.py", "tests/writer/test_group.py", "tests/writer/test_writer.py"
PLAN, RECOVER, AGREEMENT = "tests/writer/test_plan.py", "tests/writer/test_recover.py", "tests/writer/test_agreement.py"
TAKEOVER, STUCK, SWEEP = "tests/writer/test_takeover.py", "tests/writer/test_stuck.py", "tests/observer/test_sweep.py"
CANCEL, DOUBT = "tests/client/test_cancel.py", "tests/writer/test_doubt.py"
REDELIVERY, ADOPTION = "tests/writer/test_redelivery.py", "tests/operators/test_adoption.py"
UPKEEP = "tests/faults/test_fault_upkeep.py"
SUPERVISE = "tests/deploy/test_supervise.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small fault."""

    name: str
    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTANTS = (
    # The commit
    Mutant(
        "commit-without-epoch",
        "a writer that was replaced commits",
        "workers/store/commit.lua",
        "  if epoch ~= ARGV[1] then return {'fenced', epoch or ''} end\n",
        "",
        (COMMIT,),
    ),
    Mutant(
        "commit-after-deadline",
        "a request commits though its deadline has passed",
        "workers/store/commit.lua",
        "  if deadline > 0 and now > deadline then\n",
        "  if false then\n",
        (COMMIT,),
    ),
    Mutant(
        "commit-twice",
        "a request that has an outcome commits again",
        "workers/store/commit.lua",
        "  if stored then\n",
        "  if false then\n",
        (COMMIT,),
    ),
    Mutant(
        "commit-while-draining",
        "a gateway that is being drained takes a peer",
        "workers/store/commit.lua",
        "  if creates == '1' and redis",
        "  if false and redis",
        (COMMIT,),
    ),
    Mutant(
        "commit-over-anothers-address",
        "a commit takes an address that another peer holds",
        "workers/store/commit.lua",
        "      if owner and owner ~= change.key then return {'stale', 'address'} end\n",
        "",
        (COMMIT,),
    ),
    Mutant(
        "commit-over-a-changed-record",
        "a commit does not see that somebody else has written the record",
        "workers/store/commit.lua",
        " ~= change.before then return {'stale', 'record'} end\n",
        " ~= change.before then break end\n",
        (COMMIT,),
    ),
    Mutant(
        "address-kept-after-delete",
        "a deleted peer keeps its addresses",
        "workers/store/commit.lua",
        "      if redis.call('HGET', KEYS[3], prefix) == change.key then redis.call('HDEL', KEYS[3], prefix) end\n",
        "",
        (COMMIT,),
    ),
    Mutant(
        "message-not-acknowledged",
        "a commit leaves its message to be delivered again",
        "workers/store/commit.lua",
        "      redis.call('HDEL', KEYS[5], tag)\n",
        "",
        (COMMIT,),
    ),
    Mutant(
        "outcome-not-published",
        "who waits is not told",
        "workers/store/commit.lua",
        "    publish(key, record)\n",
        "",
        (COMMIT,),
    ),
    Mutant(
        "share-not-released",
        "a request counts in its share of the lane after its outcome",
        "workers/store/commit.lua",
        "    publish(key, record)\n    leave_share()\n",
        "    publish(key, record)\n",
        ("tests/client/test_overload.py", GROUP),
    ),
    Mutant(
        "heartbeat-without-fence",
        "a writer that was replaced goes on telling that it lives",
        "workers/store/heartbeat.lua",
        "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end\n",
        "",
        (TAKEOVER,),
    ),
    Mutant(
        "take-more-after-redelivery",
        "a message that may have ended the writer takes others along",
        "workers/store/take.lua",
        "if #taken > 0 and redelivered(first) then return {taken, dead} end\n",
        "",
        (GROUP,),
    ),
    Mutant(
        "taken-again",
        "messages whose taking was not answered are lost",
        "workers/store/take.lua",
        "if noted_before() then return {taken, dead} end\n",
        "",
        (GROUP,),
    ),
    # The writer
    Mutant(
        "device-not-undone",
        "a create whose commit is refused stays on the device",
        "workers/writer/writer.py",
        "        if applied:\n            self.settle(decision.plans)\n",
        "",
        (WRITER,),
    ),
    Mutant(
        "kernel-failure-not-undone",
        "what the kernel took of a failing change stays",
        "workers/writer/writer.py",
        "        except KernelError:\n            self.settle(decision.plans)\n            raise\n",
        "        except KernelError:\n            raise\n",
        (WRITER,),
    ),
    Mutant(
        "settled-peer-kept",
        "a peer that Redis has not stays in the table",
        "workers/writer/agreement.py",
        "            if peer is None:\n                self.table.drop(key)\n",
        "            if peer is None:\n                pass\n",
        (AGREEMENT,),
    ),
    Mutant(
        "delete-without-asking",
        "a delete that was cancelled ends its peer's session",
        "workers/writer/writer.py",
        "        if decision.removes:\n            return True\n",
        "",
        (DOUBT, WRITER),
    ),
    Mutant(
        "unforeseen-not-read-anew",
        "after an unforeseen failure the device is believed",
        "workers/writer/writer.py",
        '            self.recovery_needed = "an unforeseen failure"\n            unforeseen',
        "            unforeseen",
        (WRITER,),
    ),
    Mutant(
        "replaced-writer-goes-on",
        "a writer that knows that it was replaced changes the device",
        "workers/writer/agreement.py",
        "        if self.fenced:\n            raise Fenced(_REPLACED)\n",
        "        return\n",
        (WRITER,),
    ),
    Mutant(
        "group-verdict-ignored",
        "what was refused in a group is told as done",
        "workers/writer/group.py",
        '            if answer.verdict == "committed" or (answer.verdict',
        "            if answer.verdict or (answer.verdict",
        (GROUP,),
    ),
    Mutant(
        "group-not-undone",
        "what a group did not commit stays on the device",
        "workers/writer/group.py",
        "        writer.settle(_changing(open_again))\n",
        "",
        (GROUP,),
    ),
    Mutant(
        "group-of-one-not-undone",
        "what was planned for a group and goes alone is taken for committed",
        "workers/writer/group.py",
        "            _undo(writer.table, group)\n            request = todo.pop(0)\n",
        "            request = todo.pop(0)\n",
        (GROUP,),
    ),
    Mutant(
        "group-takes-a-key-twice",
        "two requests for one key go in one group",
        "workers/writer/group.py",
        "            or key in keys\n",
        "",
        (GROUP,),
    ),
    Mutant(
        "group-deletes-what-was-cancelled",
        "a cancelled delete in a group ends its peer's session",
        "workers/writer/group.py",
        "    for planned, _ in refused:\n        group.remove(planned)\n",
        "    refused = []\n    for planned, _ in refused:\n",
        (GROUP,),
    ),
    Mutant(
        "predecessor-not-awaited",
        "a writer starts beside one that lives elsewhere",
        "workers/start/takeover.py",
        "    while not had_this_lock and",
        "    while False and",
        (TAKEOVER,),
    ),
    Mutant(
        "unknown-peers-wiped",
        "a Redis that has lost its data empties the device",
        "workers/start/recovery.py",
        "    elif len(strangers) > MANY_UNKNOWN and",
        "    elif False and len(strangers) > MANY_UNKNOWN and",
        (RECOVER,),
    ),
    Mutant(
        "first-start-wipes",
        "a first start removes what was on the device before",
        "workers/start/recovery.py",
        "    elif first_start:\n",
        "    elif False:\n",
        (RECOVER,),
    ),
    Mutant(
        "refused-adoption-forgotten",
        "the addresses of a peer whose adoption is refused are given away",
        "workers/start/startup_commits.py",
        "                keep(done.table, plan.after, kept[plan.public_key])\n",
        "",
        (ADOPTION,),
    ),
    Mutant(
        "adoption-drained",
        "a gateway that is being drained does not adopt",
        "workers/writer/agreement.py",
        "record, plans, drains=False)",
        "record, plans, drains=True)",
        (ADOPTION,),
    ),
    # Plans and the table
    Mutant(
        "broken-addresses-given-away",
        "the addresses of a record that does not parse are given to others after a restart",
        "workers/peers/table.py",
        "[*loaded.peers.values(), *loaded.broken.values()])\n    except",
        "[*loaded.peers.values()])\n    except",
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
        "        if owner == public_key:\n            continue\n",
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
        "    if doubtful <= limits.floor or",
        "    if True or doubtful <= limits.floor or",
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
        "            if not fresh and (stored",
        "            if False and (stored",
        (AGREEMENT,),
    ),
    Mutant(
        "tombstone-over-an-outcome",
        "a cancel overwrites what had committed",
        "tasks/admission/lanes.py",
        "cancel.tombstone, nx=True, get=True,",
        "cancel.tombstone, get=True,",
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
        "        one.condemned, one.aborted = now + GRACE, True\n",
        "        return\n",
        (f"{SUPERVISE}::test_a_part_that_keeps_silent_is_asked_for_its_stacks_killed_and_started_again",),
    ),
)
