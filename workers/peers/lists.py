"""Plans lists: each wish by itself, one after the other, for one commit.

A refusal may depend on an address that another wish of the list has taken. One commit makes both true, or neither.
Creates are entered in the table when they are planned (``Decision.entered``), because the next plan must see them, and
stay there if they are committed.
"""

from __future__ import annotations

import json
from typing import Any

from peerlane.tasks.errors import Conflict, PeerlaneError, Unavailable
from peerlane.tasks.wire.lists import ANSWER_BYTES, CreatePeers, DeletePeers, delete_of, error_answer, wish_of
from peerlane.tasks.wire.model import CreatePeer
from peerlane.tasks.wire.stored_peer import StoredPeer
from peerlane.workers.peers.plan import Decision, Plan, PlanningContext, check_lane, plan_create, plan_delete, take_out


class _Answers:
    """Collects the answers and plans of one list. Each key has one plan."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.plans: dict[str, Plan] = {}
        self.indexes: list[int] = []
        self._bytes = 0

    def open(self, context: PlanningContext) -> None:
        """Check that the next wish can be planned.

        Raises:
            PeerlaneError: the device has refused it, or there is no room for its answer.
        """
        if refused := context.refused.get(len(self.answers)):
            raise refused
        if self._bytes > ANSWER_BYTES:
            raise Unavailable("the answers to this list are too large already: ask for this peer in another list")

    def add(self, plan: Plan, answer: dict[str, Any]) -> None:
        if plan.public_key not in self.plans:
            self.plans[plan.public_key] = plan
            self.indexes.append(len(self.answers))
        self.answers.append(answer)
        if len(answer.get("allowed_ips", ())) > 2 or "labels" in answer:  # nearly none is larger than that
            self._bytes += len(json.dumps(answer))

    def refuse(self, error: PeerlaneError) -> None:
        self.answers.append(error_answer(error))

    def decision(self, gateway: str, deadline: int | None, *, entered: bool = False, **facts: str) -> Decision:
        plans = tuple(self.plans.values())
        changes = tuple(change for plan in plans for change in plan.changes)
        result = {"outcome": "listed", "gateway": gateway, "answers": self.answers, **facts}
        return Decision(plans, changes, result, deadline or 0, indexes=tuple(self.indexes), entered=entered)


def create_peers(context: PlanningContext, wish: CreatePeers) -> Decision:
    """Plan a list of creates, and enter them in the table."""
    table = context.table
    check_lane(table.policy, wish.gateway)
    answers = _Answers()
    entered: list[Plan] = []
    try:
        for fields in wish.wishes:
            try:
                answers.open(context)
                peer_wish = context.opened(wish_of(wish.gateway, fields))
                begun = peer_wish.public_key in table.begun
                if peer_wish.public_key in table.foreign and not begun:
                    raise Conflict("the device has a peer of this key that Redis does not know: import or delete it")
                plan = plan_create(table, peer_wish, now=context.now, state=context.state)
            except PeerlaneError as error:
                answers.refuse(error)
                continue
            if plan.after is None:
                continue  # of a create there is none
            answers.add(plan, _granted(plan, peer_wish, plan.after))
            if plan.before is not plan.after:
                enter = table.add if plan.before is None and not begun else table.put
                enter(plan.after, plan.record)
                entered.append(plan)
    except BaseException:
        take_out(table, entered)
        raise
    return answers.decision(wish.gateway, wish.deadline, entered=True, **context.facts)


def _granted(plan: Plan, wish: CreatePeer, peer: StoredPeer) -> dict[str, Any]:
    answer: dict[str, Any] = {"outcome": plan.outcome, "created_at": peer.created_at}
    if wish.allowed_ips is None:
        answer["allowed_ips"] = [str(prefix) for prefix in peer.allowed_ips]
    if peer.expires_at is not None:
        answer["expires_at"] = peer.expires_at
    return answer


def delete_peers(context: PlanningContext, wish: DeletePeers) -> Decision:
    """Plan a list of deletes; a key that comes twice is absent the second time."""
    table = context.table
    check_lane(table.policy, wish.gateway)
    answers = _Answers()
    for key in wish.public_keys:
        try:
            answers.open(context)
            plan = plan_delete(table, delete_of(wish.gateway, key))
        except PeerlaneError as error:
            answers.refuse(error)
            continue
        peer = None if key in answers.plans else plan.before
        answers.add(plan, {"outcome": "absent"} if peer is None else {"outcome": "deleted", **_gone(peer)})
    return answers.decision(wish.gateway, wish.deadline)


def _gone(peer: StoredPeer) -> dict[str, Any]:
    """A deleted peer's fields, without defaults and without its key, which the list contains."""
    return {name: value for name, value in peer.public().items() if value and name != "public_key"}
