"""What ``peerlane top`` makes of two looks: rates, waits, and who stands first. Nothing is read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.status.alarms import Alarm
from peerlane.tasks.status.fleet_snapshot import FleetSnapshot
from peerlane.tasks.status.gateway_status import GatewayStatus
from peerlane.tasks.status.rates import FleetRates, Row, Wait

NOW = 1_800_000_000.0


def glance(
    name: str = "iad",
    *,
    at: float,
    waiting: int = 0,
    bulk: int = 0,
    silent: float = 0.0,
    done: Mapping[str, int] | None = None,
    **facts: str,
) -> GatewayStatus:
    """A serving gateway with a live observer; ``silent`` seconds after the writer's last beat."""
    fields = {"phase": "serving", "epoch": "1", "heartbeat": int((at - silent) * 1000), **(done or {}), **facts}
    raw = {key.encode(): str(value).encode() for key, value in fields.items()}
    observer = {b"heartbeat": str(int(at * 1000)).encode()}
    return GatewayStatus.of(LaneState.of(name, raw, waiting, bulk, now=int(at * 1000)), now=at, observer=observer)


def counted(answered: int, created: int = 0, deleted: int = 0) -> dict[str, int]:
    return {"answered": answered, "created": created, "deleted": deleted}


def row_of(*glances: GatewayStatus) -> Row:
    """The row after one look at each of these, two seconds apart."""
    rates, rows = FleetRates(), list[Row]()
    for number, status in enumerate(glances):
        rows = rates.rows(FleetSnapshot(NOW + 2 * number, (status,)))
    return rows[0]


def test_one_look_tells_no_rate() -> None:
    row = row_of(glance(at=NOW, done=counted(5, 5)))
    assert (row.created_per_second, row.deleted_per_second, row.wait) == (None, None, None)


def test_a_rate_is_by_the_writers_own_beats_not_by_when_one_looked() -> None:
    row = row_of(glance(at=NOW, silent=1.0, done=counted(10, 6, 4)), glance(at=NOW + 2, done=counted(40, 26, 14)))
    assert row.created_per_second == pytest.approx(20 / 3, abs=0.01)
    assert row.deleted_per_second == pytest.approx(10 / 3, abs=0.01)


def test_between_two_beats_the_last_rate_stands() -> None:
    first, second = glance(at=NOW, done=counted(0)), glance(at=NOW + 2, done=counted(10, 10))
    assert row_of(first, second, glance(at=NOW + 4, silent=2.0, done=counted(10, 10))).created_per_second == 5


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(glance(at=NOW + 2, epoch="2", done=counted(500, 500)), id="another writer"),
        pytest.param(glance(at=NOW + 2, done=counted(1, 1)), id="counters that began anew"),
        pytest.param(glance(at=NOW + 2, silent=30, done=counted(500, 500)), id="a silent writer"),
        pytest.param(glance(at=NOW + 2), id="a writer that does not count"),
    ],
)
def test_what_cannot_be_compared_is_no_rate(after: GatewayStatus) -> None:
    assert row_of(glance(at=NOW, done=counted(100, 100)), after).created_per_second is None


def test_what_a_writer_has_done_before_it_first_told_is_no_rate() -> None:
    first = glance(at=NOW + 2, done=counted(100, 100))
    assert row_of(glance(at=NOW), first).created_per_second is None
    assert row_of(glance(at=NOW), first, glance(at=NOW + 4, done=counted(104, 104))).created_per_second == 2


def test_a_wait_is_about_what_waits_over_what_is_answered() -> None:
    before = glance(at=NOW, waiting=50, bulk=900, done=counted(0))
    assert row_of(before, glance(at=NOW + 2, waiting=50, bulk=900, done=counted(200))).wait == Wait(0.5, "about")
    assert row_of(before, glance(at=NOW + 2, bulk=900, done=counted(200))).wait == Wait(9.0, "about")
    assert row_of(before, glance(at=NOW + 2, done=counted(200))).wait is None


