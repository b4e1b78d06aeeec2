"""Of a list of which the device refuses a wish, the other wishes are still applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from peerlane.tasks.errors import KernelError, PeerlaneError
from peerlane.workers.dataplane import DataPlane
from peerlane.workers.peers.plan import Decision, Plan
from peerlane.workers.request.request import Request


class Applies(Protocol):
    """The part of the writer that is used here."""

    plane: DataPlane

    @property
    def recovery_needed(self) -> str | None: ...
    def apply(self, request: Request, decision: Decision) -> None: ...
    def decide(self, request: Request, refused: Mapping[int, PeerlaneError]) -> Decision: ...
    def settle(self, plans: Sequence[Plan]) -> None: ...


def apply_others(writer: Applies, request: Request, decision: Decision, error: KernelError) -> Decision:
    """After ``error`` at applying a list: apply the wishes that the device takes; the others get its error.

    Raises:
        KernelError: no list, or the device does not say which wish it refuses; what was begun was undone.
    """
    refused: dict[int, PeerlaneError] = {}
    while True:
        bad = _refused_alone(writer, decision) if decision.indexes and not writer.recovery_needed else {}
        if not bad or writer.recovery_needed:
            raise error
        refused |= bad
        # What another wish was refused for may rest on one that the device has refused: all is planned anew.
        decision = writer.decide(request, refused)
        try:
            writer.apply(request, decision)
        except KernelError as refusal:
            error = refusal
        else:
            return decision


def _refused_alone(writer: Applies, decision: Decision) -> dict[int, PeerlaneError]:
    """Find the wishes that the device refuses: apply each plan of a list alone, and undo all."""
    bad: dict[int, PeerlaneError] = {}
    for index, plan in zip(decision.indexes, decision.plans, strict=True):
        try:
            writer.plane.apply(plan.changes)
        except KernelError as error:
            bad[index] = error
    writer.settle(decision.plans)
    return bad
