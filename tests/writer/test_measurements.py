"""What a writer measures and counts of its requests, and what readers make of what it tells."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import pytest
from gateways import GatewayProcess, MakeClient, MakeGateway
from grouped_lane import GroupedLane
from keys import some_key
from redis import Redis
from six_requests import six_requests
from waiting import eventually
from writer_alone import WriterAlone, create_peer

from peerlane.config import names
from peerlane.tasks.values.metrics import BUCKETS, STAGES, Histogram, WriterMetrics, encoded, writer_metrics
from peerlane.tasks.wire import commit_record
from peerlane.workers.lane.strategy import sent_at
from peerlane.workers.request.request import Delivery


def metrics_of(site: GatewayProcess) -> WriterMetrics | None:
    redis = Redis.from_url(str(site.settings["redis_url"]))
    try:
        return writer_metrics(cast("bytes | None", redis.hget(names.metrics_key(site.name), "writer")))
    finally:
        redis.close()


class TestAGateway:
    def test_tells_what_became_of_requests_and_how_long_each_stage_took(
        self, gateway: MakeGateway, client: MakeClient
    ) -> None:
        site = gateway()
        peers = client(site)
        six_requests(peers)
        expected = {
            ("create", "created", ""): 2,
            ("create", "existing", ""): 1,
            ("create", "refused", "conflict"): 1,
            ("delete", "deleted", ""): 1,
            ("delete", "absent", ""): 1,
        }

        def all_of_them() -> WriterMetrics | None:
            metrics = metrics_of(site)
            whole = metrics is not None and metrics.requests == expected and metrics.pools and metrics.round_trip
            return metrics if whole else None

        metrics = eventually(all_of_them, "all six requests by their outcome, the pools and the round trip")
        assert metrics is not None
        assert {operation: each.count for operation, each in metrics.seconds.items()} == {
            "create": 4,
            "delete": 2,
            "bulk": 0,
        }
        # A refusal touches no device; what is sent says when, so that its wait is known.
        assert {stage: each.count for stage, each in metrics.stages.items()} == {
            "queue": 6,
            "plan": 6,
            "device": 5,
            "commit": 6,
        }
        whole = sum(each.total for each in metrics.seconds.values())
        assert sum(each.total for each in metrics.stages.values()) == pytest.approx(whole, abs=1e-4)
        assert metrics.recoveries == 1
        assert 0 < (metrics.round_trip or 0) < 10
        assert {pool: in_use for pool, (in_use, _) in metrics.pools.items()} == {"10.8.0.0/16": 1, "fd00:8::/64": 1}
        assert metrics.pools["10.8.0.0/16"][1] == 2**16 - 3, "without the network's, the broadcast, and its own"

        site.stop()
        site.start()

        def anew() -> bool:
            new = metrics_of(site)
            return new is not None and new.began > metrics.began and new.requests == {}

        eventually(anew, "a new writer that counts anew")

    def test_counts_no_outcome_of_its_own_for_what_somebody_else_has_stored(self, bench: WriterAlone) -> None:
        for word in ("created", "a", "b", "c" * 5000):
            request, record = bench.request(), {"outcome": word}
            bench.raw.set(names.result_key(request), commit_record.encode(request, record), ex=60)
            bench.create(request=request)
        counted = bench.writer.measurements.requests
        assert counted == {("create", "created", ""): 1, ("create", "other", ""): 3}

    def test_tells_how_long_the_oldest_message_waits(self, bench: WriterAlone) -> None:
        def oldest() -> tuple[str | None, str | None]:
            assert bench.writer.store.heartbeat(metrics="{}", phase="serving")
            facts = bench.writer.store.facts()
            assert facts["phase"] == "serving"
            return facts["oldest_sent_at"], facts["oldest_bulk_sent_at"]

        assert oldest() == ("0", "0")
        for moment in (1_700_000_000_001, 1_700_000_000_002):
            headers = {"id": "x", names.SENT_AT: moment}
            bench.raw.lpush(names.lane_queue(bench.name), json.dumps({"body": "e30=", "headers": headers}))
        bench.raw.lpush(names.bulk_queue(bench.name), "no message")
        assert oldest() == ("1700000000001", "0")
        bench.raw.rpop(names.lane_queue(bench.name))
        assert oldest() == ("1700000000002", "0")
        bench.raw.delete(names.lane_queue(bench.name))
        bench.raw.set(names.lane_queue(bench.name), "no queue")
        assert oldest() == ("0", "0")
        assert json.loads(str(bench.raw.hget(names.metrics_key(bench.name), "writer"))) == {}

    def test_that_was_replaced_tells_nothing(self, bench: WriterAlone) -> None:
        bench.raw.incr(names.epoch_key(bench.name))
        assert not bench.writer.store.heartbeat(metrics="{}")
        assert not bench.raw.exists(names.metrics_key(bench.name))


class TestAGroup:
    def test_is_measured_request_by_request(self, lane: GroupedLane) -> None:
        taken = some_key()
        lane.send({"public_key": taken})
        lane.wake()
        lane.send(*({"public_key": some_key()} for _ in range(20)), {"public_key": taken, "keepalive": 7})
        lane.wake()
        measured = lane.writer.measurements
        assert measured.requests == {("create", "created", ""): 21, ("create", "refused", "conflict"): 1}
        assert measured.seconds["create"].count == 22
        assert {stage: each.count for stage, each in measured.stages.items()} == {
            "queue": 22,
            "plan": 22,
            "device": 21,
            "commit": 22,
        }


class TestARequest:
    def test_whose_message_does_not_say_when_it_was_sent_has_no_wait(self, bench: WriterAlone) -> None:
        create_peer(bench.writer, bench.request(), {"gateway": bench.name, "public_key": some_key()})
        assert {stage: each.count for stage, each in bench.writer.measurements.stages.items()} == {
            "queue": 0,
            "plan": 1,
            "device": 1,
            "commit": 1,
        }

    @pytest.mark.parametrize(("ago", "wait"), [(700, 0.7), (-5_000, 0.0), (86_500_000, None)])
    def test_waited_since_it_was_sent(self, bench: WriterAlone, ago: int, wait: float | None) -> None:
        """Clocks that differ make no negative wait, and a moment long ago is none at which a message was sent."""
        delivery = Delivery(bench.request(), sent_at=bench.now() - ago)
        bench.writer.carry_out(names.CREATE_PEER, delivery, {"gateway": bench.name, "public_key": some_key()})
        queue = bench.writer.measurements.stages["queue"]
        assert queue.count == (wait is not None)
        assert queue.total == pytest.approx(wait or 0.0, abs=0.05)

    @pytest.mark.parametrize("said", [None, "1700000000000", True, -1, 0, 2**60, 1.5, [1]])
    def test_says_when_it_was_sent_or_nothing(self, said: Any) -> None:
        assert sent_at({names.SENT_AT: said}) == 0
        assert sent_at({names.SENT_AT: 1_700_000_000_000}) == 1_700_000_000_000

    def test_that_comes_by_the_list_has_no_stages(self, bench: WriterAlone) -> None:
        wish: dict[str, Any] = {"gateway": bench.name, "victims": []}
        bench.writer.carry_out(names.REMOVE_PEERS, Delivery(bench.request()), wish)
        measured = bench.writer.measurements
        assert sum(measured.requests.values()) == measured.seconds["bulk"].count == 1
        assert sum(each.count for each in measured.stages.values()) == 0


class TestAHistogram:
    @pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (0.0005, 0), (0.00051, 1), (2.5, 11), (2.6, 12)])
    def test_counts_a_bound_within_its_bucket(self, value: float, bucket: int) -> None:
        histogram = Histogram()
        histogram.add(value)
        assert histogram.counts.index(1) == bucket
        assert len(histogram.counts) == len(BUCKETS) + 1


class TestWhatAWriterTells:
    def test_is_read_as_it_was(self, bench: WriterAlone) -> None:
        create_peer(bench.writer, bench.request(), {"gateway": bench.name, "public_key": some_key()})
        measured = bench.writer.measurements
        measured.round_trip = 0.25
        read = writer_metrics(encoded(measured.document(1_700_000_000_500)))
        assert read is not None
        assert read.began == 1_700_000_000.5
        assert read.requests == measured.requests
        assert read.round_trip == 0.25
        for stage in STAGES:
            assert read.stages[stage].counts == measured.stages[stage].counts

    @pytest.mark.parametrize(
        "stored",
        [None, b"", b"\xff", b"[]", b"null", "[" * 5000, b"{}"],
        ids=["none", "empty", "bytes", "list", "null", "deep", "object"],
    )
    def test_may_be_no_document(self, stored: Any) -> None:
        assert writer_metrics(stored) is None

    @pytest.mark.parametrize(
        "value", [None, True, -1, "x", [], {}, [[1, 2]], {"create": [[1], 2]}, float("nan"), 1e300]
    )
    @pytest.mark.parametrize(
        "field", ["began", "seconds", "stages", "requests", "recoveries", "recovery_seconds", "round_trip", "pools"]
    )
    def test_may_be_anything(self, field: str, value: Any) -> None:
        read = writer_metrics(json.dumps({field: value, "other": 1}))
        assert read is not None
        assert read.requests == {}
        assert read.pools == {}
        assert all(each.count == 0 for each in (*read.seconds.values(), *read.stages.values()))

    def test_leaves_out_what_could_be_no_label(self) -> None:
        rows = [
            ["create", "created", "", 3],
            ["create", "x y", "", 1],
            ["create", "refused", "Ab/c", 1],
            ["mine", "a", "", 1],
        ]
        read = writer_metrics(json.dumps({"requests": rows}))
        assert read is not None
        assert read.requests == {("create", "created", ""): 3}


def test_the_clock_of_redis_at_a_moment_takes_no_round_trip(bench: WriterAlone) -> None:
    clock = bench.writer.store.clock
    assert clock.at(time.monotonic()) == pytest.approx(clock.now_ms(), abs=50)
