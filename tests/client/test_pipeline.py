"""Many requests at once: bounded, in order, each with a time of its own, and nothing left behind by who stops early."""

from __future__ import annotations

from gateways import GatewayProcess
from keys import some_key
from waiting import PATIENCE, Stopwatch

from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.client.gateway import Gateway
from peerlane.tasks.errors import Invalid, TimedOut
from peerlane.tasks.lane.pipeline import send_pipelined
from peerlane.tasks.lane.result import LaneResult
from peerlane.tasks.lane.tasks import task_of
from peerlane.tasks.wire.model import PeerResult


class Sender:
    """Sends creates, and counts how many were sent beyond those that were answered."""

    def __init__(self, gateway: GatewayProcess, app: PeerlaneApp, timeout: float = PATIENCE) -> None:
        self.gateway, self.task, self.timeout = gateway.name, task_of(app, names.CREATE_PEER), timeout
        self.sent = 0

    def __call__(self, key: str) -> LaneResult:
        self.sent += 1
        arguments = {"gateway": self.gateway, "public_key": key}
        return self.task.apply_async(kwargs=arguments, expires=self.timeout)


def test_answers_come_in_the_order_of_the_wishes_and_no_more_than_the_window_is_out(
    shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    iad = shared_gateway
    send, keys = Sender(iad, app), [some_key() for _ in range(40)]
    answered: list[str] = []
    for answer in send_pipelined(send, keys, timeout=PATIENCE, size=8):
        assert isinstance(answer.outcome, PeerResult)
        assert answer.seconds > 0
        answered.append(answer.outcome.public_key)
        assert send.sent - len(answered) < 8
    assert answered == keys


def test_a_wish_that_cannot_be_sent_is_answered_in_its_place(shared_gateway: GatewayProcess, app: PeerlaneApp) -> None:
    iad = shared_gateway
    keys = [some_key(), "short", some_key()]
    first, second, third = send_pipelined(Sender(iad, app), keys, timeout=PATIENCE)
    assert isinstance(second.outcome, Invalid)
    assert [isinstance(answer.outcome, PeerResult) for answer in (first, third)] == [True, True]


def test_those_whose_time_ran_out_side_by_side_are_not_waited_for_in_a_row(
    shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    iad = shared_gateway
    caller = Gateway(iad.name, app=app)
    iad.pause(alive=True)
    watch = Stopwatch()
    answers = list(send_pipelined(Sender(iad, app, 1), [some_key() for _ in range(30)], timeout=1, size=30))
    assert watch.seconds < 15, "not one second for each"
    assert {type(answer.outcome) for answer in answers} == {TimedOut}
    iad.resume()
    assert caller.create_peer(some_key(), timeout=PATIENCE).outcome == "created"
    assert len(list(caller.peers())) == 1


def test_who_stops_early_leaves_nothing_behind_that_may_still_take_effect(
    shared_gateway: GatewayProcess, app: PeerlaneApp
) -> None:
    iad = shared_gateway
    caller = Gateway(iad.name, app=app)
    keys = [some_key() for _ in range(10)]
    answers = send_pipelined(Sender(iad, app), keys, timeout=PATIENCE, size=5)
    first = next(answers)
    assert isinstance(first.outcome, PeerResult)
    iad.pause(alive=True)
    answers.close()
    iad.resume()
    # First in, first out: what was sent before this has been dealt with.
    assert caller.delete_peer(some_key(), timeout=PATIENCE).outcome == "absent"
    settled = {peer.public_key for peer in caller.peers()}
    assert first.outcome.public_key in settled
    assert settled <= set(keys[:5])
    assert caller.delete_peer(some_key(), timeout=PATIENCE).outcome == "absent"
    assert {peer.public_key for peer in caller.peers()} == settled
