"""What the observer is asked for: a sweep, a reconciliation. Checked like single requests."""

from __future__ import annotations

from peerlane.tasks.wire.model import Deadline, GatewayName, Wire


class SweepGateway(Wire):
    """Remove what is stale. ``slot``: asked for by a beat, once for each slot."""

    gateway: GatewayName
    slot: int | None = None
    #: Overrules the circuit breaker, and takes Redis' clock as it is.
    force: bool = False
    #: Say what would go, and why; remove nothing.
    dry_run: bool = False
    deadline: Deadline | None = None


class ReconcileGateway(Wire):
    """Compare the device with Redis and have the writer mend what differs."""

    gateway: GatewayName
    slot: int | None = None
    dry_run: bool = False
    deadline: Deadline | None = None
