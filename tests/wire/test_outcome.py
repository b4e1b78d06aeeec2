"""The commit record: what callers, plain Celery and a redelivery read of an outcome."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlane.tasks.errors import Conflict, PeerlaneError, TimedOut, WriterError
from peerlane.tasks.wire import commit_record

anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class TestASuccess:
    def test_is_read_back_as_it_was(self) -> None:
        outcome = {"outcome": "created", "public_key": "k", "allowed_ips": ["10.8.0.2/32"], "labels": {"ü": "\ud83d"}}
        assert commit_record.decode(commit_record.encode("iad.1", outcome)) == outcome

    def test_is_what_celery_stores(self) -> None:
        meta = json.loads(commit_record.encode("iad.1", {"outcome": "absent"}))
        assert (meta["status"], meta["task_id"], meta["result"]) == ("SUCCESS", "iad.1", {"outcome": "absent"})
        assert meta["traceback"] is None


class TestAnError:
    def test_comes_back_as_itself(self) -> None:
        with pytest.raises(Conflict, match="taken") as caught:
            commit_record.decode(commit_record.encode("iad.1", Conflict("taken", 2.5)))
        assert caught.value.retry_after == 2.5

    def test_of_what_came_too_late_is_a_whole_tombstone_of_this_moment(self) -> None:
        record = json.loads(commit_record.late("iad.some-request"))
        assert record == {
            **json.loads(commit_record.tombstone("iad.some-request", record["result"]["exc_message"][0])),
            "date_done": record["date_done"],
        }
        assert abs(datetime.fromisoformat(record["date_done"]) - datetime.now(UTC)) < timedelta(minutes=1)
        with pytest.raises(TimedOut, match="deadline had passed"):
            commit_record.decode(commit_record.late("iad.some-request"))

    def test_of_a_tombstone_is_timed_out(self) -> None:
        with pytest.raises(TimedOut, match="cancelled"):
            commit_record.decode(commit_record.tombstone("iad.1"))

    @pytest.mark.parametrize(
        "failure",
        [
            {"exc_type": "Conflict", "exc_message": ["x"], "exc_module": "os"},
            {"exc_type": "SystemExit", "exc_message": [0], "exc_module": "builtins"},
            {"exc_type": "system", "exc_message": ["id"], "exc_module": "os"},
            {"exc_type": "Conflict", "exc_message": "x", "exc_module": "peerlane"},
            {"exc_type": "Conflict", "exc_message": [], "exc_module": "peerlane"},
            {"exc_type": "ClassVar", "exc_message": ["x"], "exc_module": "peerlane"},
            {},
            None,
            "x",
        ],
    )
    def test_of_anybody_elses_making_is_a_writer_error(self, failure: object) -> None:
        error = commit_record.error_from_wire(failure)
        assert type(error) is WriterError

    @pytest.mark.parametrize("arguments", [["m", 1.0, "too many"], [None], [{"a": 1}], [["x"]], [1], ["m", "later"]])
    def test_with_strange_arguments_is_still_one_of_ours(self, arguments: list[Any]) -> None:
        failure = {"exc_type": "Conflict", "exc_message": arguments, "exc_module": "peerlane"}
        error = commit_record.error_from_wire(failure)
        assert isinstance(error, PeerlaneError)
        assert isinstance(str(error), str)


class TestWhatIsNoRecord:
    @given(st.text() | st.binary() | anything.map(json.dumps))
    def test_is_an_error_of_ours_and_nothing_else(self, stored: str | bytes) -> None:
        with pytest.raises(PeerlaneError):
            commit_record.decode(stored)

    @given(st.sampled_from(["SUCCESS", "FAILURE", "RETRY", "PENDING", ""]), anything)
    def test_is_told_from_one_by_its_result(self, status: str, result: object) -> None:
        stored = json.dumps({"status": status, "result": result})
        if status == "SUCCESS" and isinstance(result, dict):
            assert json.dumps(commit_record.decode(stored)) == json.dumps(result)
        else:
            with pytest.raises(PeerlaneError):
                commit_record.decode(stored)

    def test_however_deep_it_is(self) -> None:
        with pytest.raises(WriterError):
            commit_record.decode("[" * 100_000)
