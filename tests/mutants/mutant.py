"""What a planted fault is, and the tests that are to notice some."""

from __future__ import annotations

from dataclasses import dataclass

COMMIT, GROUP, WRITER = "tests/writer/test_commit.py", "tests/writer/test_group.py", "tests/writer/test_writer.py"
PLAN, RECOVER, AGREEMENT = "tests/writer/test_plan.py", "tests/writer/test_recover.py", "tests/writer/test_agreement.py"
TAKEOVER, STUCK, SWEEP = "tests/writer/test_takeover.py", "tests/writer/test_stuck.py", "tests/observer/test_sweep.py"
CANCEL, DOUBT = "tests/client/test_cancel.py", "tests/writer/test_doubt.py"
REDELIVERY, ADOPTION = "tests/writer/test_redelivery.py", "tests/operators/test_adoption.py"
UPKEEP = "tests/faults/test_fault_upkeep.py"
SUPERVISE, SERVICE = "tests/deploy/test_supervise.py", "tests/writer/test_service.py"
SEQUENCE, LATE, FILLING = (
    "tests/writer/test_sequence.py",
    "tests/writer/test_late_lane.py",
    "tests/writer/test_filling.py",
)
LISTS, OVERLOAD, WGFILE = (
    "tests/writer/test_lists.py",
    "tests/client/test_overload.py",
    "tests/operators/test_wgfile.py",
)
IDS, LEFT = "tests/client/test_request_ids.py", "tests/client/test_left.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small fault."""

    name: str
    fault: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
