"""The error tree: every error keeps what it is on its way through the queue."""

from __future__ import annotations

import json
import pickle

import pytest

import peerlane
from peerlane.tasks import errors
from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError, Refused
from peerlane.tasks.wire import commit_record

ALL = list(errors.ERRORS.values())
#: Those that are raised; the other two are there to be caught.
RAISED = [kind for kind in ALL if kind not in (PeerlaneError, Refused)]


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
class TestEveryError:
    def test_survives_the_way_through_the_queue(self, kind: type[PeerlaneError]) -> None:
        with pytest.raises(kind) as caught:
            commit_record.decode(commit_record.encode("iad.1", kind("what happened")))
        assert type(caught.value) is kind
        assert caught.value.as_dict() == kind("what happened").as_dict()

    def test_survives_pickling_as_a_pool_of_processes_does(self, kind: type[PeerlaneError]) -> None:
        error = kind("what happened")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert (type(again), again.args, again.as_dict()) == (kind, error.args, error.as_dict())

    def test_says_what_happened_and_whether_asking_again_helps(self, kind: type[PeerlaneError]) -> None:
        document = kind("what happened").as_dict()
        assert document["code"] == kind.code
        assert document["message"] == str(kind("what happened")) == "what happened"
        assert document["retryable"] in (True, False)
        assert kind.exit_code in (1, 2, 3)

    def test_stands_in_the_tree_of_the_docstring(self, kind: type[PeerlaneError]) -> None:
        assert f"── {kind.__name__} " in (errors.__doc__ or "")

    def test_describes_itself(self, kind: type[PeerlaneError]) -> None:
        assert kind.__doc__


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in ALL]
    assert sorted(codes) == sorted(set(codes))


def test_retry_after_travels_where_it_is_known() -> None:
    for kind in RAISED:
        if kind is not OutcomeUnknown:
            assert commit_record.error_from_wire(
                {"exc_type": kind.__name__, "exc_message": list(kind("m", 2.0).args), "exc_module": kind.__module__}
            ).as_dict() == {**kind("m").as_dict(), "retry_after": 2.0}


def test_an_unknown_outcome_names_the_request_to_ask_again_with() -> None:
    error = OutcomeUnknown("away", "iad.1")
    assert error.as_dict()["request_id"] == error.request_id == "iad.1"
    with pytest.raises(OutcomeUnknown) as caught:
        commit_record.decode(commit_record.encode("iad.1", error))
    assert caught.value.request_id == "iad.1"


def test_what_is_refused_has_changed_nothing_and_what_is_unknown_is_not_refused() -> None:
    refused = {kind.__name__ for kind in ALL if issubclass(kind, Refused)} - {"Refused"}
    assert refused == {"Invalid", "Conflict", "PoolExhausted", "Draining", "Unavailable", "TimedOut"}


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
class TestAnErrorIsKnownByTheNameThatCallersImport:
    def test_peerlane_exports_it(self, kind: type[PeerlaneError]) -> None:
        assert getattr(peerlane, kind.__name__) is kind
        assert kind.__name__ in peerlane.__all__

    def test_a_stored_result_names_peerlane_wherever_its_file_is(self, kind: type[PeerlaneError]) -> None:
        stored = json.loads(commit_record.encode("iad.1", kind("what happened")))
        assert stored["result"]["exc_module"] == "peerlane"

    def test_it_can_be_pickled(self, kind: type[PeerlaneError]) -> None:
        error = pickle.loads(pickle.dumps(kind("what happened")))  # noqa: S301 - our own bytes
        assert type(error) is kind
        assert error.as_dict() == kind("what happened").as_dict()
