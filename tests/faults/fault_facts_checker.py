"""What the judge of a fault run says of the gateway's hash, by which clients find it. Knows no product code.

I12: after quiet the hash tells what is so. It names the writer that serves, its epoch, the device's key and port, and
how many peers there are; what clients were given stays as it was before the run; the commit sequence never falls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fault_evidence import Evidence, Facts, Violation

#: What clients were given, or choose by: no fault may change it.
GIVEN = ("public_key", "endpoint", "listen_port", "pools", "serves", "interface", "addresses", "version")
#: Seconds within which a writer that serves has given a sign of life.
FRESH = 5.0


def facts_violations(evidence: Evidence, kept: int = 0) -> Iterable[Violation]:
    """Every violation of I12 that the evidence shows. ``kept``: peers on the device that Redis has lost for good."""
    facts, before = evidence.final.facts, evidence.facts_before
    if facts is None:
        return
    fields = facts.fields
    expected = {
        "phase": "serving",
        "state": "active",
        "epoch": str(facts.epoch),
        "peers": str(len(evidence.final.redis) + kept),
        "public_key": facts.public_key,
        "listen_port": facts.listen_port,
        "holder_pid": facts.writer,
    }
    for name, value in expected.items():
        if value is not None and fields.get(name, "active" if name == "state" else None) != str(value):
            yield Violation("I12", f"the gateway's hash tells {name} {fields.get(name)}, it is {value}")
    silent = evidence.final.now - _number(fields, "heartbeat") / 1000
    if silent > FRESH:
        yield Violation("I12", f"the writer's last sign of life is {silent:.1f} s old")
    if before is not None:
        yield from _kept(before, facts)


def _kept(before: Facts, facts: Facts) -> Iterable[Violation]:
    for name in GIVEN:
        if before.fields.get(name) != facts.fields.get(name):
            yield Violation("I12", f"{name} was {before.fields.get(name)}, and is {facts.fields.get(name)}")
    if _number(facts.fields, "seq") < _number(before.fields, "seq"):
        yield Violation("I12", f"the sequence fell from {before.fields.get('seq')} to {facts.fields.get('seq')}")
    if facts.epoch < before.epoch:
        yield Violation("I12", f"the epoch fell from {before.epoch} to {facts.epoch}")


def _number(fields: Mapping[str, str], name: str) -> int:
    value = fields.get(name, "")
    return int(value) if value.isdecimal() else 0
