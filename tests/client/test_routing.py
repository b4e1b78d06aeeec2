"""From the argument ``gateway`` to the queue, and names that hold no separators of others."""

from __future__ import annotations

import pytest
from celery.app.defaults import SETTING_KEYS
from hypothesis import given
from hypothesis import strategies as st

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp, celery_settings
from peerlane.config.celery.schedule import ACTS
from peerlane.config.settings import read
from peerlane.tasks.lane.tasks import LaneTask, register, task_of
from peerlane.tasks.wire.registry import LANE_TASKS, TASKS, UPKEEP_TASKS, route_task
from peerlane.workers.peers.handlers import PLANNERS

gateway_names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


class TestTheRouter:
    @given(gateway_names)
    def test_sends_each_request_to_its_gateways_lane(self, gateway: str) -> None:
        for task in (names.CREATE_PEER, names.DELETE_PEER):
            assert route_task(task, (), {"gateway": gateway}, {}) == {"queue": f"gateway.{gateway}"}
        for task in (names.REMOVE_PEERS, names.MEND_PEERS, names.IMPORT_PEERS):
            assert route_task(task, (), {"gateway": gateway}, {}) == {"queue": f"gateway.{gateway}.bulk"}
        for task in (names.SWEEP, names.RECONCILE):
            assert route_task(task, (), {"gateway": gateway}, {}) == {"queue": f"gateway.{gateway}.observer"}

    @pytest.mark.parametrize("gateway", ["", "IAD", "iad.bulk", "iad\n", "-iad", "a" * 64, None, 7, ["iad"], "i{a}d"])
    def test_sends_nothing_for_what_is_no_gateway(self, gateway: object) -> None:
        for task in TASKS:
            with pytest.raises(ValueError, match="keyword argument gateway"):
                route_task(task, (), {"gateway": gateway}, {})
            with pytest.raises(ValueError, match="keyword argument gateway"):
                route_task(task, (gateway,), None, {})

    def test_leaves_other_tasks_alone(self) -> None:
        assert route_task("celery.backend_cleanup", (), {"gateway": "iad"}, {}) is None


class TestTheRowsOfTasks:
    """One row a task; what is bound to it elsewhere is bound to all of them and to nothing else."""

    def test_have_a_planner_each(self) -> None:
        assert PLANNERS.keys() == LANE_TASKS.keys()

    def test_have_a_celery_task_each(self) -> None:
        tasks = register(PeerlaneApp(read()))
        assert tasks.keys() == LANE_TASKS.keys()
        for name, task in tasks.items():
            row = LANE_TASKS[name]
            assert isinstance(task, LaneTask)
            assert (task.name, task.model) == (name, row.model)
            assert task.always_bulk == (row.queue("iad") == "gateway.iad.bulk")

    def test_of_the_observer_are_those_that_it_is_scheduled_for(self) -> None:
        assert UPKEEP_TASKS.keys() == ACTS.keys()

    def test_tell_each_name_once(self) -> None:
        assert TASKS.keys() == {row.name for row in TASKS.values()}
        assert len(TASKS) == len(LANE_TASKS) + len(UPKEEP_TASKS)


class TestNames:
    @given(gateway_names, gateway_names)
    def test_of_two_gateways_share_nothing(self, first: str, second: str) -> None:
        def of(gateway: str) -> set[str]:
            return {
                make(gateway)
                for make in (
                    *(names.lane_queue, names.bulk_queue, names.peers_key, names.addresses_key, names.epoch_key),
                    *(names.gateway_key, names.unacked_key, names.writer_lock),
                )
            }

        assert len(of(first)) == 8
        assert first == second or not of(first) & of(second)

    @given(gateway_names, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True))
    def test_of_requests_tell_their_gateway(self, gateway: str, token: str) -> None:
        request = names.request_id(gateway, token)
        assert names.is_request_id(gateway, request)
        assert not names.is_request_id(gateway + "x", request)

    @pytest.mark.parametrize(
        "value",
        [
            *("", "iad", "iad.", ".x", "fra.1", "iad.1.2", "iad.1\n", "iad. 1", "iad.*", "iad.{x}", "iad.é"),
            *("iad." + "1" * 65, "iad." + "1" * 10_000, None, 7, b"iad.1", ["iad.1"]),
        ],
    )
    def test_that_are_no_request_ids_are_told_from_those_that_are(self, value: object) -> None:
        assert not names.is_request_id("iad", value)


class TestTheApp:
    def test_routes_by_the_argument(self) -> None:
        app = PeerlaneApp(read())
        create = task_of(app, names.CREATE_PEER)
        route = app.amqp.router.route({}, create.name, (), {"gateway": "iad"})
        assert route["queue"].name == "gateway.iad"

    def test_of_a_writer_serves_its_own_lane_interactive_first_and_no_other(self) -> None:
        chosen = celery_settings(read(gateway="iad"), "writer")
        assert [queue.name for queue in chosen["task_queues"]] == ["gateway.iad", "gateway.iad.bulk"]
        assert chosen["task_create_missing_queues"] is False

    def test_of_a_writer_needs_a_gateway(self) -> None:
        with pytest.raises(ValueError, match="PEERLANE_GATEWAY"):
            celery_settings(read(), "writer")

    @pytest.mark.parametrize("role", ["client", "writer"])
    def test_has_only_settings_that_celery_knows(self, role: str) -> None:
        chosen = celery_settings(read(gateway="iad"), "writer" if role == "writer" else "client")
        assert chosen.keys() <= SETTING_KEYS
