"""Requests to a gateway's observer: sweep, reconcile."""

from __future__ import annotations

from peerlane.tasks.wire.model import Deadline, GatewayName, Wire


class SweepGateway(Wire):
    """Remove stale peers. ``slot`` is set by a beat, which asks once for each slot."""

    gateway: GatewayName
    slot: int | None = None
    #: Overrules the circuit breaker, and takes Redis' clock as it is.
    force: bool = False
    #: Say what would go, and why; remove nothing.
    dry_run: bool = False
    deadline: Deadline | None = None


class ReconcileGateway(Wire):
    """Compare the device with Redis and have the writer repair the differences."""

    gateway: GatewayName
    slot: int | None = None
    dry_run: bool = False
    deadline: Deadline | None = None
