"""Whatever waits in a lane, in whatever order: a writer's call to take it ends, and loses and doubles nothing."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import cast

from grouped_lane import GroupedLane
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from keys import some_key

from peerlane.config import names
from peerlane.tasks.wire import commit_record
from peerlane.workers.lane.taking import MANY, MOST_IN_A_GROUP, MOST_STRUCK_OUT, Taker

KINDS = ("fresh", "late", "cancelled", "delete", "late delete", "list", "redelivered", "late redelivered")
#: Around the numbers at which the procedure does something else.
LENGTHS = (1, 2, MOST_IN_A_GROUP + 1, 130, MANY - 1, MANY, MANY + MOST_STRUCK_OUT + 3)

Runs = list[tuple[str, int]]


def message(lane: GroupedLane, template: str, kind: str, now: int) -> tuple[str, str]:
    """A request's id and its message."""
    made = json.loads(template)
    identity = names.request_id(lane.name, uuid.uuid4().hex)
    task = names.DELETE_PEER if "delete" in kind else names.CREATE_PEERS if kind == "list" else names.CREATE_PEER
    made["headers"] |= {"id": identity, "task": task, "deadline": now - 1_000 if "late" in kind else now + 60_000}
    if "redelivered" in kind:
        made["headers"]["redelivered"] = True
    made["body"] = json.dumps([[], {"gateway": lane.name, "public_key": some_key()}, {}])
    return identity, json.dumps(made)


def fill(lane: GroupedLane, runs: Runs) -> list[str]:
    """Queue the messages, the first of them as the oldest; their ids."""
    (template,) = (raw.decode() for raw in lane.captured(1))
    seconds, _ = lane.redis.time()
    sent = [message(lane, template, kind, seconds * 1000) for kind, count in runs for _ in range(count)]
    pipe = lane.redis.pipeline(transaction=False)
    for start in range(0, len(sent), 500):
        pipe.lpush(lane.queue, *(raw for _, raw in sent[start : start + 500]))
    kinds = [kind for kind, count in runs for _ in range(count)]
    for (identity, _), kind in zip(sent, kinds, strict=True):
        if kind == "cancelled":
            pipe.set(names.result_key(identity), commit_record.late(identity))
    pipe.execute()
    return [identity for identity, _ in sent]


def identities(raws: list[bytes]) -> list[str]:
    return [json.loads(raw)["headers"]["id"] for raw in raws]


@given(
    runs=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(LENGTHS)), min_size=1, max_size=4),
    known=st.lists(st.integers(0, 1_000), min_size=4, max_size=4),
)
@example(runs=[("late redelivered", 1), ("late", MANY + MOST_STRUCK_OUT + 3)], known=[0, 0, 0, 0])
@examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_call_ends_and_each_message_is_taken_struck_out_or_still_there(
    lane: GroupedLane, runs: Runs, known: list[int]
) -> None:
    lane.redis.delete(lane.queue, names.unacked_key(lane.name), names.unacked_key(lane.name, "_index"))
    sent = fill(lane, runs)
    taker = Taker(lane.redis, lane.name, result_ttl=600)
    taker._known = known  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - whatever it has seen before
    raw = cast("bytes", lane.redis.rpop(lane.queue))
    taken, dead = taker(lane.queue, raw)
    waiting = identities(cast("list[bytes]", lane.redis.lrange(lane.queue, 0, -1)))
    noted = lane.redis.hlen(names.unacked_key(lane.name))
    assert Counter(identities([each.message for each in taken]) + [each.request_id for each in dead] + waiting) == (
        Counter(sent)
    )
    assert len(taken) == noted <= MOST_IN_A_GROUP
    assert taken or dead