def test_what_nobody_answers_has_waited_at_least_since_it_was_first_seen() -> None:
    looks = [glance(at=NOW + 2 * number, waiting=1 + number, done=counted(7)) for number in range(4)]
    assert row_of(*looks).wait == Wait(6.0, "at_least")
    assert row_of(*looks, glance(at=NOW + 8, waiting=9, done=counted(8))).wait == Wait(18.0, "about")
    frozen = [glance(at=NOW + 2 * number, waiting=1, silent=6 + 2 * number, done=counted(7)) for number in range(3)]
    assert row_of(*frozen).wait == Wait(4.0, "at_least")


def test_where_the_writer_has_told_when_the_oldest_was_sent_that_is_since_when_it_waits() -> None:
    sent = str(int((NOW - 30) * 1000))
    looks = [glance(at=NOW + 2 * n, waiting=1, done=counted(7), oldest_sent_at=sent) for n in range(2)]
    assert row_of(*looks).wait == Wait(32.0, "at_least")
    # Of one that is down a single look tells it; of one that answers it is only a moment old.
    assert row_of(glance(at=NOW, waiting=1, silent=60, oldest_sent_at=sent)).wait == Wait(30.0, "at_least")
    before = glance(at=NOW, waiting=4, done=counted(0))
    after = glance(at=NOW + 2, waiting=4, done=counted(8), oldest_sent_at=sent)
    assert row_of(before, after).wait == Wait(1.0, "about")
    # In bulk, where no interactive one waits.
    earlier = str(int((NOW - 90) * 1000))
    assert row_of(glance(at=NOW, bulk=1, silent=60, oldest_bulk_sent_at=earlier)).wait == Wait(90.0, "at_least")


def test_refusals_are_counted_by_the_second() -> None:
    looks = [glance(at=NOW + 2 * n, done={**counted(100 * n), "refused": 10 * n}) for n in range(2)]
    assert row_of(*looks).refused_per_second == 5
    assert row_of(glance(at=NOW, done=counted(0)), glance(at=NOW + 2, done=counted(2))).refused_per_second == 0


def test_what_leaves_the_lane_may_have_been_what_waited() -> None:
    looks = [glance(at=NOW + 2 * number, waiting=3 - number, done=counted(7)) for number in range(3)]
    assert row_of(*looks).wait is None


def test_of_a_writer_that_does_not_count_no_wait_is_known() -> None:
    assert row_of(*(glance(at=NOW + 2 * number, waiting=3) for number in range(3))).wait is None


def test_a_writer_that_ended_in_good_order_is_down_without_a_last_sign_of_life() -> None:
    row = row_of(glance(at=NOW, heartbeat="0"))
    assert (row.state, row.silent_for) == ("down", None)


def test_traffic_of_a_silent_observer_is_not_known() -> None:
    reading = b'{"at": 1, "rx_per_second": 1000, "tx_per_second": 10}'
    live = replace(glance(at=NOW), reading=json.loads(reading))
    row = row_of(live)
    assert (row.rx_per_second, row.tx_per_second) == (1000, 10)
    row = row_of(replace(live, observer_silent_for=60.0))
    assert (row.rx_per_second, row.tx_per_second) == (None, None)


def test_the_gateway_in_most_trouble_stands_first() -> None:
    alarm = Alarm("sweep", "too many", 1, {})
    glances = [
        glance("idle", at=NOW),
        glance("busy", at=NOW, waiting=5, bulk=5),
        replace(glance("unwatched", at=NOW), observer_silent_for=None),
        glance("draining", at=NOW, state="draining"),
        glance("recovering", at=NOW, phase="recovering"),
        glance("down", at=NOW, silent=60),
        replace(glance("alarmed", at=NOW), alarms=(alarm,)),
    ]
    rows = FleetRates().rows(FleetSnapshot(NOW, tuple(glances)))
    assert [row.gateway for row in rows] == [
        *("alarmed", "down", "recovering", "draining", "unwatched", "busy", "idle")
    ]
